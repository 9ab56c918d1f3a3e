"""A file is written whole or not at all, whoever else writes it, and nothing is left behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import processes

from attnad.errors import CheckpointError
from attnad.training import storage
from attnad.training.storage import load_json, load_tensors, save_json, save_tensors, write_atomically


@contextmanager
def disk_of(size: int):
    """No file can grow beyond `size` bytes here, as on a full disk."""
    resource = pytest.importorskip("resource", reason="this system has no limits of file size")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_fails_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "a.safetensors"
    old, new = {"a": torch.arange(100)}, {"a": torch.arange(100_000)}
    save_tensors(path, old)
    before = path.read_bytes()
    with disk_of(10_000), pytest.raises(OSError, match=r"too large|No space"):
        save_tensors(path, new)
    assert path.read_bytes() == before
    assert torch.equal(load_tensors(path)["a"], old["a"])
    save_tensors(path, new)  # what the failed write left behind is no obstacle
    assert torch.equal(load_tensors(path)["a"], new["a"])
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_no_half_of_a_new_file(tmp_path):
    path = tmp_path / "a.json"
    with disk_of(100), pytest.raises(OSError, match=r"too large|No space"):
        save_json(path, {"a": "long" * 1000})
    assert not path.exists()
    with pytest.raises(CheckpointError, match="missing"):
        load_json(path)


def test_text_and_bytes_are_written_as_they_are(tmp_path):
    write_atomically(tmp_path / "a", b"\r\n\x00\xff")
    assert (tmp_path / "a").read_bytes() == b"\r\n\x00\xff"
    write_atomically(tmp_path / "a", "é\n")
    assert (tmp_path / "a").read_bytes() == b"\xc3\xa9\n"


@pytest.mark.parametrize("how", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_a_write_that_stops_names_its_file_and_leaves_nothing_behind(how, tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    save_json(path, {"a": 1})

    def stop(descriptor: int) -> None:
        raise how

    monkeypatch.setattr("attnad.training.storage.os.fsync", stop)
    with pytest.raises(type(how)) as raised:
        save_json(path, {"a": 2})
    assert list(tmp_path.iterdir()) == [path]
    assert load_json(path) == {"a": 1}
    if isinstance(how, OSError):
        assert raised.value.filename == str(path)
        assert raised.value.errno == 28


def test_two_writers_of_one_file_do_not_meet(tmp_path, monkeypatch):
    """The second begins and ends while the first has written and not yet renamed; it sweeps, too, as a process does."""
    path, flush, inner = tmp_path / "a.json", os.fsync, []

    def also(descriptor: int) -> None:
        flush(descriptor)
        if not inner:
            inner.append(True)
            monkeypatch.setattr(storage, "_swept", set(), raising=False)
            save_json(path, {"by": "the second"})
            assert load_json(path) == {"by": "the second"}

    monkeypatch.setattr("attnad.training.storage.os.fsync", also)
    save_json(path, {"by": "the first"})
    assert load_json(path) == {"by": "the first"}
    assert list(tmp_path.iterdir()) == [path]


def test_many_processes_write_one_file_and_it_is_always_whole(tmp_path):
    path = tmp_path / "a.json"
    save_json(path, {"by": -1})
    writers = [processes.Process(target=write_often, args=(path, i)) for i in range(3)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert load_json(path)["by"] in range(-1, 3)
    assert [writer.exitcode for writer in writers] == [0] * 3
    assert list(tmp_path.iterdir()) == [path]


def write_often(path: Path, number: int) -> None:
    for i in range(100):
        storage._swept.clear()
        save_json(path, {"by": number, "filling": "x" * i})


def test_what_a_killed_process_has_left_goes_with_the_next_ones_first_write(tmp_path):
    (tmp_path / ".mine.writing").write_text("a person's file")
    for _ in range(2):
        assert ended(write_and_die, tmp_path / "a.json") == -signal.SIGKILL
        assert len(list(tmp_path.glob(".*.writing"))) == 2, "the second removes what the first has left"
    assert ended(save_json, tmp_path / "b.json", {}) == 0
    assert {path.name for path in tmp_path.iterdir()} == {".mine.writing", "b.json"}


def ended(target: Callable, *arguments: Any) -> int | None:
    """Call a function in a process and say how that ended."""
    process = processes.Process(target=target, args=arguments)
    process.start()
    process.join(60)
    return process.exitcode


def write_and_die(path: Path) -> None:
    storage.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    save_json(path, {"a": 1})


def test_a_link_in_the_way_is_not_followed(tmp_path, monkeypatch):
    """Whoever can foresee the name could else have another file written over."""
    target = tmp_path / "precious"
    target.write_text("kept")
    monkeypatch.setattr("secrets.token_hex", lambda n: "0" * 2 * n)
    for name in (".0000000000000000.writing", ".a.json.writing"):
        (tmp_path / name).symlink_to(target)
    with pytest.raises(OSError, match="File exists"):
        save_json(tmp_path / "a.json", {"a": 1})
    assert target.read_text() == "kept"


def test_a_file_has_the_permissions_that_any_new_file_has(tmp_path):
    before = os.umask(0o027)
    try:
        save_json(tmp_path / "a.json", {})
        (tmp_path / "plain").write_text("")
    finally:
        os.umask(before)
    modes = {(tmp_path / name).stat().st_mode & 0o777 for name in ("a.json", "plain")}
    assert modes == {0o640}


def test_the_longest_name_that_a_disk_takes_is_written(tmp_path):
    path = tmp_path / ("x" * 250 + ".json")
    save_json(path, {})
    assert load_json(path) == {}
