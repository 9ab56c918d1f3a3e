"""results.csv: one row for each figure, with all that decides it, safe beside other writers."""

from __future__ import annotations

import csv
import io
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from filelock import FileLock

from attnad.config import PRETRAINED, config_hash
from attnad.errors import DataError
from attnad.metrics import METRICS
from attnad.study.tables import Job
from attnad.training.storage import write_atomically

KEY = ("table", "dataset", "class", "method", "recipe", "encoder", "size", "epochs", "overrides", "seed", "metric")
COLUMNS = (
    "table", "dataset", "class", "method", "recipe", "encoder", "weights", "size", "seed", "metric", "value", "n",
    "epochs", "commit", "torch", "device", "threads", "seconds", "date", "config", "overrides",
)  # fmt: skip


def rows(job: Job, outcome: dict[str, Any]) -> list[dict[str, str]]:
    """Make a run's rows of results.csv from what `measure` gave; a metric that is undefined there has none."""
    config, facts, found = job.config, outcome["facts"], []
    weights = "timm" if config.encoder.startswith("timm:") else PRETRAINED.get(config.encoder, "random")
    for method, metrics in job.variant.rows.items():
        for metric, key in metrics.items():
            if (value := lookup(outcome, key)) is None:
                continue
            pixels = metric in ("aupro", *(m for m in METRICS if m.startswith("pixel")))
            n = outcome["n_pixel_images" if pixels else "n"]
            if key.startswith("synthetic."):
                n = outcome["synthetic"]["n"]
            if key.startswith("by_kind."):
                n = outcome["n_good"] + lookup(outcome, key.rpartition(".")[0])["n"]
            row = (
                job.table, outcome["dataset"], job.name, method, config.recipe, config.encoder,
                weights, config.size, config.seed, metric, f"{value:.6f}", n,
                config.epochs, outcome["commit"], facts["torch"], facts["device"], facts["threads"],
                f"{sum(facts['seconds'].values()):.1f}", facts["date"], config_hash(config), job.overrides,
            )  # fmt: skip
            found.append(dict(zip(COLUMNS, map(str, row), strict=True)))
    return found


def lookup(values: Any, key: str) -> Any:
    """What a dotted key leads to; None where the way ends earlier."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def read_results(path: Path) -> list[dict[str, str]]:
    """Read results.csv or paper.csv, no row where the file is missing.

    Raises DataError, naming the file, on other columns and where it is damaged.
    """
    if not path.exists():
        return []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            head, *lines = csv.reader(file)
        if path.name == "results.csv" and tuple(head) != COLUMNS:
            raise DataError(f"{path}: has not the columns {', '.join(COLUMNS)}; move it away and reproduce again")
        found = [dict(zip(head, line, strict=True)) for line in lines if line]
        for row in found:
            float(row["value"]), int(row.get("seed", 0))
    except DataError:
        raise
    except (ValueError, KeyError, csv.Error) as error:
        raise DataError(f"{path}: is damaged ({error}); restore it, or move it away and reproduce again") from error
    return found


def write_results(path: Path, new: Iterable[dict[str, str]]) -> None:
    """Put rows into results.csv in place of those with the same KEY, sorted, safe beside other writers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        table = {tuple(row[name] for name in KEY): row for row in [*read_results(path), *new]}
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table[key] for key in sorted(table))
        write_atomically(path, text.getvalue())


def current_commit() -> str:
    """Name the commit of the checkout that this package lies in, "-dirty" if the package differs; "" outside of one."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # in somebody else's repository the package is not tracked
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""
