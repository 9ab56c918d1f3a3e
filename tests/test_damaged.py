"""Nothing let in: damaged files, huge images, planted archives and pickles."""

from __future__ import annotations

import ctypes
import os
import pickle
import re
import shutil
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from damaged_data import archives, encoded, images, masks
from damaged_runs import checkpoints, configs
from faults import KILLS, ROOT, TINY, in_a_process, small_study, study_command
from made import WEIGHTS, few_crops
from PIL import Image

from attnad.cli import main
from attnad.data import load_images
from attnad.study import engines, tables

FILES = 25 * KILLS


@pytest.mark.parametrize(
    ("function", "share", "memory"),
    [(images, 0.32, 1200), (masks, 0.16, 300), (archives, 0.12, 400), (configs, 0.2, 600), (checkpoints, 0.2, 600)],
)
def test_damaged_files_are_read_rightly_or_refused_by_name(function, share, memory, undisturbed, tmp_path):
    """FILES in all. Anything but a right reading or a line with file and remedy fails; memory (MB) stays bounded."""
    shutil.copytree(undisturbed.run, tmp_path / "run")
    wanted = round(FILES * share)
    found, grown = in_a_process(function, tmp_path, wanted)
    print(f"{function.__name__}: {found} different files, memory grew by {grown:.0f} MB at most")
    assert found >= 0.5 * wanted  # with ATTNAD_FAULTS=200 over 2,000 in all
    assert grown < memory


M_ARENA_MAX = -8  # as in malloc.h


def large(folder: Path) -> list[Path]:
    picture = np.zeros((4100, 4100, 4), np.uint8)
    picture[:, :, 3] = 128
    paths = [folder / f"{i}.png" for i in range(4)]
    paths[0].write_bytes(encoded(Image.fromarray(picture), "PNG", compress_level=1))
    for path in paths[1:]:
        shutil.copy(paths[0], path)
    return paths


def read_large(paths: list[Path]) -> int:
    """Eight threads read; what one gives back is the next one's, where the C library knows how to."""
    os.cpu_count = lambda: 8
    with suppress(AttributeError, TypeError):  # no glibc, which else keeps memory for each thread
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)
    return len(load_images(paths, size=32).images)


def test_large_images_are_read_one_at_a_time(tmp_path):
    """Four of 17 megapixels with transparency: 67 MB each, and as much again for each step of the conversion.

    How much that is in all is the allocator's business: it is compared with one of them alone.
    """
    paths = large(tmp_path)
    (one, alone), (four, together) = (in_a_process(read_large, chosen) for chosen in (paths[:1], paths))
    print(f"images of 17 megapixels: memory grew by {alone:.0f} MB for one, by {together:.0f} MB for four")
    assert (one, four) == (1, 4)
    assert alone > 67
    assert together < 2 * alone


# --- no way in -------------------------------------------------------------------------------------------------------


def test_where_the_package_could_read_a_pickle():
    """CIFAR-10's batches and the known files of ImageNet weights, after their checksums, by restricted readers."""
    found = Counter()
    dangerous = r"pickle\.(?!Unpickling)\w+|(?:torch|np|yaml)\.load|load_state_dict_from_url|allow_pickle"
    dangerous += r"|(?<![.\w])(?:eval|exec|__import__)\(|marshal|shelve|joblib|dill"
    for path in (ROOT / "attnad").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for line in text.splitlines():
            for name in re.findall(dangerous, line):
                found[path.name, name] += 1
                assert "weights_only=True" in line or path.name == "cifar10.py", line
    assert found == {
        ("cifar10.py", "pickle.Unpickler"): 1,  # the base of the reader that builds arrays only
        ("models.py", "torch.load"): 1,
        ("backbones.py", "torch.load"): 1,
    }


class Trap:
    """Leaves a file behind if it is ever unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "made", [lambda trap, path: path.write_bytes(pickle.dumps(trap)), torch.save], ids=["plain", "torch"]
)
def test_no_command_runs_a_planted_pickle(made, bricks, undisturbed, tmp_path, capsys):
    trap, run = Trap(tmp_path / "it ran"), tmp_path / "run"
    train = ["train", str(bricks), *TINY, "--out", str(run)]
    evaluate, score = (
        ["evaluate", str(run)],
        ["score", str(run), str(tmp_path / "x.png"), "--out", str(tmp_path / "out")],
    )
    study = [str(part) for part in study_command(tmp_path)]
    for name, arguments in [
        *((name, evaluate) for name in ("config.json", "run.json", *WEIGHTS)),
        ("config.json", train), ("attention.state.safetensors", train), ("log.csv", train), ("../x.png", score),
        ("../results/results.csv", study),
    ]:  # fmt: skip
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(undisturbed.run, run)
        if arguments is train:
            (run / "run.json").unlink()
        if arguments is study:
            shutil.copytree(undisturbed.folder / "runs", tmp_path / "runs")
        path = run / name
        path.parent.mkdir(exist_ok=True)
        (tmp_path / "results").mkdir(exist_ok=True)
        made(trap, path)
        with pytest.MonkeyPatch.context() as patch:
            for name_, variants in tables.TABLES.items():
                patch.setitem(tables.TABLES, name_, variants)
            patch.setattr(engines, "current_commit", lambda: "none")
            few_crops(patch)  # and so restored
            small_study()
            assert main(arguments) == 2, name
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said.startswith("attnad: "), said
        assert Path(name).name in said
        assert not trap.path.exists()
    pickle.loads(pickle.dumps(trap))
    assert trap.path.exists(), "the trap does not work"
