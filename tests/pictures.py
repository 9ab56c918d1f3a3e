"""Pictures and folders of them, as files."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attnad import data
from attnad.errors import DataError


@pytest.fixture
def no_user_data(monkeypatch, tmp_path):
    """Neither the user's data folder nor the current folder may decide a test."""
    monkeypatch.setenv("ATTNAD_DATA", str(tmp_path / "no_root"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def picture(seed: int = 0, size: tuple[int, int] = (40, 32), mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def save(path: Path, image: Image.Image | None = None, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or picture(zlib.crc32(path.as_posix().encode()))).save(path, **options)
    return path


def blob_mask(size: tuple[int, int] = (40, 32), value: int = 255) -> Image.Image:
    values = np.zeros((size[1], size[0]), dtype=np.uint8)
    values[size[1] // 4 : size[1] // 2, size[0] // 4 : size[0] // 2] = value
    return Image.fromarray(values)


@pytest.fixture
def mvtec(tmp_path) -> Path:
    folder = tmp_path / "cap"
    for i in range(4):
        save(folder / f"train/good/{i:03d}.png")
    for name in ("good/000", "good/001", "bent/000", "bent/001", "hole/000"):
        save(folder / f"test/{name}.png")
    for name in ("bent/000", "bent/001", "hole/000"):
        save(folder / f"ground_truth/{name}_mask.png", blob_mask())
    return folder


def refused(*words: str):
    """Expect a DataError whose message holds all words."""
    return pytest.raises(DataError, match="".join(f"(?=.*{word})" for word in words))


def check_test_set(test: data.TestSet, n: int, size: int) -> None:
    assert test.images.shape == (n, 3, size, size)
    assert test.images.dtype == torch.uint8
    assert test.labels.shape == test.has_mask.shape == (n,)
    assert test.masks.shape == (n, size, size)
    assert test.labels.dtype == test.masks.dtype == test.has_mask.dtype == torch.bool
    assert len(test.kinds) == len(test.names) == n
    assert not test.masks[~test.has_mask].any()
    assert not test.masks[~test.labels].any()
    assert [kind != "good" for kind in test.kinds] == test.labels.tolist()
