"""What a run promises: the same again, no look at test images, finite numbers, and the page that says so."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from faults import ROOT, TINY, in_a_process, same_run
from made import weights
from waiting import PATIENCE

from attnad.cli import main
from attnad.config import PaperConfig, from_dict
from attnad.data import load_test, load_train
from attnad.detectors import recipe
from attnad.run.run import load_run, train_run
from attnad.train import train_attention
from attnad.training.state import read_log
from attnad.training.storage import load_json, load_tensors, save_tensors

# --- the same again --------------------------------------------------------------------------------------------------

ANEW = """
import sys
from attnad.__main__ import main
sys.argv = ["attnad", "train", *sys.argv[1:], "--out", "run"]
assert main() == 0
sys.argv = ["attnad", "evaluate", "run", "--device", "cpu", "--json", "metrics.json"]
assert main() == 0
"""


@pytest.fixture(scope="module")
def run(bricks, tmp_path_factory) -> Path:
    """Folder of a run that this process has trained, beside its figures: not to be changed."""
    folder = tmp_path_factory.mktemp("ours")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", str(bricks), *TINY, "--out", "run"]) == 0
        assert main(["evaluate", "run", "--device", "cpu", "--json", "metrics.json"]) == 0
    return folder / "run"


def test_the_same_seed_gives_the_same_bytes(bricks, run, tmp_path):
    """A process started as a person starts it, in another folder, with another order of sets than this one's."""
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    environment = os.environ | {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", ANEW, str(bricks), *TINY]
    subprocess.run(arguments, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL, check=True, timeout=PATIENCE)
    same_run(tmp_path / "run", run)
    assert (tmp_path / "metrics.json").read_bytes() == (run.parent / "metrics.json").read_bytes()


def scores_with(numbers: tuple[int, ...], folder: Path, bricks: Path) -> list[dict[str, np.ndarray]]:
    """What a run scores with each number of threads."""
    loaded, images, found = load_run(folder, device="cpu"), load_test(str(bricks), size=32).images, []
    for threads in numbers:
        torch.set_num_threads(threads)
        found.append({name: value.numpy() for name, value in loaded.score(images).named()})
    return found


def test_scores_hardly_depend_on_the_number_of_threads(bricks, run):
    """Sums in another order: the same weights score the same to five digits."""
    one, *others = in_a_process(scores_with, (1, 2, 4), run, bricks)[0]
    for other in others:
        for name, values in one.items():
            np.testing.assert_allclose(other[name], values, rtol=1e-5, atol=1e-5, err_msg=name)


def test_scores_hardly_depend_on_the_precision(bricks, run, monkeypatch):
    """bfloat16, which a GPU takes, on the CPU: the same weights give the same maps and scores to two digits."""
    loaded, images = load_run(run, device="cpu"), load_test(str(bricks), size=32).images
    exact = loaded.score(images)
    monkeypatch.setattr("attnad.score.autocast", lambda device: torch.autocast(device.type, torch.bfloat16))
    mixed = loaded.score(images)
    assert not torch.equal(mixed.image["adgan"], exact.image["adgan"]), "bfloat16 was not used"
    for name, values in exact.named():
        within = 0.05 if name in ("adgan", "discriminator") else 0.02
        torch.testing.assert_close(dict(mixed.named())[name], values, rtol=0, atol=within, msg=name)


def losses_with(numbers: tuple[int, ...], config: PaperConfig) -> list[list[float]]:
    """The losses of the first epoch of stage 1, with each number of threads."""
    images = load_train(config.data, size=config.size, normal_class=config.normal_class).images[:256]
    found = []
    for threads in numbers:
        torch.set_num_threads(threads)
        with tempfile.TemporaryDirectory() as folder:
            train_attention(config, images, device=torch.device("cpu"), folder=Path(folder), progress=False)
            found.append([float(loss) for *_, loss, _ in read_log(Path(folder) / "log.csv")])
    return found


@pytest.mark.machines
@pytest.mark.parametrize(("batch", "within"), [(256, 1e-4), (16, 0.1)], ids=["one step", "an epoch"])
def test_training_begins_alike_with_any_number_of_threads(batch, within):
    """A step from the same weights has the same losses to four digits; what differs then grows, to some per cent."""
    config = recipe("quick", "textures")
    stage = replace(config.attention, epochs=1, batch=batch)
    config = replace(config, normal_class="brick", size=32, attention=stage)
    one, *others = in_a_process(losses_with, (1, 2, 4), config)[0]
    for other in others:
        np.testing.assert_allclose(other, one, rtol=within)


# --- no leak ---------------------------------------------------------------------------------------------------------


def train_blindly(config: PaperConfig, folder: Path) -> str:
    """Train with a guard that raises as soon as anything below test or ground_truth is opened or listed."""

    def guard(event: str, arguments: tuple) -> None:
        if event in ("open", "os.listdir", "os.scandir", "os.chdir") and isinstance(arguments[0], (str, bytes, Path)):
            path = Path(os.fsdecode(arguments[0]))
            if Path(config.data) in path.parents and {"test", "ground_truth"} & set(path.parts[-3:]):
                raise AssertionError(f"{path} was looked at")

    sys.addaudithook(guard)
    train_run(config, folder, device="cpu", progress=False)
    try:
        load_test(config.data, size=32)
    except AssertionError as error:
        return str(error)
    return "the guard does not work"


def test_training_looks_at_no_test_image(run, tmp_path):
    config = from_dict(PaperConfig, load_json(run / "config.json"))
    assert "was looked at" in in_a_process(train_blindly, config, tmp_path / "run")[0]
    assert weights(tmp_path / "run") == weights(run)


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_scores_that_are_not_finite_are_refused(run, tmp_path, capsys):
    """Weights that are finite, and whose scores are not: the file is whole, the run is of no use."""
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / "adgan.safetensors"
    tensors = load_tensors(path)
    changed = {name: value * 0 + 3e38 for name, value in tensors.items() if "discriminator" in name and "bias" in name}
    assert changed
    save_tensors(path, tensors | changed)
    assert main(["evaluate", str(tmp_path / "run"), "--device", "cpu"]) == 2
    assert "adgan of an image is not finite; train again at a lower" in capsys.readouterr().err


# --- the page that promises all this ---------------------------------------------------------------------------------


def test_every_promise_names_a_test_that_exists():
    text = (ROOT / "book" / "promises.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)\.py::(test_\w+)`", text))
    assert len(named) > 30
    there: dict[str, set[str]] = {}
    for file in {file for file, _ in named}:
        tree = ast.parse((ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8"))
        there[file] = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert not {f"{file}.py::{test}" for file, test in named if test not in there[file]}
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith(("| ---", "| What"))]
    for row in rows:
        assert "::test_" in row, f"a promise without a test: {row}"
