"""Score images as they arrive in a folder; a kill at any moment loses nothing, and the same command goes on.

OUT/follow.json    the run, the threshold and the folder that the table is of, written first
OUT/scores.csv     a line an image, in the order of arrival; an image that stands there is not scored again
OUT/maps/          as `attnad.show.report` writes them
OUT/report.html    the worst images, written at the end
"""

from __future__ import annotations

import csv
import errno
import io
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from PIL import Image
from torch import Tensor

from attnad.checkpoint import load_json, save_json, write_atomically
from attnad.config import differences
from attnad.data import load_images
from attnad.data.folders import entries
from attnad.errors import CheckpointError, DataError, SettingError
from attnad.run import Run
from attnad.show.report import HEAD, Axis, card, cell, row, shrunk, table, write_map, write_page

LOOK = 0.5  # seconds between looks into the folder
SETTLED = 1.0  # seconds that a file must stay unchanged before it is read
PATIENCE = 30.0  # seconds until a person is told of a file that cannot be read
SHOWN = 200  # images in the report
UNFINISHED = (".part", ".partial", ".filepart", ".crdownload", ".tmp")  # names until the last byte is written


@dataclass
class _Waiting:
    """A file that has not been scored yet; times are of the monotonic clock."""

    first: float  # seen first
    stamp: tuple[int, int] | None = None  # size and time of the last change
    since: float = 0.0  # unchanged since
    again: float = 0.0  # to be read then, if still unchanged
    problem: str = ""
    told: bool = False


def follow(
    run: Run, folder: Path, out: Path, *, threshold: float, name: str, notes: Mapping[str, str], numbers: str | None
) -> None:
    """Score every image that is in a folder or arrives there, at any depth, until Ctrl-C; then write the report.

    A file is read once it has stayed unchanged, and tried again later where it cannot be read; after a while that is
    said. `name` stands for the run, notes are facts for the report, numbers is as for `attnad.show.report.write_map`.
    Raises DataError without the folder, SettingError where `out` lies in it, is in use, or holds a table of another
    command, CheckpointError where that table is damaged.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder; make it, images may arrive later")
    folder = folder.resolve()  # the names in the table are the same from wherever the command is given
    if out.resolve().is_relative_to(folder):
        raise SettingError(f"{out} lies in {folder}, and its heat maps would be scored; choose another --out")
    if run.score(torch.zeros(1, 3, run.config.size, run.config.size, dtype=torch.uint8)).maps is None:
        raise SettingError(f"{name} judges whole images and draws no maps for a report; train it on patches")
    out.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(out / ".lock").acquire(timeout=0)
    except Timeout as error:
        raise SettingError(f"{out} is in use by another attnad score; wait for it or choose another --out") from error
    with lock:
        _claim(out, {"run": name, "date": run.facts.get("date"), "threshold": threshold, "folder": str(folder)})
        done = {line[0] for line in _lines(out / "scores.csv")}
        following = _Following(run, folder, out, threshold, numbers, done)
        print(f"Following {folder}; {len(done)} images are scored already. Ctrl-C ends it with the report", flush=True)
        try:
            while True:
                following.look()
                time.sleep(LOOK)
        except KeyboardInterrupt:
            print(f"Writing the report of {out}", flush=True)
        done = {line[0] for line in _lines(out / "scores.csv")}
        for path, wait in following.waiting.items():
            if path != folder and cell(path) not in done:
                print(f"{path}: not scored, {wait.problem}", file=sys.stderr)
        _report(run, folder, out, threshold, notes)


@dataclass
class _Following:
    """What is followed, and what is known of it so far."""

    run: Run
    folder: Path
    out: Path
    threshold: float
    numbers: str | None
    done: set[str]  # names in the table
    waiting: dict[Path, _Waiting] = field(default_factory=dict)
    told: bool = False  # that images are shrunk

    def look(self) -> None:
        """Score what has settled, and remember the rest."""
        try:
            there = [path for path in _files(self.folder) if cell(path) not in self.done]
            self.waiting.pop(self.folder, None)
        except DataError as error:  # a share that is away for a moment, a file renamed while we look
            wait = self.waiting.setdefault(self.folder, _Waiting(time.monotonic()))
            _tell(self.folder, wait, _reason(error, self.folder))
            return
        for path in self.waiting.keys() - set(there):
            print(f"{path} went away before it was scored", file=sys.stderr)
            del self.waiting[path]
        for path in there:
            stamp, now = _stamp(path), time.monotonic()
            wait = self.waiting.setdefault(path, _Waiting(now))
            if stamp is None or stamp != wait.stamp:
                wait.stamp, wait.since, wait.again = stamp, now, now + SETTLED
                _tell(path, wait, "is still being written")
            if now < wait.again:
                continue
            try:
                judged = self.run.judge(path)
            except DataError as error:
                wait.again = now + max(SETTLED, now - wait.since)
                _tell(path, wait, _reason(error, path))
                continue
            if _stamp(path) == stamp:  # not written to while it was read
                self._keep(path, *judged)

    def _keep(self, path: Path, score: float, anomaly_map: Tensor, image: Tensor, size: tuple[int, int]) -> None:
        file = write_map(self.out, len(self.done) + 1, path, anomaly_map, size, self.numbers)
        line = row(path, score, self.threshold, anomaly_map, file)
        _append(self.out / "scores.csv", table([line]).encode())
        self.done.add(line[0])
        del self.waiting[path]
        print(f"{'flagged' if score > self.threshold else 'passed':<8}{score:>10.4g}  {path}", flush=True)
        if not self.told and (word := shrunk([self.run.seen(size)], self.run.config.size)):
            print(word, flush=True)
            self.told = True


def _tell(path: Path, wait: _Waiting, problem: str) -> None:
    """Note why a path has to wait; a person is told, once, when that takes long."""
    wait.problem = problem
    if not wait.told and time.monotonic() - wait.first >= PATIENCE:
        print(f"{path}: {problem}; waiting for it to change", file=sys.stderr, flush=True)
        wait.told = True


def _files(folder: Path) -> list[Path]:
    folders, files = entries(folder)
    if links := [inner for inner in folders if inner.is_symlink()]:  # it may lead in a circle
        raise DataError(f"{links[0]}: is a link to a folder; follow the folder that it leads to instead")
    files = [path for path in files if path.suffix.lower() not in UNFINISHED]
    return sorted(files + [path for inner in folders for path in _files(inner)])


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _reason(error: DataError, path: Path) -> str:
    return str(error).removeprefix(f"{path}: ").partition("; ")[0]


def _claim(out: Path, facts: dict[str, Any]) -> None:
    """Write follow.json; where it is there already, check that it says the same."""
    path = out / "follow.json"
    if not path.exists():
        if (out / "scores.csv").exists():
            raise SettingError(f"{out} holds the scores of another command; choose another --out")
        save_json(path, facts)
        return
    there = load_json(path)
    found = differences(there, facts) if there.keys() == facts.keys() else ["it is of another version"]
    if found:
        raise SettingError(
            f"{path}: the scores there are of another command ({'; '.join(found)}); choose another --out"
        )


def _lines(path: Path) -> list[list[str]]:
    """The lines of scores.csv without its head; what a kill has left of a last one is cut off.

    Raises CheckpointError where it is damaged in another way.
    """
    if not path.exists():
        write_atomically(path, table([HEAD]))
        return []
    text = path.read_bytes().decode(errors="replace")
    try:
        head, *lines = csv.reader(io.StringIO(text.rstrip("\0"), newline=""))  # zeros: what some disks leave
        torn = not text.endswith("\r\n") or (lines and len(lines[-1]) != len(HEAD))
        lines = lines[:-1] if torn else lines
        if tuple(head) != HEAD or any(len(line) != len(HEAD) for line in lines):
            raise ValueError(f"its columns are not {', '.join(HEAD)}")
        for line in lines:
            float(line[1])
    except (ValueError, csv.Error) as error:
        raise CheckpointError(f"{path} is damaged ({error}); restore it, or choose another --out") from error
    if torn:
        write_atomically(path, table([HEAD, *lines]))
    return lines


def _append(path: Path, line: bytes) -> None:
    """Add a line in one write, on the disk when this returns; where that fails, the file is as it was."""
    with open(path, "ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        try:
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(file.fileno())
        except BaseException:  # Ctrl-C too
            file.truncate(before)
            raise


def _report(run: Run, folder: Path, out: Path, threshold: float, notes: Mapping[str, str]) -> None:
    """Write the report from the table, the images and their heat maps as they lie on the disk."""
    lines = sorted(_lines(out / "scores.csv"), key=lambda line: -float(line[1]))
    if not lines:
        print("No image came, so there is no report")
        return
    scores = [float(line[1]) for line in lines]
    axis = Axis.of(scores, threshold)
    cards = [_card(run, out, line, axis) for line in _named(lines[:SHOWN], folder)]
    left = [found for found in cards if found is not None]
    shown = f"the worst {len(left)} of {len(lines)}; scores.csv has all"
    if gone := len(cards) - len(left):
        shown += f". {gone} whose files are no longer there are left out"
    title = f"Anomalies among {len(lines)} images"
    report = write_page(out, left, scores, axis, title, {**notes, "Shown": shown})
    print(f"{sum(score > threshold for score in scores)} of {len(lines)} images look anomalous: {report}")


def _named(lines: Sequence[Sequence[str]], folder: Path) -> list[tuple[Path, Sequence[str]]]:
    """Lines with the paths of their images; a name in the table may be spelled otherwise than on the disk."""
    try:
        paths = {cell(path): path for path in _files(folder)}
    except DataError:
        paths = {}
    return [(paths.get(line[0], Path(line[0])), line) for line in lines]


def _card(run: Run, out: Path, named: tuple[Path, Sequence[str]], axis: Axis) -> str | None:
    """The card of a line of the table; None where its image or heat map can no longer be read."""
    path, (_, score, _, _, _, peak, file) = named
    try:
        batch = load_images([path], size=run.config.size)
        with Image.open(out / file) as heat_map:
            values = torch.from_numpy(np.asarray(heat_map, dtype=np.float32) / 255)
    except (DataError, OSError):
        return None
    return card(path, batch.images[0], values, batch.sizes[0], float(score), float(peak), axis)
