"""What is left to run of all tables, in which order, and whether a run can still end in time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attnad.data.cifar10 import find_cifar10
from attnad.data.folders import data_root as find_root
from attnad.errors import DataError
from attnad.study.results import read_results
from attnad.study.tables import CLASSES, DATA, MVTEC_CATEGORIES, Job, folder_name, jobs

# The most telling first. The paper's claim is that ADGAN on attention finds anomalies: on ten classes (table 2, whose
# runs give table 5 as well), then where they are (table 3), and beside them what goes beyond the paper. Why it works
# comes next (tables 4 and 1), then our own studies, and last the paper's rivals. All tables' first seed comes before
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

    A run of a kind that nothing is known of may begin at any time, and so may one with a saved state: what it does is
    kept.
    """

    def __init__(self, results: Path, runs: Path, *, device: str, threads: int):
        self.runs = runs
        self.known: dict[tuple[str, ...], float] = {}
        self.here: dict[tuple[str, ...], float] = {}
        self.begun: dict[str, float] = {}
        for row in read_results(results / "results.csv"):
            if (row["device"], row["threads"]) == (device, str(threads)):
                data = DATA.get(row["table"]) or row["class"]
                kind = (data, row["method"], row["recipe"], row["encoder"], row["size"], row["epochs"])
                self.known[kind] = max(float(row["seconds"]), self.known.get(kind, 0.0))

    def fits(self, job: Job, left: float) -> bool:
        """Whether a job may begin with so many seconds left; one that may counts as begun now."""
        folder = self.runs / folder_name(job.config)
        seconds = self.here.get(self._kind(job), self.known.get(self._kind(job), 0.0))
        if seconds > left and not any(folder.glob("*.state.safetensors")):
            return False
        self.begun[folder.name] = time.monotonic()
        return True

    def note(self, job: Job) -> None:
        """Note that a job has ended now."""
        took = time.monotonic() - self.begun[folder_name(job.config)]
        self.here[self._kind(job)] = max(took, self.here.get(self._kind(job), 0.0))

    def _kind(self, job: Job) -> tuple[str, ...]:
        c, method = job.config, next(iter(job.variant.rows))
        return (DATA[job.table] or job.name, method, *map(str, (c.recipe, c.encoder, c.size, c.epochs)))
