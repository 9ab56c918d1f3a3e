"""The table of few photographs: how many are learned from, which, and what the means are taken over."""

from __future__ import annotations

import pytest
from made import write_set

from attnad.cli import main
from attnad.study import few
from attnad.study.few import table
from attnad.study.records import read_records
from attnad.study.sets import COLUMNS

pytest.importorskip("timm", reason="the extra lite0 is not installed")


def test_means_are_over_seeds_then_sets_and_the_worst_set_is_named():
    pixels = {"pill": "0.5", "casting": ""}  # which has no masks
    rows = [
        {"set": name, "detector": f"{detector} n={n}", "image_auroc": str(value), "pixel_auroc": pixels[name]}
        for name, detector, n, value in (
            ("pill", "strong", 4, 0.6), ("pill", "strong", 4, 0.8), ("casting", "strong", 4, 0.9),
            ("pill", "padim", 16, 0.75), ("pill", "strong", 16, 0.95),
        )
    ]  # fmt: skip
    assert table(rows).rows == (
        ("4", "strong", "2", "0.800", "pill 0.700", "0.500"),
        ("16", "padim", "1", "0.750", "pill 0.750", "0.500"),
        ("16", "strong", "1", "0.950", "pill 0.950", "0.500"),
    )


def test_the_command_learns_from_so_many_photographs_that_the_seed_draws(tmp_path, capsys, monkeypatch):
    write_set(tmp_path / "data" / "bottle", normal=12)
    monkeypatch.setattr(few, "NUMBERS", (4, 8))
    arguments = ["--results", str(tmp_path), "--data-root", str(tmp_path / "data"), "--seeds", "0", "1", "--size", "32"]
    assert main(["reproduce", "few", "--detectors", "strong", "--set", "folds=2", *arguments]) == 0
    rows = read_records(tmp_path / "few.csv", COLUMNS)
    assert [(row["detector"], row["seed"], row["n_train"]) for row in rows] == [
        (f"strong folds=2 size=32 n={n}", seed, str(n)) for n in (4, 8) for seed in ("0", "1")
    ]
    assert rows[0]["image_auroc"] != "", "it was judged"
    assert "strong folds=2 size=32" in capsys.readouterr().out
    assert main(["reproduce", "few", "--detectors", "strong", "--set", "folds=2", *arguments]) == 0
    assert read_records(tmp_path / "few.csv", COLUMNS) == rows, "what is there is not measured again"
