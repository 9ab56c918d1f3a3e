"""anomalib's detectors beside ours: both really fitted, on the same painted bricks, with the same weights."""

from __future__ import annotations

import csv
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
import torch
from made import write_images

from attnad.data import load_test, load_train, textures
from attnad.errors import SettingError
from attnad.study import beside
from attnad.study.beside import HEADER, OURS, THEIRS, fit_theirs, main

SIZE = 96  # anomalib's noise for SuperSimpleNet fails on images of 64 pixels
QUICK = THEIRS[:2]


@pytest.fixture(scope="module")
def bricks(tmp_path_factory) -> Path:
    """A data set laid out as MVTec AD's: normal bricks, and bricks with a red square each."""
    folder = tmp_path_factory.mktemp("data") / "bricks"
    good, painted, _ = textures.held_out_crops("brick", SIZE)
    masks = np.zeros((12, SIZE, SIZE), np.uint8)
    painted = painted[:12].copy()
    painted[:, 30:60, 36:66], masks[:, 30:60, 36:66] = (200, 20, 20), 255
    write_images(folder / "train" / "good", textures.train_crops("brick", SIZE)[:40])
    write_images(folder / "test" / "good", good[:12])
    write_images(folder / "test" / "square", painted)
    write_images(folder / "ground_truth" / "square", masks, "_mask")
    return folder


def test_all_are_fitted_timed_and_written(bricks, tmp_path, monkeypatch):
    monkeypatch.setattr(beside, "STEPS", 40)
    main([str(bricks), "--size", str(SIZE), "--out", str(tmp_path / "beside.csv")])
    with open(tmp_path / "beside.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == HEADER
    assert [row["detector"] for row in rows] == [*OURS, *THEIRS]
    for row in rows:
        assert row["data"] == "bricks"
        if row["detector"] != "anomalib SuperSimpleNet":  # has hardly begun
            assert float(row["image_auroc"]) > 0.9, row
        assert float(row["pixel_auroc"]) > (0.9 if row["detector"] in (*OURS, *QUICK) else 0.7), row
        assert float(row["fit_seconds"]) > 0
        assert float(row["milliseconds"]) > 0


@pytest.mark.parametrize("name", QUICK)
def test_maps_are_high_where_the_square_is_and_seeds_are_fixed(bricks, name):
    images, test = load_train(str(bricks), size=SIZE).images, load_test(str(bricks), size=SIZE)
    judge = fit_theirs(name, images, torch.device("cpu"))
    scores, maps = judge(test.images)
    assert scores.shape == (24,)
    assert maps.shape == (24, SIZE, SIZE)
    for marked, mask in zip(maps[test.labels], test.masks[test.labels].bool().reshape(12, SIZE, SIZE), strict=True):
        assert marked[mask].mean() > marked[~mask].mean()
    again = fit_theirs(name, images, torch.device("cpu"))(test.images[:3])
    torch.testing.assert_close(again[1], judge(test.images[:3])[1])


def test_without_anomalib_the_remedy_is_named(bricks, monkeypatch):
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(beside, "version", absent)
    with pytest.raises(SettingError, match=r"takes an extra: pip install 'attnad\[anomalib\]'"):
        beside.beside(bricks, size=SIZE)
