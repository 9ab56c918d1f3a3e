"""Score photographs, a line of the table at a time: what is scored is kept, whatever comes after it.

OUT/score.json     the run that the table is of (`attnad score`), or OUT/follow.json (`attnad score --follow`), which
                   says besides under "changed" what has changed of late since training
OUT/scores.csv     a line a photograph
OUT/maps/          a heat map of each, and its values where they are asked for
OUT/report.html    written last

More than 300 lines: what is written as images are scored, and what is read of it to go on, stand in one place.
"""

from __future__ import annotations

import csv
import errno
import io
import os
import re
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from PIL import Image
from tqdm import tqdm

from attnad.config import differences, first_name
from attnad.data import load_images
from attnad.data.folders import photographs_at
from attnad.data.images import all_of
from attnad.errors import CheckpointError, DataError, SettingError, SomeFailed
from attnad.report.report import HEAD, MAP_SIDE, card, cell, row, shrunk, table, write_map, write_page
from attnad.run.calibration import batch_threshold, in_words, p_values, too_few
from attnad.run.run import FileScore, Run
from attnad.training.storage import TABLE_BYTES, load_json, read_file, save_json, write_atomically

SHOWN, FLAGGED_SHOWN = 200, 1000  # photographs in the report: the worst, and flagged ones up to so many
ALL = 5  # photographs, from which on it is said when all of them are flagged
DEFECTIVE = 0.9  # of photographs that are scored together may be defective: they may have been chosen for that
OLD_HEAD = tuple(name for name in HEAD if name != "p_value")  # of tables of earlier versions
MAP = re.compile(r"maps/(\d+)-[A-Za-z0-9_-]*\.png")  # a heat map's name as `write_map` gives it


class ScoreTable:
    """scores.csv of the folder `out`, and the maps beside it; `opened` gives one that belongs to this process."""

    def __init__(self, out: Path, threshold: float, numbers: str | None, calibration: Sequence[float]):
        self.out, self.threshold, self.numbers, self.calibration = out, threshold, numbers, calibration
        self.path = out / "scores.csv"
        self.lines = {line[0]: line for line in _lines(self.path, calibration)}
        found = (MAP.fullmatch(line[-1]) for line in self.lines.values())
        self.last = max((int(each[1]) for each in found if each), default=0)

    def begin(self) -> None:
        """Write the table's head, where there is none yet."""
        if not self.path.exists():
            self._write()

    def add(self, scored: Sequence[tuple[Path, FileScore]]) -> None:
        """Add photographs that were scored, on the disk when this returns.

        Raises OSError where the disk is full. Scores are written even where their maps are not.
        """
        self.begin()
        failed: OSError | None = None
        lines = []
        rare = _p_values([found.score for _, found in scored], self.calibration)
        for (path, (score, anomaly_map, size, _)), p_value in zip(scored, rare, strict=True):
            file = ""
            if failed is None:
                try:
                    file = write_map(self.out, self.last + 1, path, anomaly_map, size, self.numbers)
                    self.last += 1
                except OSError as error:
                    failed = error
            lines.append([str(value) for value in row(path, score, p_value, self.threshold, anomaly_map, file)])
        before = self.lines
        self.lines = before | {line[0]: line for line in lines}  # first: Ctrl-C may come when they are on the disk
        try:
            _append(self.path, table(lines).encode())
        except OSError:
            self.lines = before
            raise
        if failed:
            raise failed

    def keep(self, photographs: Sequence[Path]) -> None:
        """Keep the lines of photographs that have not changed since their maps were made; drop the others, and maps."""
        kept = {}
        for path in photographs:
            line = self.lines.get(cell(path))
            if line and self._is_current(path, line[-1]):
                kept[line[0]] = line
        stems = {Path(line[-1]).stem for line in kept.values()}
        for path in (self.out / "maps").glob("*-*.*"):  # those of a batch that was stopped have no line at all
            if MAP.fullmatch(f"maps/{path.stem}.png") and path.stem not in stems:
                path.unlink()
        if kept != self.lines:
            self.lines = kept
            self._write()

    def _is_current(self, path: Path, file: str) -> bool:
        if not MAP.fullmatch(file):
            return False
        values = [(self.out / file).with_suffix(f".{self.numbers}")] if self.numbers else []
        try:
            photograph, drawn, *_ = path.stat(), (self.out / file).lstat(), *(each.lstat() for each in values)
        except OSError:
            return False
        return max(photograph.st_mtime_ns, photograph.st_ctime_ns) < drawn.st_mtime_ns

    def worst_first(self) -> None:
        """Write the table anew, the worst photograph first, by the threshold that is wanted now."""
        for line in self.lines.values():
            line[3:5] = ["yes" if float(line[1]) > self.threshold else "no", str(self.threshold)]
        self.lines = {line[0]: line for line in sorted(self.lines.values(), key=lambda line: -float(line[1]))}
        self._write()

    def _write(self) -> None:
        write_atomically(self.path, table([HEAD, *self.lines.values()]))

    def scores(self) -> list[float]:
        """The scores in the order of the lines."""
        return [float(line[1]) for line in self.lines.values()]


@contextmanager
def opened(
    run: Run, out: Path, claim: str, facts: Mapping[str, Any], *, threshold: float, numbers: str | None
) -> Iterator[ScoreTable]:
    """A run's table in the folder `out`, for this process alone; the file `claim` there says what it is of: facts.

    Raises SettingError where another process has it or it is of something else, CheckpointError where it is damaged.
    """
    out.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(out / ".lock").acquire(timeout=0)
    except Timeout as error:
        raise SettingError(f"{out} is in use by another attnad score; wait for it or choose another --out") from error
    with lock:
        if (out / "maps").is_symlink():
            raise SettingError(f"{out / 'maps'} is a link, and what lies there would be written over; remove it")
        path = out / claim
        if other := next((name for name in ("follow.json", "score.json") if (out / name).exists()), None):
            if other != claim:
                with_ = "--follow" if other == "follow.json" else "without --follow"
                raise SettingError(f"{out} belongs to attnad score {with_}; choose another --out")
            there = load_json(path)
            there.pop("changed", None)
            found = differences(there, dict(facts)) if there.keys() == facts.keys() else ["it is of another version"]
            if found:
                raise SettingError(
                    f"{path}: the scores there are of another command ({'; '.join(found)}); choose another --out"
                )
        elif (out / "scores.csv").exists():
            raise SettingError(f"{out} holds the scores of another command; choose another --out")
        else:
            save_json(path, dict(facts))
        yield ScoreTable(out, threshold, numbers, run.calibration)


def _p_values(scores: Sequence[float], calibration: Sequence[float]) -> list[str]:
    """The cells of p-values: empty where the run is of a version that kept nothing to take them from."""
    return [str(value) for value in p_values(scores, calibration).tolist()] if calibration else [""] * len(scores)


def _lines(path: Path, calibration: Sequence[float]) -> list[list[str]]:
    """The lines of scores.csv without its head; what a kill has left of a last one is cut off.

    The table of an earlier version, which has no p-values, gets them.
    Raises CheckpointError where it is damaged in another way.
    """
    if not path.exists():
        return []
    text = read_file(path, TABLE_BYTES).decode(errors="replace")
    try:
        head, *lines = csv.reader(io.StringIO(text.rstrip("\0"), newline=""))  # zeros: what some disks leave
        torn = not text.endswith("\r\n") or (lines and len(lines[-1]) != len(head))
        lines = lines[:-1] if torn else lines
        if tuple(head) not in (HEAD, OLD_HEAD) or any(len(line) != len(head) for line in lines):
            raise ValueError(f"its columns are not {', '.join(HEAD)}")
        rare = _p_values([float(line[1]) for line in lines], calibration)
    except (ValueError, csv.Error) as error:
        raise CheckpointError(f"{path} is damaged ({error}); restore it, or choose another --out") from error
    rest = head.index("anomalous")
    lines = [[*line[:2], p_value, *line[rest:]] for line, p_value in zip(lines, rare, strict=True)]
    if torn or tuple(head) == OLD_HEAD:
        write_atomically(path, table([HEAD, *lines]))
    return lines


def _append(path: Path, line: bytes) -> None:
    """Add a line in one write, on the disk when this returns; where that fails, the file is as it was."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0))
    with open(descriptor, "ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        try:
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(before)
            raise


def score_files(
    run: Run,
    paths: Sequence[Path],
    out: Path,
    *,
    threshold: float,
    notes: Mapping[str, str],
    numbers: str | None,
    expected_false: float | None = None,
) -> None:
    """Score files, and those of folders, into the folder `out`, and say what came of it; the report comes last.

    What is scored there already, by the same run, and has not changed since, is kept: so the same command goes on after
    Ctrl-C, a kill or a full disk. With `expected_false` the threshold comes at the end, from all (`batch_threshold`).
    Raises SomeFailed at the end where some cannot be scored, DataError where none can, and where a path is not there;
    SettingError and CheckpointError as `opened`.
    """
    files, strays = photographs_at(paths)
    problems = [DataError(f"{path}: {what}") for path, what in strays.items()]
    recipe, trained = first_name(run.config.recipe), run.facts.get("date")
    facts = {"recipe": recipe, "trained": trained, "images": run.facts.get("images")}
    longest, new, looks = (0, 0), not out.exists(), list[Sequence[float]]()
    with opened(run, out, "score.json", facts, threshold=threshold, numbers=numbers) as scored:
        scored.keep(files)
        todo = [path for path in files if cell(path) not in scored.lines]
        if len(todo) < len(files):
            print(f"{len(files) - len(todo)} of {len(files)} images are scored already and have not changed since")
        with tqdm(total=len(files), initial=len(files) - len(todo), desc="images", unit="image") as bar:
            try:
                for part in run.score_files(todo):
                    good = [(path, found) for path, found in part if not isinstance(found, DataError)]
                    problems += [found for _, found in part if isinstance(found, DataError)]
                    if good:
                        scored.add(good)
                    looks += [found.looks for _, found in good]
                    longest = max([longest, *(run.seen(found.size) for _, found in good)], key=max)
                    bar.update(len(part))
            except KeyboardInterrupt:
                kept = f"{len(scored.lines)} of {len(files)} images are scored, in {scored.path}"
                raise KeyboardInterrupt(f"{kept}; run the same command again to go on with the others") from None
        if not scored.lines:
            for name in ("score.json", "scores.csv", ".lock"):
                (out / name).unlink(missing_ok=True)
            if new:
                out.rmdir()
            raise all_of(problems, len(files) + len(strays))
        if expected_false is not None:
            threshold = scored.threshold = batch_threshold(scored.scores(), run.calibration, expected_false)
        scored.worst_first()
        changed = run.changed(looks, scored.scores(), defective=DEFECTIVE)
        report = write_report_of(run, scored, files, notes, changed)
    n, flagged = len(scored.lines), sum(score > threshold for score in scored.scores())
    print(f"{flagged} of {n} images look anomalous: {report}")
    if word := shrunk([longest], run.config.size):
        print(word)
    if expected_false is not None and (word := too_few(scored.scores(), run.calibration, expected_false)):
        print(word)
    if changed and (changed.keys() != {"odd"} or flagged < n):
        print(f"{flagged} of {n} are flagged, and {'; '.join(changed.values())}")
    elif flagged == n >= ALL:
        print(
            f"All {n} are flagged. Rather than {n} defects, that is another light, camera, distance, crop, size or "
            "product than in the photographs that were learned from, or too few of them: "
            f"{run.facts['n_train']}. Look at the maps; then train on photographs like these"
        )
    for problem in problems:
        print(f"not scored: {problem}", file=sys.stderr)
    if problems:
        raise SomeFailed(
            f"{len(problems)} of {n + len(problems)} images could not be scored; mend or remove them and run the same "
            "command again, the others are kept"
        )


def write_report_of(
    run: Run, scored: ScoreTable, photographs: Sequence[Path], notes: Mapping[str, str], changed: Mapping[str, str]
) -> Path:
    """Write report.html from the table, the photographs and their heat maps as they lie on the disk.

    It shows the `SHOWN` worst, and all that are flagged up to `FLAGGED_SHOWN`; the table has all. `changed` is as
    `Run.changed` gives it.
    """
    if changed:
        notes = {**notes, "Changed since training": "; ".join(changed.values())}
    lines = sorted(scored.lines.values(), key=lambda line: -float(line[1]))
    scores = [float(line[1]) for line in lines]
    flagged = sum(score > scored.threshold for score in scores)
    known = {cell(path): path for path in photographs}
    shown = lines[: max(SHOWN, min(flagged, FLAGGED_SHOWN))]
    cards = [_card(run, scored.out, known.get(line[0], Path(line[0])), line) for line in shown]
    left = [found for found in cards if found is not None]
    if len(left) < len(lines):
        word = f"the worst {len(left)} of {len(lines)}; scores.csv has all"
        if gone := len(cards) - len(left):
            word += f". {gone} whose files are no longer there are left out"
        notes = {**notes, "Shown": word}
    return write_page(scored.out, left, scores, scored.threshold, f"Anomalies among {len(lines)} images", notes)


def _card(run: Run, out: Path, path: Path, line: Sequence[str]) -> dict[str, Any] | None:
    """The card of a line of the table; None where its image or heat map can no longer be read."""
    _, score, p_value, _, _, _, peak, file = line
    if not MAP.fullmatch(file):
        return None
    try:
        batch = load_images([path], size=run.config.size)
        if not stat.S_ISREG((out / file).lstat().st_mode):
            return None
        with Image.open(out / file, formats=["PNG"]) as heat_map:
            if heat_map.mode != "P" or max(heat_map.size) > MAP_SIDE:
                return None
            values = torch.from_numpy(np.asarray(heat_map, dtype=np.float32) / 255)
    except (DataError, OSError, ValueError):
        return None
    rarity = in_words(float(p_value), len(run.calibration)) if p_value else ""
    return card(path, batch.images[0], values, batch.sizes[0], float(score), float(peak), rarity)
