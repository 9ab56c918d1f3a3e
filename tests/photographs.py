"""Photographs to score, runs that score them, and what a scored folder holds."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
from made import write_images

from attnad.cli import main
from attnad.data import textures

TINY = ["--recipe", "gaussian", "--size", "32", "--min-side", "64", "--channels", "16"]
N = 40


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> Path:
    """A folder with photographs, `good` and N in `new`, and finished runs, `whole` and `tiles`: not to be changed."""
    folder = tmp_path_factory.mktemp("work")
    write_images(folder / "good", textures.train_crops("gravel", 64)[:20])
    write_images(folder / "new", textures.train_crops("gravel", 64)[20 : 20 + N])
    assert main(["train", str(folder / "good"), *TINY, "--out", str(folder / "whole")]) == 0
    assert main(["train", str(folder / "good"), *TINY, "--tile", "48", "--out", str(folder / "tiles")]) == 0
    return folder


@pytest.fixture
def new(photographs, tmp_path) -> Path:
    return Path(shutil.copytree(photographs / "new", tmp_path / "new"))


def rows(out: str | Path = "out") -> list[dict[str, str]]:
    with open(Path(out) / "scores.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def scored(out: str | Path = "out") -> set[str]:
    """Names of the photographs in the table, no one twice, each with its map and no map besides."""
    found = rows(out)
    assert sorted(row["map"] for row in found) == sorted(f"maps/{path.name}" for path in Path(out, "maps").iterdir())
    names = [Path(row["file"]).name for row in found]
    assert len(names) == len(set(names))
    return set(names)
