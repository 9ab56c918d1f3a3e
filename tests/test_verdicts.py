"""The verdicts on the paper's claims follow the rows, and the pages speak of the verdicts that the rows give now."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from attnad.study.claims import CLAIMS, Measured, verdict

RESULTS = Path(__file__).parents[1] / "book" / "results"

# What the pages say of each claim, and where. Where a verdict changes, read these again before its word here.
VERDICTS = {
    "augmentation": "holds in shortened runs",  # results, table 1; chapter 8, end
    "jitter": "not borne out in shortened runs",  # results, table 1
    "one class": "missed",  # results, table 2; chapter 8, end
    "maps": "reached on bottle, missed on pill",  # results, glance and table 3; chapter 8, end
    "accuracy": "missed",  # chapter 8, end
    "attention loss": "holds",  # results, table 4; chapter 8, end
    "two losses": "not borne out in shortened runs",  # results, table 4; chapter 8, "Seed by seed" and end
    "reconstruction": "holds",  # results, table 5; chapter 8, end
    "discriminator": "holds",  # results, table 5; chapter 8, end
    "second stage": "not borne out",  # results, glance and table 5; chapter 8, end
}


@pytest.mark.parametrize("name", CLAIMS)
def test_verdicts_are_those_that_the_pages_speak_of(name):
    assert verdict(CLAIMS[name], RESULTS) == VERDICTS[name], "the rows say something else now: read the pages again"


@pytest.mark.parametrize(
    ("ours", "other", "side"),
    [
        ([0.9], [0.8], 1), ([0.8], [0.9], -1), ([0.8], [0.79], 0), ([0.9, 0.9], [0.8, 0.8], 1),
        ([0.9, 0.9], [0.5, 0.91], 0), ([0.5, 0.91], [0.9, 0.9], 0), ([0.9, 0.81], [0.8, 0.8], 1),
    ],
)  # fmt: skip
def test_a_side_needs_a_margin_and_every_seed(ours, other, side):
    assert Measured("bottle", 1, "100", ours, other).side() == side


def rewritten(folder: Path, **change: float) -> Path:
    """Results whose figures of some methods, by name and with _ for a space, are these; the printed ones stay."""
    for name in ("results.csv", "paper.csv"):
        text = (RESULTS / name).read_text(encoding="utf-8")
        lines = list(csv.DictReader(text.splitlines()))
        for line in lines if name == "results.csv" else ():
            line["value"] = change.get(line["method"].replace(" ", "_"), line["value"])
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, lines[0].keys(), lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)
    return folder


def test_new_rows_change_a_verdict(tmp_path):
    """Each verdict follows its rows, whatever they say."""
    better = rewritten(tmp_path, ADGAN=0.99, attention_mean=0.5)
    assert verdict(CLAIMS["second stage"], better) == "holds"
    assert verdict(CLAIMS["one class"], better) == "reached"
    assert verdict(CLAIMS["maps"], better) == "reached"
    assert verdict(CLAIMS["accuracy"], better) == "reached"
