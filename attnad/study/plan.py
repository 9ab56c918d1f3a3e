"""What is left to run of all tables, in which order, and whether a run can still end in time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attnad.data.cifar10 import find_cifar10
from attnad.data.folders import data_root as find_root
from attnad.errors import DataError
from attnad.run.run import folder_name
from attnad.study.results import read_results
from attnad.study.tables import CLASSES, DATA, MVTEC_CATEGORIES, Job, jobs
from attnad.training.storage import load_json, save_json

# The most telling first. The paper's claim is that ADGAN on attention finds anomalies: on ten classes (table 2, whose
# runs give table 5 as well), then where they are (table 3), and beside them what goes beyond the paper. Why it works
# comes next (tables 4 and 1), then our own studies, and last the paper's baselines. All tables' first seed comes before
# any second: a figure for each cell tells more than the spread of a few.
ORDER = (
    "table2", "table5", "table3", "beyond", "table4", "table1", "textures", "surfaces", "choices", "unlabelled",
    "defects", "rivals", "rivals-cifar10", "rivals-mvtec",
)  # fmt: skip


def root_of(data: str, root: Path | None) -> Path:
    """The folder below which a data set is looked for: MVTec AD's categories may lie in one of their own."""
    base = find_root(root)
    return base / "mvtec_ad" if data in MVTEC_CATEGORIES and (base / "mvtec_ad").is_dir() else base


def classes_there(table: str, root: Path | None) -> Sequence[str]:
    """All classes of a table; of MVTec AD, the categories whose data are there. Raises DataError where none are."""
    if found := [n for n in CLASSES[table] if n not in MVTEC_CATEGORIES or (root_of(n, root) / n / "train").is_dir()]:
        return found
    folder = root_of(MVTEC_CATEGORIES[0], root)
    raise DataError(f"{folder}: holds no category of MVTec AD, such as bottle/train; name its folder: --data-root")


def everything(
    root: Path | None, *, classes: Sequence[str] | None, seeds: Sequence[int], **arguments: Any
) -> tuple[list[Job], list[str]]:
    """Every table's jobs in the order of ORDER, seed by seed, and lines on tables whose data are not there."""
    there: dict[str, list[str]] = {}
    absent: dict[str, list[str]] = {}  # by the reason
    for table in ORDER:
        try:
            if DATA[table] == "cifar10":
                find_cifar10(root)  # downloads it where it can, once for all runs
            there[table] = [name for name in classes_there(table, root) if classes is None or name in classes]
        except DataError as error:
            absent.setdefault(str(error), []).append(table)
    planned = []
    for seed in seeds:
        for table, names in there.items():
            planned += jobs(table, classes=names, seeds=[seed], **arguments)
    return planned, [f"left out: {', '.join(names)}: {error}" for error, names in absent.items()]


def missing(planned: Sequence[Job], results: Path) -> list[Job]:
    """The jobs that lack rows in `results`/results.csv, whichever machine and commit these are of."""
    names = ("table", "class", "method", "recipe", "encoder", "size", "epochs", "overrides", "seed")
    there = {tuple(row[name] for name in names) for row in read_results(results / "results.csv")}

    def has_rows(job: Job) -> bool:
        c = job.config
        values = (c.recipe, c.encoder, c.size, c.epochs, job.overrides, c.seed)
        return all((job.table, job.name, method, *map(str, values)) in there for method in job.variant.rows)

    return [job for job in planned if not has_rows(job)]


class Seconds:
    """What runs take, by kind: the most that one took in this call, else in rows of this device and number of threads.

    A run of a kind that nothing is known of may begin at any time, and so may one that has saved something: what it
    does is kept. One that was stopped before it saved anything more needs longer than it had, whatever its kind: the
    file RUN/unsaved.json says so to the next call, which would do the same again.
    """

    def __init__(self, results: Path, runs: Path, *, device: str, threads: int):
        self.runs = runs
        self.known: dict[tuple[str, ...], float] = {}
        self.here: dict[tuple[str, ...], float] = {}
        self.begun: dict[str, tuple[float, dict[str, int]]] = {}  # when, and what was saved by then
        self.most = 0.0  # seconds that a job could have
        for row in read_results(results / "results.csv"):
            if (row["device"], row["threads"]) == (device, str(threads)):
                data = DATA.get(row["table"]) or row["class"]
                kind = (data, row["method"], row["recipe"], row["encoder"], row["size"], row["epochs"])
                self.known[kind] = max(float(row["seconds"]), self.known.get(kind, 0.0))

    def needs(self, job: Job) -> float:
        """Seconds that a job needs at once to get on, as far as is known."""
        path = self._folder(job) / "unsaved.json"
        in_vain = float(load_json(path)["seconds"]) if path.exists() else 0.0
        kind = 0.0 if self._saved(job) else self.here.get(self._kind(job), self.known.get(self._kind(job), 0.0))
        return max(in_vain, kind)

    def fits(self, job: Job, left: float) -> bool:
        """Whether a job may begin with so many seconds left; one that may counts as begun now."""
        self.most = max(self.most, left)
        if self.needs(job) > left:
            return False
        self.begun[self._folder(job).name] = (time.monotonic(), self._saved(job))
        return True

    def note(self, job: Job) -> None:
        """Note that a job has ended now."""
        took = time.monotonic() - self.begun[self._folder(job).name][0]
        self.here[self._kind(job)] = max(took, self.here.get(self._kind(job), 0.0))
        (self._folder(job) / "unsaved.json").unlink(missing_ok=True)

    def stopped(self, job: Job) -> float:
        """Note that a job was stopped now; returns the seconds that it had where nothing of them was saved, else 0."""
        begun, saved = self.begun[self._folder(job).name]
        path, had = self._folder(job) / "unsaved.json", time.monotonic() - begun
        if self._saved(job) != saved:
            path.unlink(missing_ok=True)
            return 0.0
        path.parent.mkdir(parents=True, exist_ok=True)
        save_json(path, {"seconds": had})
        return had

    def _folder(self, job: Job) -> Path:
        return self.runs / folder_name(job.config)

    def _saved(self, job: Job) -> dict[str, int]:
        """What a job's folder has of it, by name, and of when: states, and run.json where it is trained."""
        found = [p for pattern in ("*.state.safetensors", "run.json") for p in self._folder(job).glob(pattern)]
        return {path.name: path.stat().st_mtime_ns for path in found}

    def _kind(self, job: Job) -> tuple[str, ...]:
        c, method = job.config, next(iter(job.variant.rows))
        return (DATA[job.table] or job.name, method, *map(str, (c.recipe, c.encoder, c.size, c.epochs)))
