"""Nothing lost: kills, full disks, folders that become read-only, data that vanish."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from faults import KILLS, TINY, command, half_written, same_run, study_command, timeless
from made import weights
from PIL import Image

from attnad.config import PaperConfig, from_dict, to_dict
from attnad.data import layouts, load_train
from attnad.errors import DataError, TrainingError
from attnad.run.run import load_run, train_run
from attnad.study.results import read_results
from attnad.training.storage import load_json, load_tensors, save_json


def last_line(log: Path) -> str:
    text = log.read_text(errors="backslashreplace")
    assert "Traceback" not in text, text
    return text.strip().splitlines()[-1]


def same_study(one: Path, other: Path) -> None:
    found, expected = (
        [timeless(r) for r in read_results(folder / "results" / "results.csv")] for folder in (one, other)
    )
    assert len(found) > 6
    assert found == expected
    folders = [sorted((folder / "runs").iterdir()) for folder in (one, other)]
    assert [folder.name for folder in folders[0]] == [folder.name for folder in folders[1]]
    for each in zip(*folders, strict=True):
        same_run(*each)


# --- kills -----------------------------------------------------------------------------------------------------------


def whole(folder: Path) -> None:
    """Every file that has its name is whole."""
    for path in folder.rglob("[!.]*.safetensors"):
        load_tensors(path)
    for path in folder.rglob("[!.]*.json"):
        json.loads(path.read_text())
    for path in folder.rglob("[!.]*.csv"):
        assert path.read_text().endswith("\n")


@pytest.mark.parametrize(
    ("name", "kills"), [("train", KILLS // 2), ("evaluate", KILLS // 6), ("reproduce", KILLS - KILLS // 2 - KILLS // 6)]
)
def test_killed_at_any_moment_and_gone_on_as_if_nothing_had_been(name, kills, bricks, undisturbed, tmp_path):
    """Kills at random moments, up to five on the way to one result; then it must be what it is without any."""
    rng, landed, writing, span, chain = random.Random(name), Counter(), 0, undisturbed.seconds[name], 0
    before = {path: path.read_bytes() for path in undisturbed.run.iterdir()}
    while sum(landed.values()) < kills:
        folder, log, chain = tmp_path / str(chain), tmp_path / "log", chain + 1
        folder.mkdir()
        arguments = {
            "train": ("train", bricks, *TINY, "--out", folder / "run"),
            "evaluate": ("evaluate", undisturbed.run, "--json", folder / "metrics.json", "--device", "cpu"),
            "reproduce": study_command(folder),
        }[name]
        for _ in range(5):
            how = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)[sum(landed.values()) % 3]
            started, clock = time.monotonic(), time.time()
            moment = (rng.uniform(0, 0.8 * span), how, folder if sum(landed.values()) % 2 else None)
            status = command(*arguments, log=log, kill=moment, slow=True)
            if status == 0:  # it was ready before
                span = min(span, time.monotonic() - started)
                break
            assert status == (130 if how == signal.SIGINT else -how), log.read_text()
            if how == signal.SIGINT:
                said = last_line(log)
                assert said.startswith("attnad: stopped; run the same command again to go on"), said
            landed[how.name] += 1
            writing += half_written(folder, clock)
            whole(folder)
            if sum(landed.values()) >= kills:
                break
        assert command(*arguments, log=log) == 0, log.read_text()
        if name == "train":
            same_run(folder / "run", undisturbed.run)
        elif name == "evaluate":
            assert (folder / "metrics.json").read_bytes() == (undisturbed.folder / "metrics.json").read_bytes()
        else:
            same_study(folder, undisturbed.folder)
        shutil.rmtree(folder)
    assert {path: path.read_bytes() for path in undisturbed.run.iterdir()} == before
    print(f"{name}: {dict(landed)} kills, {writing} of them inside the writing of a file, {chain} results compared")
    assert writing >= kills // 6  # Ctrl-C leaves no trace of it


# --- the disk is full, the folder read-only, the data gone -----------------------------------------------------------


@contextmanager
def disk(folder: Path, size: str) -> Iterator[None]:
    """A disk of its own, mounted on a folder."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("a disk can be mounted by root only")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk(bricks, undisturbed, tmp_path):
    """A state fits once, and a new one beside the old does not."""
    folder, log = tmp_path / "disk", tmp_path / "log"
    with disk(folder, "1200k"):
        arguments = ("train", bricks, *TINY, "--out", folder / "run")
        for _ in range(2):
            assert command(*arguments, log=log) == 1
            said = last_line(log)
            assert re.search(r"attnad: \S+/run/\S+: No space left on device; mend that and run the same command", said)
            assert not list(folder.rglob(".*.writing"))
            whole(folder)
            assert load_tensors(folder / "run" / "attention.state.safetensors")["epoch"] >= 1
        subprocess.run(["mount", "-o", "remount,size=64m", folder], check=True)
        assert command(*arguments, log=log) == 0
        same_run(folder / "run", undisturbed.run)


def test_files_that_may_not_grow(bricks, undisturbed, tmp_path):
    """The same without a disk to mount: the second stage's state is larger than the first's."""
    folder, log = tmp_path / "run", tmp_path / "log"
    arguments = ("train", bricks, *TINY, "--out", folder)
    assert command(*arguments, log=log, file=700_000) == 1
    assert re.search(r"attnad: \S+/run/\S+: File too large; mend that and run the same command again", last_line(log))
    whole(folder)
    assert (folder / "attention.state.safetensors").exists()
    assert command(*arguments, log=log) == 0
    same_run(folder, undisturbed.run)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may enter and write to."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def test_a_folder_that_becomes_read_only(bricks, undisturbed, open_folder):
    """Root may write everywhere, so the command runs as nobody."""
    folder, log = open_folder / "run", open_folder / "log"
    shutil.copytree(bricks, open_folder / "bottle")
    limits = {"user": 65534} if os.geteuid() == 0 else {}
    arguments = ("train", open_folder / "bottle", *TINY, "--out", folder)
    assert command(*arguments, log=log, after=(5, partial(os.chmod, folder, 0o555)), **limits) == 1
    assert re.search(
        r"attnad: \S+/run/\S+: Permission denied; mend that and run the same command again", last_line(log)
    )
    whole(folder)
    assert load_tensors(folder / "attention.state.safetensors")["epoch"] == 2
    folder.chmod(0o755)
    assert command(*arguments, log=log, **limits) == 0
    assert weights(folder) == weights(undisturbed.run)


def test_a_folder_that_cannot_be_made(bricks, tmp_path):
    with disk(tmp_path / "disk", "1m"):
        subprocess.run(["mount", "-o", "remount,ro", tmp_path / "disk"], check=True)
        assert command("train", bricks, *TINY, "--out", tmp_path / "disk" / "run", log=tmp_path / "log") == 1
    assert f"{tmp_path}/disk/run: Read-only file system; mend that" in last_line(tmp_path / "log")


def test_data_that_vanish_while_they_are_read(bricks, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(bricks, tmp_path / "bottle"))

    def listed_then_gone(root: Path, normal: str) -> list[Path]:
        paths = layouts.train_paths(root, normal)
        shutil.rmtree(folder)
        return paths

    monkeypatch.setattr("attnad.data.train_paths", listed_then_gone)
    with pytest.raises(DataError, match=r"000\.png: is no longer there; restore it and run the same command again"):
        load_train(str(folder), size=32)
    with pytest.raises(DataError, match="there is no such folder here"):
        load_train(str(folder), size=32)


def test_data_that_vanish_before_they_are_judged(bricks, tmp_path):
    """The data go as training ends: what was trained stays, and is judged when the data are back."""
    root, log, hidden = tmp_path / "mvtec", tmp_path / "log", tmp_path / "hidden"
    shutil.copytree(bricks, root / "bottle")
    values = {"seeds": 0, "size": 32, "epochs": 2, "device": "cpu", "data-root": root}
    values |= {"runs": tmp_path / "runs", "results": tmp_path / "results", "classes": "bottle"}
    arguments = ["reproduce", "table4", *(part for key, value in values.items() for part in (f"--{key}", value))]
    # config.json, then log and state of two epochs, the state of no epochs of stage 2, weights, and run.json.
    assert command(*arguments, log=log, after=(8, partial(os.rename, root / "bottle", hidden))) == 1
    assert not (root / "bottle").exists()
    text = log.read_text()
    assert "Traceback" not in text
    assert "1 of 1 runs failed" in text
    assert re.search(r"DataError: 'bottle': no data set has that name, and there is no such folder here or in ", text)
    (folder,) = (tmp_path / "runs").iterdir()
    load_run(folder)
    before = weights(folder), (folder / "run.json").stat().st_mtime_ns
    hidden.rename(root / "bottle")
    assert command(*arguments, log=log) == 0, log.read_text()
    assert (weights(folder), (folder / "run.json").stat().st_mtime_ns) == before
    assert len(read_results(tmp_path / "results" / "results.csv")) == 1


def test_other_data_under_the_same_name_are_not_mixed_in(undisturbed, tmp_path):
    """Stage 1 is taken over from a run on the same images only."""
    config = from_dict(PaperConfig, load_json(undisturbed.run / "config.json"))
    other = Path(shutil.copytree(config.data, tmp_path / "bottle"))
    Image.new("RGB", (32, 32)).save(other / "train" / "good" / "000.png")
    shutil.copytree(undisturbed.run, tmp_path / "first")
    save_json(tmp_path / "first" / "config.json", to_dict(replace(config, data=str(other))))
    changed = replace(config, data=str(other), image_score="attention")
    with pytest.raises(TrainingError, match="first was trained on other images than these; restore the data or move"):
        train_run(changed, tmp_path / "second", stage1=tmp_path / "first", progress=False)
