"""Commands in processes of their own, some of them disturbed, and what an undisturbed run leaves.

ATTNAD_FAULTS is how many kills there are, with 25 damaged files for each: 12 unless set, and 200 for the whole of it.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from made import few_crops, losses, weights, write_images
from tqdm import tqdm
from waiting import PATIENCE

from attnad import cli
from attnad.data import textures
from attnad.errors import CheckpointError, DataError, TrainingError
from attnad.run import run
from attnad.run.run import train_run
from attnad.study import engines, tables
from attnad.training import storage
from attnad.training.storage import load_json

ROOT = Path(__file__).parents[1]
KILLS = int(os.environ.get("ATTNAD_FAULTS", 12))
KNOWN = (DataError, CheckpointError, TrainingError)  # what `attnad.cli.main` prints as one line
REMEDY = re.compile(
    r"\b([Rr]e(store|place|move)|[Ss]ave|[Mm]ake|[Cc]h(ange|oose)|[Gg]ive|[Tt]rain|[Dd]elete|[Pp]ut|use)\b"
)

processes = multiprocessing.get_context("forkserver")  # whose server has imported all this once

TINY = [
    "--recipe", "quick",
    "--size", "32", "--attention.width", "4", "--attention.latent", "4", "--attention.batch", "8", "--adgan.batch", "8",
    "--attention.epochs", "4", "--adgan.epochs", "3", "--device", "cpu",
]  # fmt: skip


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
    few_crops(pytest.MonkeyPatch())  # for good: this is for processes of their own
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
    run.train_run = engines.train_run = partial(train_run, save_seconds=0)  # a state after each epoch
    if slow:
        storage.open = slow_open
    if after:
        replace_file, written = os.replace, []

        def count(source: Path, target: Path) -> None:
            replace_file(source, target)
            written.append(target)
            if len(written) == after[0]:
                after[1]()

        storage.os.replace = count
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
        assert begun.poll(PATIENCE)
        begun_at = time.time()
        if kill:
            process.join(kill[0])
            while kill[2] and process.is_alive() and not half_written(kill[2], begun_at):
                time.sleep(0.005)
            if process.is_alive():  # else its number may be another's by now
                os.kill(process.pid, kill[1])
        process.join(PATIENCE)
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


@pytest.fixture(scope="session")
def bricks(tmp_path_factory) -> Path:
    return write_bricks(tmp_path_factory.mktemp("data") / "bottle")  # called so that table 4 takes it


@pytest.fixture(scope="session")
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


def timeless(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in ("date", "seconds")}


def same_run(one: Path, other: Path) -> None:
    """Bit for bit the same but for times."""
    assert weights(one) == weights(other)
    assert losses(one) == losses(other)
    assert timeless(load_json(one / "run.json")) == timeless(load_json(other / "run.json"))
    assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()}


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


REFUSED = {"rgb.ico", "huge.png", "huge.bmp", "moving.gif", "moving.webp", "float.tif"}


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
