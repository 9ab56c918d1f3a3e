"""Score images as they arrive in a folder; a kill at any moment loses nothing, and the same command goes on.

OUT/follow.json    the run, the threshold and the folder that the table is of, written first; and under "changed" what
                   has changed since training, by the last photographs

The rest of the folder is as `attnad.report.scoring` says. Lines come in the order of arrival, and an image that stands
there is not scored again.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attnad.data.folders import walk
from attnad.errors import DataError, shown
from attnad.report.report import cell, shrunk
from attnad.report.scoring import ScoreTable, opened, write_report_of
from attnad.run.run import FileScore, Run
from attnad.training.storage import save_json

LOOK = 0.5  # seconds between looks into the folder
SETTLED = 1.0  # seconds that a file must stay unchanged before it is read
PATIENCE = 30.0  # seconds until a person is warned of a file that cannot be read
LAST, DEFECTIVE = 20, 0.5  # photographs that are compared with training; the share that may be defective
UNFINISHED = (".part", ".partial", ".filepart", ".crdownload", ".tmp")  # names until the last byte is written


@dataclass
class _Waiting:
    """A file that has not been scored yet; times are of the monotonic clock."""

    first: float  # seen first
    stamp: tuple[int, int] | None = None  # size and time of the last change
    since: float = 0.0  # unchanged since
    again: float = 0.0  # to be read then, if still unchanged
    problem: str = ""
    warned: bool = False


def follow(
    run: Run, folder: Path, out: Path, *, threshold: float, name: str, notes: Mapping[str, str], numbers: str | None
) -> None:
    """Score every image that is in a folder or arrives there, at any depth, until Ctrl-C; then write the report.

    A file is read once it has stayed unchanged, and tried again later where it cannot be read; after a while that is
    said. `name` stands for the run, notes are facts for the report, numbers is as for `attnad.report.report.write_map`.
    Raises DataError without the folder, SettingError where `out` is in use or holds a table of another command,
    CheckpointError where that table is damaged.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder; make it, images may arrive later")
    folder = folder.resolve()  # the names in the table are the same from wherever the command is given
    facts = {"run": name, "date": run.facts.get("date"), "threshold": threshold, "folder": str(folder)}
    with opened(run, out, "follow.json", facts, threshold=threshold, numbers=numbers) as scored:
        scored.begin()
        following = _Following(run, folder, scored, lambda changed: save_json(out / "follow.json", facts | changed))
        following.note({})  # of those that come from now on
        n = len(scored.lines)
        print(f"Following {shown(folder)}; {n} images are scored already. Ctrl-C ends it with the report", flush=True)
        try:
            while True:
                following.look()
                time.sleep(LOOK)
        except KeyboardInterrupt:
            print(f"Writing the report of {out}", flush=True)
        for path, wait in following.waiting.items():
            if path != folder and cell(path) not in scored.lines:
                print(f"{shown(path)}: not scored, {wait.problem}", file=sys.stderr)
        if not scored.lines:
            print("No image came, so there is no report")
            return
        report = write_report_of(run, scored, following.files, notes, following.changed)
        flagged = sum(score > threshold for score in scored.scores())
        print(f"{flagged} of {len(scored.lines)} images look anomalous: {report}")


@dataclass
class _Following:
    """What is followed, and what is known of it so far."""

    run: Run
    folder: Path
    scored: ScoreTable
    note: Callable[[dict[str, Any]], None]  # writes what has changed
    last: deque[tuple[Sequence[float], float]] = field(default_factory=lambda: deque(maxlen=LAST))  # looks and scores
    changed: dict[str, str] = field(default_factory=dict)
    waiting: dict[Path, _Waiting] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)  # in the folder, at the last look
    warned: bool = False  # that images are shrunk

    def look(self) -> None:
        """Score what has settled, and remember the rest."""
        try:
            found, strays = walk(self.folder)
            self.waiting.pop(self.folder, None)
        except DataError as error:  # a share that is away for a moment
            wait = self.waiting.setdefault(self.folder, _Waiting(time.monotonic()))
            _tell(self.folder, wait, _reason(error, self.folder))
            return
        self.files = [path for path in found if path.suffix.lower() not in UNFINISHED]
        there = [path for path in self.files if cell(path) not in self.scored.lines]
        for path in self.waiting.keys() - {*there, *strays}:
            print(f"{shown(path)} went away before it was scored", file=sys.stderr)
            del self.waiting[path]
        for path, problem in strays.items():
            _tell(path, self.waiting.setdefault(path, _Waiting(time.monotonic())), problem)
        for path in there:
            stamp, now = _stamp(path), time.monotonic()
            wait = self.waiting.setdefault(path, _Waiting(now))
            if stamp is None or stamp != wait.stamp:
                wait.stamp, wait.since, wait.again, wait.warned = stamp, now, now + SETTLED, False
                _tell(path, wait, "is still being written")
            if now < wait.again:
                continue
            [[(_, scored)]] = self.run.score_files([path])
            if isinstance(scored, DataError):
                wait.again = now + max(SETTLED, now - wait.since)
                _tell(path, wait, _reason(scored, path), wait.since)
            elif _stamp(path) == stamp:  # not written to while it was read
                self._keep(path, scored)

    def _keep(self, path: Path, scored: FileScore) -> None:
        self.scored.add([(path, scored)])
        del self.waiting[path]
        verdict = "flagged" if scored.score > self.scored.threshold else "passed"
        print(f"{verdict:<8}{scored.score:>10.4g}  {shown(path)}", flush=True)
        if not self.warned and (word := shrunk([self.run.seen(scored.size)], self.run.config.size)):
            print(word, flush=True)
            self.warned = True
        self.last.append((scored.looks, scored.score))
        looks, scores = zip(*self.last, strict=True)
        before, self.changed = self.changed, self.run.changed(looks, scores, defective=DEFECTIVE)
        if before.keys() != self.changed.keys():
            said = "; ".join(self.changed.values()) or "as what was learned from"
            print(f"The last {len(looks)}: {said}", flush=True)
            self.note({"changed": self.changed} if self.changed else {})


def _tell(path: Path, wait: _Waiting, problem: str, since: float | None = None) -> None:
    """Note why a path has to wait; a person is told, once, when that takes long, since then or since it was seen."""
    wait.problem = problem
    if not wait.warned and time.monotonic() - (wait.first if since is None else since) >= PATIENCE:
        print(f"{shown(path)}: {problem}; waiting for it to change", file=sys.stderr, flush=True)
        wait.warned = True


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _reason(error: DataError, path: Path) -> str:
    return str(error).removeprefix(f"{shown(path)}: ").partition("; ")[0]
