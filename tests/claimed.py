"""Figures of results.csv for the tests of what the pages say of them."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from attnad.study.results import read_results
from attnad.study.tables import BEYOND

RESULTS = Path(__file__).parents[1] / "book" / "results"
ROWS = read_results(RESULTS / "results.csv")
NEIGHBOURS, JOINED, APART, NOISE, TAUGHT, STAINS, SKIPS, WEIGHED = BEYOND
MAIN = ("image_auroc", "pixel_auroc", "aupro")


def mean(metric: str, **wanted: str) -> float:
    """Mean over seeds of the rows that have these values; "class_" stands for the column class."""
    wanted = {name.rstrip("_"): value for name, value in wanted.items()} | {"metric": metric}
    found = [float(row["value"]) for row in ROWS if all(row[name] == value for name, value in wanted.items())]
    assert found, f"no row has {wanted}"
    return fmean(found)
