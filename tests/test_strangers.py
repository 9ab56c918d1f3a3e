"""What somebody else made: run folders, models and pickles read nothing else, hang nowhere and fill no memory."""

from __future__ import annotations

import os
import resource
import shutil
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import in_a_process, refused
from made import fails, random_run, write_images

from attnad.cli import main
from attnad.config import DETECTORS
from attnad.data import lies_here, load_train, textures
from attnad.detectors import detector_class, recipe
from attnad.detectors.network import NetworkDetector
from attnad.errors import CheckpointError, TrainingError
from attnad.run.export import load_exported
from attnad.run.run import load_run, train_run
from attnad.training.state import read_log
from attnad.training.storage import JSON_BYTES, TENSOR_BYTES, bytes_of, load_json, outline, save_json, save_tensors

pytestmark = pytest.mark.usefixtures("elsewhere")
FACTS = {"threshold": 0.5, "threshold_from": "x", "n_train": 9, "seconds": {}, "device": "cpu"}
# The ends of all ranges that decide how large a network is; none needs weights or packages that may not be there.
ENDS = {"size": 1024, "min_side": 1024, "channels": 1024, "latent": 1024, "encoder": "resnet18-imagenet"}
ENDS |= {"students": 16, "width": 128}
OURS = [name for name in DETECTORS if name not in ("neighbours", "adapted")]  # theirs is of one size


def largest(name: str) -> Any:
    """A recipe's configuration at the ends of its ranges."""
    config = recipe(name, "textures")
    if name in ("quick", "paper"):
        return replace(
            config, size=1024, attention=replace(config.attention, encoder="resnet18", width=128, latent=1024)
        )
    return replace(config, **{field: value for field, value in ENDS.items() if field in vars(config)})


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    """Folder of a finished run on a folder of photographs that lies elsewhere: not to be changed."""
    folder = tmp_path_factory.mktemp("kept")
    for part, crops in (("train/good", textures.train_crops("brick", 32)[:6]),
                        ("test/good", textures.train_crops("brick", 32)[6:8]),
                        ("test/hole", textures.train_crops("grass", 32)[:2])):  # fmt: skip
        write_images(folder / "data" / part, crops)
    config = replace(recipe("ae-l2", str(folder / "data")), size=32, width=2, epochs=1)
    train_run(config, folder / "run", device="cpu", progress=False)
    return folder / "run"


@pytest.fixture
def run(kept, tmp_path) -> Path:
    shutil.copytree(kept, tmp_path / "run")
    return tmp_path / "run"


# --- memory ----------------------------------------------------------------------------------------------------------


def load_largest(folder: Path) -> int:
    """Load runs with large configurations and no weights, where no more than 2 GB can be had beside what is in use."""
    for name in OURS:  # what they import counts for nothing
        with suppress(Exception):
            detector_class(name).load(recipe(name, "textures"), folder, device=torch.device("cpu"))
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (used + 2 * 10**9, resource.RLIM_INFINITY))
    for name in OURS:
        run = folder / name
        run.mkdir()
        save_json(run / "config.json", asdict(largest(name)))
        save_json(run / "run.json", FACTS)
        for file in ("attention", "adgan", "strong", recipe(name, "textures").recipe):
            save_tensors(run / f"{file}.safetensors", {"levels.a": torch.ones(2)})
        assert refused(lambda run=run: load_run(run, device="cpu"), run) is None, name
    return len(OURS)


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="how much memory is in use is asked of Linux")
def test_a_configuration_takes_no_more_memory_than_its_weights(tmp_path):
    found, grown = in_a_process(load_largest, tmp_path)
    print(f"{found} configurations of up to 14 GB: memory grew by {grown:.0f} MB at most")
    assert found == len(OURS)


@pytest.mark.parametrize(("name", "gigabytes"), [("discriminators", 14), ("gaussian", 14), ("guided", 14)])
def test_who_asks_for_too_much_hears_what_it_would_need(name, gigabytes, monkeypatch, tmp_path):
    few = load_train("textures", size=32)
    monkeypatch.setattr("attnad.run.run.load_train", lambda *_, **__: few)
    with pytest.raises(TrainingError, match=rf"size 1024, .*would need {gigabytes} GB, and 8 is the most; choose"):
        train_run(largest(name), tmp_path / "run", device="cpu", progress=False)


@pytest.mark.parametrize("name", [name for name in OURS if issubclass(detector_class(name), NetworkDetector)])
def test_no_range_of_a_small_network_leads_to_more_than_may_be_loaded(name):
    """So that their `fit` need not ask how much it would be, as that of `gaussian` does."""
    config = largest(name)
    detector_class(name).check(config)
    assert 0 < bytes_of(outline(lambda: detector_class(name)(config))) < TENSOR_BYTES


def test_an_outline_becomes_the_module_bit_for_bit(tmp_path):
    """All that is scored with, buffers that no file keeps among them, and as it lies in memory."""
    run = random_run()
    detector = type(run.detector)
    for name, modules in {"attention": ("network", "discriminator"), "adgan": ("adgan",)}.items():
        tensors = {f"{m}.{k}": v for m in modules for k, v in getattr(run.detector, m).state_dict().items()}
        save_tensors(tmp_path / f"{name}.safetensors", tensors)
    loaded = detector.load(run.config, tmp_path, device=torch.device("cpu"))
    for part in ("network", "discriminator", "adgan"):
        ours = getattr(run.detector, part).to(memory_format=torch.channels_last)
        for kind in ("named_parameters", "named_buffers"):
            theirs = dict(getattr(getattr(loaded, part), kind)())
            for name, value in getattr(ours, kind)():
                assert torch.equal(theirs[name], value), name
                assert theirs[name].stride() == value.stride(), name
                assert theirs[name].requires_grad == value.requires_grad, name


# --- files that are none ---------------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
@pytest.mark.parametrize(
    "name", ["config.json", "run.json", "region.png", "ae-l2.safetensors", "log.csv", "model.onnx"]
)
def test_what_is_no_plain_file_is_named_and_not_read(name, kind, run):
    path = run / name
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    read = {"log.csv": read_log, "model.onnx": load_exported}.get(name, lambda path: load_run(path.parent))
    assert refused(lambda: read(path), path) is None


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["score.json", "scores.csv"])
def test_a_table_that_is_a_pipe_is_named(name, kept, run, capsys):
    image = next((kept.parent / "data" / "test" / "good").iterdir())
    assert main(["score", str(run), str(image), "--out", "out"]) == 0
    Path("out", name).unlink()
    os.mkfifo(Path("out", name))
    assert f"out/{name} cannot be read: it is a folder, a pipe or a device" in fails(
        capsys, "score", run, image, "--out", "out"
    )


def test_files_are_read_up_to_what_they_can_hold(run):
    """Files with a hole are small where they come from, and large in memory."""
    for name, size, limit in (("run.json", JSON_BYTES + 1, "17"), ("ae-l2.safetensors", 10**9, "1")):
        content = (run / name).read_bytes()
        os.truncate(run / name, size)
        with pytest.raises(CheckpointError, match=rf"{name} cannot be read: it has [\d,]+ MB, .* more than {limit};"):
            load_run(run)
        (run / name).write_bytes(content)
    assert load_run(run).facts["n_train"] == 5


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("tiles", value) for value in (None, 3, {}, {"tile": 64}, {"tile": 0, "overlap": 0})),
        *(("tiles", {"tile": 64} | more) for more in ({"overlap": 64}, {"overlap": 0, "x": 1}, {"overlap": "0"})),
        *(("threshold", value) for value in (None, True, 10**400, float("nan"), float("-inf"), "0.5")),
        *(("held_out_scores", value) for value in (None, 3, ["a"], [float("nan")], {"a": 1})),
        *(("synthetic", value) for value in (None, {}, {"n": 1, "found": "x", "image_auroc": 1, "pixel_auroc": None})),
        ("seconds", {"fit": "long"}), ("n_train", 1.5), ("n_copies", "many"), ("n_normal", None),
    ],
)  # fmt: skip
def test_facts_that_make_no_sense_are_refused(name, value, run):
    save_json(run / "run.json", load_json(run / "run.json") | {name: value})
    assert refused(lambda: load_run(run), run / "run.json") is None


def test_json_of_any_depth_is_refused_by_name_where_its_sum_is_another(tmp_path):
    path = tmp_path / "a.json"
    for depth in (10, *range(500, 1000), 10**5):  # at some, reading is not too deep and writing is
        for begin, end in (("[", "]"), ('{"a":', "}")):
            path.write_text(f'{{"sha256": "0", "x": {begin * depth}1{end * depth}}}')
            assert refused(lambda: load_json(path), path) is None


# --- data ------------------------------------------------------------------------------------------------------------


def test_data_that_a_stranger_names_are_not_evaluated_unless_asked_for(kept, run, tmp_path, capsys):
    """The same command takes one's own, wherever they lie: they are what the run was trained on."""
    assert main(["evaluate", str(run), "--device", "cpu"]) == 0
    data = kept.parent / "data"
    private = kept.parent / "private"
    shutil.copytree(data, private, dirs_exist_ok=True)
    shutil.copy(data / "test" / "hole" / "000.png", private / "train" / "good" / "000.png")
    save_json(run / "config.json", load_json(run / "config.json") | {"data": str(private)})
    for command in (["evaluate", run], ["figure", run, "--out", "f.png"]):
        said = fails(capsys, *command)
        assert f"{run / 'config.json'} names data outside this folder, '{private}'" in said
        assert "attnad evaluate RUN DATA, or attnad figure --data DATA" in said
    assert main(["evaluate", str(run), str(private), "--device", "cpu"]) == 0
    assert main(["figure", str(run), "--data", str(private), "--columns", "2", "--out", "f.png"]) == 0
    assert main(["evaluate", str(run), "--data-root", str(private.parent), "--device", "cpu"]) == 0


def test_where_data_may_lie_unasked(tmp_path):
    root, outside = tmp_path / "root", tmp_path.parent
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to(outside)
    root.mkdir()
    (root / "linked").symlink_to(outside)
    here = ("textures", "cifar10", "photos", "./photos", str(tmp_path / "photos"), "linked", str(root / "linked"), "no")
    elsewhere = ("..", "../photos", "photos/../../x", "link", str(outside), "/", "~nobody-of-that-name/x")
    assert [name for name in here if not lies_here(name, root)] == []
    assert [name for name in elsewhere if lies_here(name, root)] == []


# --- the terminal ----------------------------------------------------------------------------------------------------


def test_what_others_wrote_does_not_move_the_cursor(run, capsys):
    save_json(run / "config.json", load_json(run / "config.json") | {"\x1b[2J": 1})
    assert "'\\x1b[2J' unknown or missing" in fails(capsys, "score", run, "x.png", "--out", "out")


def test_names_of_files_stay_what_they_are_but_for_control_characters(kept, capsys):
    """Systems name screenshots with narrow blanks."""
    assert "Bild\u202f1\\x1b[31m.png: there is no such file" in fails(
        capsys, "score", kept, "Bild\u202f1\x1b[31m.png", "--out", "out"
    )
