"""False alarms that are promised beside those that are delivered: bands of chance, rows, table and figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made import few_crops
from scipy.stats import betabinom, binom

from attnad.cli import main
from attnad.study import calibration
from attnad.study.calibration import COLUMNS, bands, draw, table
from attnad.study.records import read_records


@pytest.mark.parametrize(("rate", "n_good", "m"), [(0.05, 58, 22), (0.01, 80, 220), (0.1, 20, 11)])
def test_bands_hold_95_of_100_and_not_with_one_image_less(rate, n_good, m):
    exact, drawn = bands(rate, n_good, m)
    for (low, high), law in (
        (exact, binom(n_good, rate)),
        (drawn, betabinom(n_good, rate * (m + 1), (1 - rate) * (m + 1))),
    ):
        first, last = round(low * n_good), round(high * n_good)
        assert (first / n_good, last / n_good) == pytest.approx((low, high))
        assert law.cdf(last) >= 0.975 > law.cdf(last - 1)
        assert law.cdf(first) >= 0.025 > law.cdf(first - 1)
    assert drawn[0] <= exact[0]
    assert drawn[1] >= exact[1]


def test_the_beta_binomial_band_is_that_of_thresholds_that_are_drawn():
    """Scores of one law, thresholds as `Run.threshold_for` takes them, at a place that is a whole number."""
    rng, (rate, n_good, m) = np.random.default_rng(0), (0.1, 50, 39)
    thresholds = np.quantile(rng.random((20_000, m)), 1 - rate, axis=1, method="weibull")
    delivered = (rng.random((20_000, n_good)) > thresholds[:, None]).mean(1)
    _, (low, high) = bands(rate, n_good, m)
    assert np.quantile(delivered, [0.025, 0.975]) == pytest.approx([low, high], abs=0.021)  # an image is 0.02
    assert delivered.mean() == pytest.approx(rate, abs=0.002)


def reproduce(results: Path, *more: str) -> int:
    chosen = ["--classes", "brick", "--detectors", "gaussian", "--device", "cpu", "--seeds", "0", "1"]
    return main(["reproduce", "calibration", "--results", str(results), *chosen, *more])


def test_what_the_product_promises_is_measured_once_and_what_it_refuses_is_named(tmp_path, monkeypatch, capsys):
    few_crops(monkeypatch, train=120, good=40)
    monkeypatch.setattr(calibration, "NUMBERS", (20, 500))  # of 120 photographs
    fit, runs = calibration.fit, []

    def killed(*arguments):
        if len(runs) == 3:
            raise KeyboardInterrupt
        runs.append((fit(*arguments), arguments[1]))
        return runs[-1][0]

    monkeypatch.setattr(calibration, "fit", killed)
    assert reproduce(tmp_path) == 130
    first = (tmp_path / "calibration.csv").read_text()
    del runs[:]
    assert reproduce(tmp_path) == 0
    assert len(runs) == 1
    assert (tmp_path / "calibration.csv").read_text().startswith(first)
    printed = capsys.readouterr().out
    rows = read_records(tmp_path / "calibration.csv", COLUMNS)
    assert [(row["n"], row["split"], row["rate"]) for row in rows] == [
        (n, split, rate) for n in ("20", "all") for split in "01" for rate in ("0.01", "0.05", "0.1")
    ]
    run, learned_from = runs[0]
    assert len(learned_from) == 120
    m = len(run.facts["held_out_scores"])
    for row in rows[-3:]:
        assert (row["n_photographs"], row["n_good"], row["n_calibration"]) == ("120", "40", str(m))
        possible = m + 1 >= 1 / float(row["rate"]) - 1e-9
        assert (row["delivered"] != "") == possible
        if possible:
            exact, drawn = bands(float(row["rate"]), 40, m)
            assert [float(row[name]) for name in ("low", "high", "low_drawn", "high_drawn")] == pytest.approx(
                [*exact, *drawn], abs=1e-4
            )
            assert row["within"] == str(int(exact[0] <= float(row["delivered"]) <= exact[1]))
    assert any(row["delivered"] for row in rows)
    assert "0.01 with 20 photographs (gaussian; 2 of 2 runs)" in printed.rpartition("Left out")[2]


def made(**values: object) -> dict[str, str]:
    low, high = bands(0.05, 100, 19)
    row = dict.fromkeys(COLUMNS, "") | {
        "set": "a", "detector": "strong", "n": "20", "split": "0", "rate": "0.05", "n_good": "100",
        "n_calibration": "19", "low": low[0], "high": low[1], "low_drawn": high[0], "high_drawn": high[1],
    }  # fmt: skip
    return {name: str(value) for name, value in (row | values).items()}


ROWS = [
    made(delivered=0.04, within=1), made(delivered=0.12, within=0, split=1), made(set="b", delivered=0.02, within=1),
    made(rate=0.01),
]  # fmt: skip


def test_the_table_is_a_mean_over_sets_and_says_what_chance_allows():
    (line,) = table(ROWS).rows
    # sets' means are 0.08 and 0.02; 0.12 is inside the wider band: (0.05, 19) may well be 0.12
    assert line == ("strong", "20", "0.05", "0.050", "a 0.080", "0.67", "1.00", "3")
    assert "0.01 with 20 photographs (strong; 1 of 1 runs)" in table(ROWS).notes[-1]


def test_the_figure_has_a_mark_for_each_set():
    (panel,) = draw(ROWS).axes
    marks = {line.get_label(): line.get_ydata() for line in panel.lines if not line.get_label().startswith("_")}
    assert {name: list(y) for name, y in marks.items()} == {"a": [pytest.approx(0.08)], "b": [pytest.approx(0.02)]}
    assert panel.get_title() == "20 photographs"
