"""anomalib's detectors beside ours: both really fitted, on the same painted bricks, with the same weights."""

from __future__ import annotations

import csv
from importlib import util
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
import torch
from made import write_images

from attnad.data import load_test, load_train, textures
from attnad.errors import SettingError
from attnad.study import compare_anomalib as beside
from attnad.study.compare_anomalib import HEADER, OURS, THEIRS, fit_theirs, main

anomalib = pytest.mark.skipif(
    util.find_spec("anomalib") is None, reason="anomalib is not installed; make beside installs it and runs this"
)
SIZE = 96  # anomalib's noise for SuperSimpleNet fails on images of 64 pixels


@pytest.fixture(scope="module")
def bricks(tmp_path_factory) -> Path:
    """A data set laid out as MVTec AD's: normal bricks, and bricks with a red square each."""
    folder = tmp_path_factory.mktemp("data") / "bricks"
    good, painted, _ = textures.held_out_crops("brick", SIZE)
    masks = np.zeros((12, SIZE, SIZE), np.uint8)
    painted = painted[:12].copy()
    painted[:, 25:50, 30:55], masks[:, 25:50, 30:55] = (200, 20, 20), 255
    write_images(folder / "train" / "good", textures.train_crops("brick", SIZE)[:40])
    write_images(folder / "test" / "good", good[:12])
    write_images(folder / "test" / "square", painted)
    write_images(folder / "ground_truth" / "square", masks, "_mask")
    return folder


@anomalib
def test_all_are_fitted_timed_and_written(bricks, tmp_path, monkeypatch):
    monkeypatch.setattr(beside, "STEPS", 2)
    main([str(bricks), "--size", str(SIZE), "--out", str(tmp_path / "beside.csv")])
    with open(tmp_path / "beside.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == HEADER
    assert [row["detector"] for row in rows] == [*OURS, *THEIRS]
    for row in rows:
        assert row["data"] == "bricks"
        if row["detector"] != THEIRS[2]:  # which has hardly begun
            assert float(row["image_auroc"]) > 0.9, row
            assert float(row["pixel_auroc"]) > 0.9, row
        assert float(row["fit_seconds"]) > 0
        assert float(row["milliseconds"]) > 0


@anomalib
@pytest.mark.parametrize("name", THEIRS[:2])
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


@anomalib
def test_supersimplenet_learns_and_its_noise_has_the_measure_of_the_features(bricks, monkeypatch):
    """On eight images, so that a step is short; the losses are read off as they are computed."""
    from anomalib.models.image.supersimplenet.loss import SSNLoss  # here: its import is slow

    monkeypatch.setattr(beside, "STEPS", 24)
    losses, models = [], []
    compute, train = SSNLoss.forward, beside.train_supersimplenet
    monkeypatch.setattr(SSNLoss, "forward", lambda *a, **k: losses.append(compute(*a, **k)) or losses[-1])
    monkeypatch.setattr(beside, "train_supersimplenet", lambda *a: models.append(a[0]) or train(*a))
    images = load_train(str(bricks), size=SIZE).images[:8]
    judge = fit_theirs(THEIRS[2], images, torch.device("cpu"))
    assert len(losses) == 24
    assert torch.stack(losses[-4:]).mean() < 0.9 * torch.stack(losses[:4]).mean()
    x = (images.float() - 127) / 128  # as its weights were trained
    features = models[0].feature_extractor(x)
    spread = features.transpose(0, 1).flatten(1).std(1).mean()
    assert spread > 100 * 0.015  # the noise that anomalib would add
    assert models[0].anomaly_generator.noise_std == pytest.approx(spread.item() / 4)
    assert judge(images)[1].shape == (8, SIZE, SIZE)


def test_without_anomalib_the_remedy_is_named(bricks, monkeypatch):
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(beside, "version", absent)
    with pytest.raises(SettingError, match=r"other packages: pip install anomalib$"):
        beside.beside(bricks, size=SIZE)
