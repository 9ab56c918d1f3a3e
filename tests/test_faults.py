"""Nothing lost, nothing let in: kills, full disks, vanished data, damaged files, planted archives and pickles.

ATTNAD_FAULTS is how many kills there are, with 25 damaged files for each: 12 unless set, and 200 for the whole of it.
"""

from __future__ import annotations

import ast
import csv
import hashlib
import io
import json
import multiprocessing
import os
import pickle
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import traceback
import urllib.error
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_run import write_images
from torchvision.datasets import CIFAR10, utils
from tqdm import tqdm

from attnad import checkpoint, cli, commands, data
from attnad.checkpoint import load_json, load_tensors, save_json, save_tensors
from attnad.cli import main
from attnad.config import RunConfig, from_dict, recipe, to_dict
from attnad.data import load_images, load_test, load_train, textures
from attnad.data.cifar10 import BATCHES as BATCHES_FOLDER
from attnad.errors import CheckpointError, DataError, TrainingError
from attnad.run import load_run, train_run
from attnad.state import read_log
from attnad.study import engines, tables
from attnad.study.results import read_results
from attnad.train import train_attention

ROOT = Path(__file__).parents[1]
KILLS = int(os.environ.get("ATTNAD_FAULTS", 12))
FILES = 25 * KILLS
KNOWN = (DataError, CheckpointError, TrainingError)  # what `attnad.cli.main` prints as one line
REMEDY = re.compile(
    r"\b([Rr]e(store|place|move)|[Ss]ave|[Mm]ake|[Cc]h(ange|oose)|[Gg]ive|[Tt]rain|[Dd]elete|[Pp]ut|use)\b"
)

processes = multiprocessing.get_context("forkserver")  # whose server has imported all this once

TINY = [
    "--size", "32", "--attention.width", "4", "--attention.latent", "4", "--attention.batch", "8", "--adgan.batch", "8",
    "--attention.epochs", "4", "--adgan.epochs", "3", "--device", "cpu",
]  # fmt: skip
WEIGHTS = ("attention.safetensors", "adgan.safetensors")


# --- commands in processes of their own, some of them disturbed ------------------------------------------------------


@contextmanager
def slow_open(path: Path, mode: str) -> Iterator[SimpleNamespace]:
    """A file that is written in two halves with a pause between: so that a moment falls inside the writing."""
    with open(path, mode) as file:

        def write(content: bytes) -> None:
            file.write(content[: len(content) // 2])
            file.flush()
            time.sleep(0.08)
            file.write(content[len(content) // 2 :])

        yield SimpleNamespace(write=write, flush=file.flush, fileno=file.fileno)


def small_study() -> None:
    """The study on textures with two rows that share stage 1, on a few crops; no commit, which others may make now."""
    for name, n in {"N_TRAIN": 24, "N_GOOD": 8, "N_DEFECT": 2, "N_OTHER": 4}.items():
        setattr(textures, name, n)
    study = [v for v in tables.TABLES["textures"] if all(key.startswith("adgan.") for key in v.overrides)]
    tables.TABLES["textures"] = study[:2]
    tables.TABLES["table4"] = tables.TABLES["table4"][:1]
    engines.current_commit = lambda: "none"


def carry_out(
    arguments: list[str], log: Path, begun: Any, slow: bool, after: tuple[int, Callable] | None, limits: dict[str, int]
) -> None:
    """Carry out a command and end with its status. After so many files were written, something happens to it."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    small_study()
    tqdm.set_lock(threading.RLock())  # its own, between processes, would outlive a kill
    commands.train_run = engines.train_run = partial(train_run, save_seconds=0)  # a state after each epoch
    if slow:
        checkpoint.open = slow_open
    if after:
        replace_file, written = os.replace, []

        def count(source: Path, target: Path) -> None:
            replace_file(source, target)
            written.append(target)
            if len(written) == after[0]:
                after[1]()

        checkpoint.os.replace = count
    if "file" in limits:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limits["file"], limits["file"]))
    if "user" in limits:
        os.setresgid(*[limits["user"]] * 3)
        os.setresuid(*[limits["user"]] * 3)
    begun.send(True)
    status = cli.main(arguments)
    sys.stdout.flush()
    os._exit(status)


def command(
    *arguments: Any,
    log: Path,
    kill: tuple[float, int, Path | None] | None = None,
    slow: bool = False,
    after: tuple[int, Callable] | None = None,
    **limits: int,
) -> int:
    """Run a command in a process and return how it ended.

    It is killed so many seconds after it began, with a signal, and where a folder is given as soon as a file is being
    written there.
    """
    begun, begin = processes.Pipe(duplex=False)
    values = ([str(argument) for argument in arguments], log, begin, slow, after, limits)
    process = processes.Process(target=carry_out, args=values)
    process.start()
    try:
        assert begun.poll(120)
        begun_at = time.time()
        if kill:
            process.join(kill[0])
            while kill[2] and process.is_alive() and not half_written(kill[2], begun_at):
                time.sleep(0.005)
            if process.is_alive():  # else its number may be another's by now
                os.kill(process.pid, kill[1])
        process.join(300)
        assert not process.is_alive(), f"{arguments} hangs"
    finally:
        process.kill()
        process.join()
    return process.exitcode


def half_written(folder: Path, since: float) -> bool:
    """Whether a file is being written, or was when a kill came: not one that an earlier kill has left."""
    with suppress(FileNotFoundError):  # it has its name by now
        return any(path.stat().st_mtime > since for path in folder.rglob(".*.writing"))
    return False


def last_line(log: Path) -> str:
    text = log.read_text(errors="backslashreplace")
    assert "Traceback" not in text, text
    return text.strip().splitlines()[-1]


def write_bricks(folder: Path) -> Path:
    """Twenty bricks to learn from, five good ones and five with a hole to judge."""
    good, painted, _ = textures.held_out_crops("brick", 32)
    masks = np.zeros((5, 32, 32), np.uint8)
    masks[:, 8:20, 10:22] = 255
    write_images(folder / "train" / "good", textures.train_crops("brick", 32)[:20])
    write_images(folder / "test" / "good", good[:5])
    write_images(folder / "test" / "hole", np.where(masks[..., None] > 0, np.uint8(0), painted[:5]))
    write_images(folder / "ground_truth" / "hole", masks)
    for path in (folder / "ground_truth" / "hole").iterdir():
        path.rename(path.with_name(f"{path.stem}_mask.png"))
    return folder


@pytest.fixture(scope="module")
def bricks(tmp_path_factory) -> Path:
    return write_bricks(tmp_path_factory.mktemp("data") / "bottle")  # called so that table 4 takes it


@pytest.fixture(scope="module")
def undisturbed(bricks, tmp_path_factory) -> SimpleNamespace:
    """A run, its figures and a study as they are when nothing happens to them; not to be changed."""
    top = tmp_path_factory.mktemp("undisturbed")
    in_a_process(len, "")  # starts the server, which takes its time
    seconds = {}
    for name, arguments in {
        "train": ("train", bricks, *TINY, "--out", top / "run"),
        "evaluate": ("evaluate", top / "run", "--json", top / "metrics.json", "--device", "cpu"),
        "reproduce": study_command(top),
    }.items():
        started = time.monotonic()
        assert command(*arguments, log=top / "log", slow=True) == 0, (top / "log").read_text()
        seconds[name] = time.monotonic() - started
    return SimpleNamespace(folder=top, run=top / "run", seconds=seconds)


def study_command(folder: Path) -> list[Any]:
    values = {"seeds": 0, "size": 32, "epochs": 3, "adgan-epochs": 2, "device": "cpu"}
    values |= {"runs": folder / "runs", "results": folder / "results"}
    return ["reproduce", "textures", *(part for key, value in values.items() for part in (f"--{key}", value))]


def weights(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in WEIGHTS]


def losses(folder: Path) -> list[list[str]]:
    with open(folder / "log.csv", newline="") as file:
        return [row[:4] for row in csv.reader(file)]  # without the seconds


def timeless(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in ("date", "seconds")}


def same_run(one: Path, other: Path) -> None:
    """Bit for bit the same but for times."""
    assert weights(one) == weights(other)
    assert losses(one) == losses(other)
    assert timeless(load_json(one / "run.json")) == timeless(load_json(other / "run.json"))
    assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()}


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
    folder, listed = Path(shutil.copytree(bricks, tmp_path / "bottle")), data.files_of

    def gone(path: Path) -> list[Path]:
        paths = listed(path)
        shutil.rmtree(folder)
        return paths

    monkeypatch.setattr(data, "files_of", gone)
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
    config = from_dict(RunConfig, load_json(undisturbed.run / "config.json"))
    other = Path(shutil.copytree(config.data, tmp_path / "bottle"))
    Image.new("RGB", (32, 32)).save(other / "train" / "good" / "000.png")
    shutil.copytree(undisturbed.run, tmp_path / "first")
    save_json(tmp_path / "first" / "config.json", to_dict(replace(config, data=str(other))))
    changed = replace(config, data=str(other), image_score="attention")
    with pytest.raises(TrainingError, match="first was trained on other images than these; restore the data or move"):
        train_run(changed, tmp_path / "second", stage1=tmp_path / "first", progress=False)


# --- damaged files ---------------------------------------------------------------------------------------------------

SHARE = st.floats(0, 1) | st.floats(0, 0.02)  # more often in the head
EDIT = st.one_of(
    st.tuples(st.just("cut"), SHARE, st.just(0)),
    st.tuples(st.just("flip"), SHARE, st.integers(0, 7)),
    st.tuples(
        st.just("put"), SHARE, st.binary(min_size=1, max_size=8) | st.sampled_from([b"\xff" * 4, b"\0\0\x75\x30"])
    ),
    st.tuples(st.just("drop"), SHARE, st.integers(1, 64)),
    st.tuples(st.just("double"), SHARE, st.integers(1, 64)),
)
EDITS = st.lists(EDIT, min_size=1, max_size=3)


def mutated(content: bytes, edits: list[tuple[str, float, Any]]) -> bytes:
    changed = bytearray(content)
    for kind, share, value in edits:
        at = int(share * max(0, len(changed) - 1))
        if kind == "cut":
            del changed[at:]
        elif kind == "flip" and changed:
            changed[at] ^= 1 << value
        elif kind == "put":
            changed[at : at + len(value)] = value
        elif kind == "drop":
            del changed[at : at + value]
        elif kind == "double":
            changed[at:at] = changed[at : at + value]
    return bytes(changed)


def refused(action: Callable[[], Any], *names: Path) -> Any:
    """What an action gives, or None where it refuses: in one line that names a file and says what to do."""
    try:
        return action()
    except KNOWN as error:
        said = str(error)
    assert any(str(name) in said for name in names), said
    assert REMEDY.search(said), said
    assert len(said.splitlines()) == 1, said
    return None


def generated(n: int) -> Callable:
    health = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    return settings(max_examples=n, deadline=None, derandomize=True, database=None, suppress_health_check=health)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def samples() -> dict[str, bytes]:
    """Real files of many kinds: palette, 16 bits, CMYK, alpha, turned by EXIF, animated, one pixel, a huge head."""
    image = Image.fromarray(textures.train_crops("brick", 64)[0])
    grey, palette, cmyk = image.convert("L"), image.quantize(16), image.convert("CMYK")
    wide = Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64) * 16)
    turned = Image.Exif()
    turned[0x0112] = 6
    frames = {"save_all": True, "append_images": [image.rotate(90), image.rotate(180)]}
    picture, bitmap = encoded(image, "PNG"), encoded(image, "BMP")
    head = b"IHDR" + (30_000).to_bytes(4, "big") * 2 + b"\x08\2\0\0\0"
    huge = picture[:12] + head + zlib.crc32(head).to_bytes(4, "big") + picture[33:]
    return {
        "rgb.png": picture, "grey.png": encoded(grey, "PNG"), "palette.png": encoded(palette, "PNG"),
        "clear.png": encoded(palette, "PNG", transparency=0), "alpha.png": encoded(image.convert("RGBA"), "PNG"),
        "bit.png": encoded(image.convert("1"), "PNG"), "dot.png": encoded(image.crop((0, 0, 1, 1)), "PNG"),
        "wide.png": encoded(wide, "PNG"), "wide.tif": encoded(wide, "TIFF"), "huge.png": huge,
        "huge.bmp": bitmap[:18] + (30_000).to_bytes(4, "little") * 2 + bitmap[26:],
        "rgb.jpg": encoded(image, "JPEG"), "cmyk.jpg": encoded(cmyk, "JPEG"),
        "turned.jpg": encoded(image, "JPEG", exif=turned), "progressive.jpg": encoded(image, "JPEG", progressive=True),
        "rgb.gif": encoded(image, "GIF"), "moving.gif": encoded(image, "GIF", **frames),
        "rgb.webp": encoded(image, "WEBP"), "moving.webp": encoded(image, "WEBP", **frames),
        "rgb.tif": encoded(image, "TIFF"), "lzw.tif": encoded(image, "TIFF", compression="tiff_lzw"),
        "cmyk.tif": encoded(cmyk, "TIFF"), "float.tif": encoded(image.convert("F"), "TIFF"), "rgb.bmp": bitmap,
        "rgb.ppm": encoded(image, "PPM"), "rgb.tga": encoded(image, "TGA"), "rgb.ico": encoded(image, "ICO"),
        "rgb.pcx": encoded(image, "PCX"), "rgb.jp2": encoded(image, "JPEG2000"),
    }  # fmt: skip


REFUSED = {"huge.png", "huge.bmp", "moving.gif", "moving.webp", "float.tif"}


def images(folder: Path, n: int) -> set[bytes]:
    files, seen = samples(), set()

    def read(name: str, content: bytes) -> Any:
        seen.add(content)
        path = folder / name
        path.write_bytes(content)
        batch = refused(lambda: load_images([path], size=32), path)
        assert batch is None or (batch.images.shape, batch.images.dtype) == ((1, 3, 32, 32), torch.uint8)
        return batch

    assert {name for name, content in files.items() if read(name, content) is None} == REFUSED
    for name in ("huge.png", "huge.bmp"):  # for their size, not for the pixels that they lack
        with pytest.raises(DataError, match="megapixels"):
            load_images([folder / name], size=32)

    @generated(n)
    @given(name=st.sampled_from(sorted(files)), edits=EDITS)
    def check(name: str, edits: list) -> None:
        read(name, mutated(files[name], edits))

    check()
    return seen


def masks(folder: Path, n: int) -> set[bytes]:
    bricks = write_bricks(folder / "bricks")
    path = bricks / "ground_truth" / "hole" / "002_mask.png"
    mask, seen = Image.open(path).convert("L"), set()
    mask.load()
    modes = {mode: encoded(mask.convert(mode), "PNG") for mode in ("1", "L", "P", "RGB", "RGBA", "LA")}
    modes |= {"I;16": encoded(Image.fromarray(np.asarray(mask).astype(np.uint16)), "PNG")}
    modes |= {"another size": encoded(mask.resize((16, 16)), "PNG"), "jpeg": encoded(mask, "JPEG")}

    def read(content: bytes) -> Any:
        seen.add(content)
        path.write_bytes(content)
        test = refused(lambda: load_test(str(bricks), size=32), path)
        assert test is None or (test.masks.shape, test.masks.dtype) == ((10, 32, 32), torch.bool)
        return test

    for mode, content in modes.items():
        test = read(content)
        if mode == "another size":
            assert test is None
        elif mode != "jpeg":  # under a PNG's name; its values are blurred, which no reader can tell
            assert np.array_equal(test.masks[7], np.asarray(mask) > 0), mode

    @generated(n)
    @given(mode=st.sampled_from(sorted(modes)), edits=EDITS)
    def check(mode: str, edits: list) -> None:
        read(mutated(modes[mode], edits))

    check()
    return seen


BATCHES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]


def batches() -> dict[str, bytes]:
    """CIFAR-10's files with three images each."""
    found = {}
    for i, name in enumerate(BATCHES):
        pixels = np.random.default_rng(i).integers(0, 256, (3, 3072), dtype=np.uint8)
        pixels[:, 64:] = 0
        found[name] = pickle.dumps({"data": pixels, "labels": [3, 3, 5]}, protocol=3)
    return found


def tar(members: list[tuple[str, Any, bytes]]) -> bytes:
    """An archive of (name, kind, content): a link leads to its content, of kind "claim" it is the size claimed."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        for name, kind, content in members:
            member = tarfile.TarInfo(name)
            member.type = tarfile.REGTYPE if kind == "claim" else kind
            if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                member.linkname = content.decode()
            member.size = int(content) if kind == "claim" else len(content) if kind == tarfile.REGTYPE else 0
            if kind == "claim":
                archive.fileobj.write(member.tobuf())
            else:
                archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def archives(folder: Path, n: int) -> set[bytes]:
    """Archives with the right checksum, so that what is in them is looked at, and with a wrong one."""
    folder = folder / "archives"
    folder.mkdir()
    files, base, seen, unpacked = batches(), folder / "root", set(), []
    CIFAR10.train_list, CIFAR10.test_list = (
        [[name, hashlib.md5(files[name]).hexdigest()] for name in names] for names in (BATCHES[:5], BATCHES[5:])
    )

    def no_network(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no network")

    utils._get_redirect_url = no_network
    inside = f"{BATCHES_FOLDER}/"
    good = [(inside + name, tarfile.REGTYPE, content) for name, content in files.items()]
    (folder / "outside").write_text("as it was")

    def read(content: bytes, known: bool = True) -> None:
        seen.add(content)
        shutil.rmtree(base, ignore_errors=True)
        base.mkdir()
        (base / CIFAR10.filename).write_bytes(content)
        CIFAR10.tgz_md5 = hashlib.md5(content if known else content + b"other").hexdigest()
        found = refused(lambda: load_train("cifar10", size=32, normal_class="cat", root=base), base)
        if found is not None:
            assert len(found.images) == 10
            unpacked.append(content)
        there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
        allowed = {"outside", f"root/{CIFAR10.filename}", *(f"root/{inside}{name}" for name in BATCHES)}
        assert there <= allowed, there - allowed
        assert not any(path.is_symlink() for path in base.rglob("*"))
        assert (folder / "outside").read_text() == "as it was"
        if (base / BATCHES_FOLDER).exists():  # all of them or none
            assert {path.name for path in (base / BATCHES_FOLDER).iterdir()} == set(BATCHES)

    read(tar(good))
    assert len(unpacked) == 1
    read(tar(good), known=False)
    assert len(unpacked) == 1
    read(tar([("huge", "claim", b"2147483648"), *good]))
    read(tar([(inside + BATCHES[0], "claim", b"250000000")]))
    assert len(unpacked) == 1

    names = st.sampled_from(
        ["../outside", f"{folder}/outside", "../../outside", f"{inside}../../outside", "root", inside + BATCHES[0],
         inside + BATCHES[5], BATCHES_FOLDER, "x", ".", "/", "//etc/passwd", inside + "../" + BATCHES[1], "é\udcff"]
    )  # fmt: skip
    kinds = st.sampled_from(
        [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE,
         tarfile.DIRTYPE, tarfile.CONTTYPE]
    )  # fmt: skip
    leads = st.sampled_from([b"../outside", str(folder / "outside").encode(), b"/dev/zero", b".", b"evil"])
    evil = st.tuples(names, kinds, leads)

    @generated(n // 2)
    @given(edits=EDITS, known=st.booleans())
    def check_bytes(edits: list, known: bool) -> None:
        read(mutated(tar(good), edits), known)

    @generated(n // 2)
    @given(members=st.lists(st.tuples(st.integers(0, 6), evil), min_size=1, max_size=4), lost=st.integers(-3, 5))
    def check_members(members: list, lost: int) -> None:
        held = [each for i, each in enumerate(good) if i != lost]
        for at, member in members:
            held.insert(at, member)
        read(tar(held))

    check_bytes()
    check_members()
    assert len(unpacked) > n // 20, "nearly nothing was unpacked: the test is too coarse"
    return seen


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.sampled_from([2**31, 2**64, -(2**70), 10**400, 0, 1, 48]), st.floats(),
    st.sampled_from([1e300, 5e-324]), st.text(max_size=4), st.lists(st.integers(), max_size=3), st.just({}),
)  # fmt: skip


def configs(folder: Path, n: int) -> set[bytes]:
    """config.json and run.json: bytes changed, values changed under a right checksum, and other versions' tables."""
    run, seen = folder / "run", set()
    contents = {name: (run / name).read_bytes() for name in ("config.json", "run.json")}
    was = load_run(run, device="cpu")

    def read(name: str) -> Any:
        seen.add((run / name).read_bytes())
        try:
            return refused(lambda: load_run(run, device="cpu"), *(run / each for each in (*contents, *WEIGHTS)))
        finally:
            (run / name).write_bytes(contents[name])

    @generated(n // 2)
    @given(name=st.sampled_from(sorted(contents)), edits=EDITS)
    def check_bytes(name: str, edits: list) -> None:
        (run / name).write_bytes(mutated(contents[name], edits))
        if (found := read(name)) is not None:
            assert found.config == was.config
            assert {key: value for key, value in found.facts.items() if key in was.facts} == was.facts

    for name, old, new in (("config.json", b'"seed": 0', b'"seed": 1'), ("run.json", b'"n_train": 1', b'"n_train": 9')):
        (run / name).write_bytes(contents[name].replace(old, new))
        assert (run / name).read_bytes() != contents[name]
        assert read(name) is None, "another number, and nothing else"
    for key, value in (("width", 10**6), ("learning_rate", -1.0), ("epochs", 10**9), ("adv_weight", 10**400)):
        values = load_json(run / "config.json")
        values["attention"][key] = value
        save_json(run / "config.json", values)
        assert read("config.json") is None, f"{key} {value}"

    tables = [(), ("augment",), ("attention",), ("adgan",)]

    @generated(n // 2)
    @given(data=st.data(), value=ODD, how=st.sampled_from(["set", "set", "set", "drop", "add"]))
    def check_values(data: Any, value: Any, how: str) -> None:
        values = load_json(run / "config.json")
        table = values
        for key in data.draw(st.sampled_from(tables)):
            table = table[key]
        key = data.draw(st.sampled_from(sorted(table)))
        if how == "set":
            table[key] = value
        elif how == "drop":
            del table[key]
        else:
            table[f"{key}_2"] = value
        save_json(run / "config.json", values)
        if (found := read("config.json")) is not None:  # as it says, to the letter
            assert how == "set"
            assert json.dumps(to_dict(found.config), sort_keys=True) == json.dumps(values, sort_keys=True)

    check_bytes()
    check_values()
    return seen


def checkpoints(folder: Path, n: int) -> set[bytes]:
    """Weights and training state: bytes changed, and tensors changed under a right checksum."""
    run, going, seen = folder / "run", folder / "going", set()
    config = from_dict(RunConfig, load_json(run / "config.json"))
    longer = replace(config, attention=replace(config.attention, epochs=9))
    going.mkdir()
    state = going / "attention.state.safetensors"
    with suppress(KeyboardInterrupt):
        original, checkpoint.os.replace = os.replace, None

        def stop(source: Path, target: Path) -> None:
            original(source, target)
            if Path(target) == state:
                raise KeyboardInterrupt

        checkpoint.os.replace = stop
        train_run(longer, going, device="cpu", save_seconds=0, progress=False)
    checkpoint.os.replace = original
    paths = [run / name for name in WEIGHTS] + [state]
    contents = {path: path.read_bytes() for path in paths}
    tensors = {path: load_tensors(path) for path in paths}

    def use(path: Path) -> Any:
        seen.add(path.read_bytes())
        try:
            if path == state:
                return refused(lambda: train_run(longer, going, device="cpu", progress=False), path)
            return refused(lambda: load_run(run, device="cpu"), path)
        finally:
            path.write_bytes(contents[path])

    @generated(n // 2)
    @given(path=st.sampled_from(paths), edits=EDITS)
    def check_bytes(path: Path, edits: list) -> None:
        path.write_bytes(mutated(contents[path], edits))
        seen.add(path.read_bytes())
        found = refused(lambda: load_tensors(path), path)
        if found is not None:
            assert found.keys() == tensors[path].keys()
            assert all(torch.equal(value, tensors[path][name]) for name, value in found.items())
        path.write_bytes(contents[path])

    @generated(n // 2)
    @given(data=st.data(), how=st.sampled_from(["nan", "inf", "shape", "longer", "type", "drop", "rename"]))
    def check_tensors(data: Any, how: str) -> None:
        path = data.draw(st.sampled_from(paths))
        changed = dict(tensors[path])
        name = data.draw(st.sampled_from(sorted(changed)))
        value = changed.pop(name)
        floating = value.is_floating_point()
        if how in ("nan", "inf"):
            value = value.clone() if floating else value.double()
            value.view(-1)[data.draw(st.integers(0, value.numel() - 1))] = float(how)
        elif how == "shape":
            value = value[None]
        elif how == "longer":
            value = torch.cat([value.reshape(-1)] * 2)
        elif how == "type":
            value = value.double() if "optimizer" not in name and name != "epoch" else value[None]
        if how != "drop":
            changed[f"{name}_" if how == "rename" else name] = value
        save_tensors(path, changed)
        assert use(path) is None, f"{path}: {name} {how}"

    check_bytes()
    check_tensors()
    for path in paths:  # another architecture's, and another file's
        path.write_bytes(contents[next(other for other in paths if other != path)])
        assert use(path) is None
    wider = replace(
        config, attention=replace(config.attention, width=8, epochs=1), adgan=replace(config.adgan, epochs=1)
    )
    train_run(wider, folder / "wider", device="cpu", progress=False)
    for name in WEIGHTS:
        shutil.copy(folder / "wider" / name, run / name)
        assert use(run / name) is None
    return seen


def report(function: Callable, arguments: tuple, answer: Any) -> None:
    """Call a function in this process and send what it gives, the growth of memory in MB, or what went wrong."""
    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        found = function(*arguments)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        answer.send((len(found) if isinstance(found, set) else found, grown, None))
    except BaseException:
        answer.send((None, None, traceback.format_exc()))


def in_a_process(function: Callable, *arguments: Any) -> tuple[Any, float]:
    """What a function gives in a process of its own (how many, of a set), and the growth of memory there in MB."""
    ours, theirs = processes.Pipe()
    process = processes.Process(target=report, args=(function, arguments, theirs))
    process.start()
    theirs.close()
    try:
        found, grown, wrong = ours.recv()
    finally:
        process.join(10)
        process.kill()
    assert wrong is None, wrong
    return found, grown


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


def large(folder: Path) -> list[Path]:
    picture = np.zeros((4100, 4100, 4), np.uint8)
    picture[:, :, 3] = 128
    paths = [folder / f"{i}.png" for i in range(4)]
    paths[0].write_bytes(encoded(Image.fromarray(picture), "PNG", compress_level=1))
    for path in paths[1:]:
        shutil.copy(paths[0], path)
    return paths


def read_large(paths: list[Path]) -> int:
    os.cpu_count = lambda: 8
    return len(load_images(paths, size=32).images)


def test_large_images_are_read_one_at_a_time(tmp_path):
    """Four of 17 megapixels with transparency: 67 MB each, and as much again for each step of the conversion."""
    found, grown = in_a_process(read_large, large(tmp_path))
    print(f"four images of 17 megapixels: memory grew by {grown:.0f} MB at most")
    assert found == 4
    assert grown < 600


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
        ("models.py", "load_state_dict_from_url"): 1,
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
            for each, n in {"N_TRAIN": 24, "N_GOOD": 8, "N_DEFECT": 2, "N_OTHER": 4}.items():
                patch.setattr(textures, each, n)
            small_study()
            assert main(arguments) == 1, name
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said.startswith("attnad: "), said
        assert Path(name).name in said
        assert not trap.path.exists()
    pickle.loads(pickle.dumps(trap))
    assert trap.path.exists(), "the trap does not work"


# --- the same again --------------------------------------------------------------------------------------------------

TWICE = """
import sys
from attnad.__main__ import main
sys.argv = ["attnad", "train", *sys.argv[1:], "--out", "run"]
assert main() == 0
sys.argv = ["attnad", "evaluate", "run", "--device", "cpu", "--json", "metrics.json"]
assert main() == 0
"""


def test_the_same_seed_gives_the_same_bytes(bricks, undisturbed, tmp_path):
    """Two processes started as a person starts them, in other folders, with other orders of sets: and the server's."""
    started = []
    for name, seed in (("one", "1"), ("two", "2")):
        (tmp_path / name).mkdir()
        environment = os.environ | {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
        arguments = [sys.executable, "-c", TWICE, str(bricks), *TINY]
        started.append(subprocess.Popen(arguments, cwd=tmp_path / name, env=environment, stderr=subprocess.DEVNULL))
    assert [process.wait(300) for process in started] == [0, 0]
    for name in ("one", "two"):
        same_run(tmp_path / name / "run", undisturbed.run)
    metrics = [(tmp_path / name / "metrics.json").read_bytes() for name in ("one", "two")]
    assert metrics[0] == metrics[1]


def scores_with(threads: int, folder: Path, bricks: Path) -> dict[str, np.ndarray]:
    torch.set_num_threads(threads)
    scores = load_run(folder, device="cpu").score(load_test(str(bricks), size=32).images)
    return {name: value.numpy() for name, value in scores.named()}


def test_scores_hardly_depend_on_the_number_of_threads(bricks, undisturbed):
    """Sums in another order: the same weights score the same to five digits."""
    one, *others = (in_a_process(scores_with, threads, undisturbed.run, bricks)[0] for threads in (1, 2, 4))
    for other in others:
        for name, values in one.items():
            np.testing.assert_allclose(other[name], values, rtol=1e-5, atol=1e-5, err_msg=name)


def test_scores_hardly_depend_on_the_precision(bricks, undisturbed, monkeypatch):
    """bfloat16, which a GPU takes, on the CPU: the same weights give the same maps and scores to two digits."""
    run, images = load_run(undisturbed.run, device="cpu"), load_test(str(bricks), size=32).images
    exact = run.score(images)
    monkeypatch.setattr("attnad.score.autocast", lambda device: torch.autocast(device.type, torch.bfloat16))
    mixed = run.score(images)
    assert not torch.equal(mixed.image["adgan"], exact.image["adgan"]), "bfloat16 was not used"
    for name, values in exact.named():
        within = 0.05 if name in ("adgan", "discriminator") else 0.02
        torch.testing.assert_close(dict(mixed.named())[name], values, rtol=0, atol=within, msg=name)


def losses_with(threads: int, config: RunConfig) -> list[float]:
    """The losses of the first epoch of stage 1."""
    torch.set_num_threads(threads)
    images = load_train(config.data, size=config.size, normal_class=config.normal_class).images[:256]
    with tempfile.TemporaryDirectory() as folder:
        train_attention(config, images, device=torch.device("cpu"), folder=Path(folder), progress=False)
        return [float(loss) for *_, loss, _ in read_log(Path(folder) / "log.csv")]


@pytest.mark.parametrize(("batch", "within"), [(256, 1e-4), (16, 0.1)], ids=["one step", "an epoch"])
def test_training_begins_alike_with_any_number_of_threads(batch, within):
    """A step from the same weights has the same losses to four digits; what differs then grows, to some per cent."""
    config = recipe("quick", "textures")
    stage = replace(config.attention, epochs=1, batch=batch)
    config = replace(config, normal_class="brick", size=32, attention=stage)
    one, *others = (in_a_process(losses_with, threads, config)[0] for threads in (1, 2, 4))
    for other in others:
        np.testing.assert_allclose(other, one, rtol=within)


# --- no leak ---------------------------------------------------------------------------------------------------------


def train_blindly(config: RunConfig, folder: Path) -> str:
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


def test_training_looks_at_no_test_image(undisturbed, tmp_path):
    config = from_dict(RunConfig, load_json(undisturbed.run / "config.json"))
    assert "was looked at" in in_a_process(train_blindly, config, tmp_path / "run")[0]
    assert weights(tmp_path / "run") == weights(undisturbed.run)


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_scores_that_are_not_finite_are_refused(undisturbed, bricks, tmp_path, capsys):
    """Weights that are finite, and whose scores are not: the file is whole, the run is of no use."""
    shutil.copytree(undisturbed.run, tmp_path / "run")
    path = tmp_path / "run" / "adgan.safetensors"
    tensors = load_tensors(path)
    changed = {name: value * 0 + 3e38 for name, value in tensors.items() if "discriminator" in name and "bias" in name}
    assert changed
    save_tensors(path, tensors | changed)
    assert main(["evaluate", str(tmp_path / "run"), "--device", "cpu"]) == 1
    assert "adgan of an image is not finite; train again at a lower" in capsys.readouterr().err


# --- the page that promises all this ---------------------------------------------------------------------------------


def test_every_promise_names_a_test_that_exists():
    text = (ROOT / "book" / "promises.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)\.py::(test_\w+)`", text))
    assert len(named) > 30
    for file, test in sorted(named):
        tree = ast.parse((ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8"))
        assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file}.py::{test}"
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith(("| ---", "| What"))]
    for row in rows:
        assert "::test_" in row, f"a promise without a test: {row}"
