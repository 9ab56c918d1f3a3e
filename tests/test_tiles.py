"""Photographs in tiles: how they are cut and joined, and a run that finds what is lost in a shrunk photograph."""

from __future__ import annotations

import csv
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from made import fails
from PIL import Image

from attnad.cli import main
from attnad.data import split_normal, textures
from attnad.data.tiles import Tiles
from attnad.run.run import load_run
from attnad.training.storage import load_json

pytestmark = pytest.mark.usefixtures("elsewhere")
TINY = ["--recipe", "gaussian", "--size", "32", "--min-side", "64", "--channels", "16"]
TILES = ["--tile", "64", "--overlap", "16"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Photographs of 160 x 100 pixels in `good`; in `new` one that has a defect of 8 pixels at (120, 40)."""
    folder = tmp_path_factory.mktemp("photos")
    for name in ("good", "new"):
        (folder / name).mkdir()
    crops = textures.train_crops("grass", 160)[:22]
    for i, crop in enumerate(crops):
        picture = Image.fromarray(crop[:100])
        if i < 20:
            picture.save(folder / "good" / f"{i:02d}.png")
            continue
        if i == 21:
            picture.paste((250, 250, 40), (120, 40, 128, 48))
        picture.save(folder / "new" / f"{('plain', 'defect')[i - 20]}.png")
    return folder


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", str(photos / "good"), *TINY, *TILES, "--out", str(out)]) == 0
    return out


# --- cutting and joining ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tile", "overlap"), [(64, 0), (64, 16), (64, 32), (50, 7)])
def test_tiles_cover_a_side_and_share_enough(tile, overlap):
    tiles = Tiles(tile, overlap)
    for length in range(tile, 4 * tile):
        starts = tiles.starts(length)
        assert (starts[0], starts[-1] + tile) == (0, length)
        assert all(a < b <= a + tile - overlap for a, b in pairwise(starts))
        fewest = 1 if length == tile else -(-(length - tile) // (tile - overlap)) + 1
        assert len(starts) == fewest


@pytest.mark.parametrize(("tile", "overlap", "side"), [(64, 16, 64), (64, 0, 64), (40, 20, 40), (64, 9, 32)])
def test_maps_that_agree_are_joined_to_what_they_are(tile, overlap, side):
    """The map of each tile is its own grey value: the joined map is the photograph."""
    y, x = np.mgrid[:100, :170]
    pixels = np.repeat((127 + 60 * np.sin(y / 23) + 60 * np.cos(x / 31)).astype(np.uint8)[..., None], 3, axis=2)
    largest = []

    def score(cut: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert cut.shape[1:] == (3, side, side)
        assert cut.dtype == torch.uint8
        maps = cut[:, 0] / 255
        largest.append(maps.amax((1, 2)))
        return maps.amax((1, 2)), maps

    found, joined = Tiles(tile, overlap).score(pixels, side, score)
    assert found == torch.cat(largest).max()
    assert all(len(row) == len(Tiles(tile, overlap).starts(170)) for row in largest)  # a row of tiles at a time
    assert joined.shape == (100, 170)
    np.testing.assert_allclose(joined, pixels[..., 0] / 255, atol=1e-5 if side == tile else 0.02)


def test_maps_that_differ_fade_into_each_other():
    """Tiles that are all 0 or all 1: no pixel is far from the next one, and the middle of a tile is the tile's own."""
    values = iter([0.0, 1.0, 0.0, 1.0, 0.0, 1.0])

    def score(cut: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps = torch.stack([torch.full((64, 64), next(values)) for _ in cut])
        return maps.amax((1, 2)), maps

    _, joined = Tiles(64, 32).score(np.zeros((96, 128, 3), np.uint8), 64, score)
    assert joined.diff(dim=0).abs().max() <= 1 / 32 + 1e-5
    assert joined.diff(dim=1).abs().max() <= 1 / 32 + 1e-5
    assert [joined[0, x].item() for x in (0, 32, 64, 127)] == pytest.approx([0, 1 / 64, 1 - 1 / 64, 0], abs=0.02)


# --- a run -----------------------------------------------------------------------------------------------------------


def test_a_run_on_tiles_finds_a_small_defect(run, photos, capsys):
    assert main(["score", str(run), str(photos / "new"), "--out", "out", "--maps", "npy"]) == 0
    assert "of 2 images look anomalous: out/report.html" in capsys.readouterr().out
    with open("out/scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["file"]).name for row in rows] == ["defect.png", "plain.png"]
    assert rows[0]["anomalous"] == "yes"
    values = np.load(Path("out", rows[0]["map"]).with_suffix(".npy"))
    assert values.shape == (100, 160)
    y, x = np.unravel_index(values.argmax(), values.shape)
    assert abs(x - 124) < 12
    assert abs(y - 44) < 12
    page = Path("out/report.html").read_text(encoding="utf-8")
    assert page.count("<li class") == 2
    assert "neighbours share 16 or more" in page


def test_photographs_are_held_out_and_not_tiles(run, photos):
    facts, loaded = load_json(run / "run.json"), load_run(run, device="cpu")
    assert (facts["n_train"], len(facts["held_out_scores"])) == (18, 2)
    assert facts["tiles"] == {"tile": 64, "overlap": 16}
    held_out = split_normal(torch.arange(20), seed=0)[1].tolist()
    for i, kept in zip(held_out, facts["held_out_scores"], strict=True):
        pixels = np.asarray(Image.open(photos / "good" / f"{i:02d}.png"))
        tiles = [pixels[top : top + 64, left : left + 64] for top in (0, 36) for left in (0, 48, 96)]
        shrunk = np.stack([Image.fromarray(tile).resize((32, 32), Image.Resampling.BICUBIC) for tile in tiles])
        scores = loaded.score(torch.from_numpy(shrunk).permute(0, 3, 1, 2))
        assert loaded.image_scores(scores).max().item() == pytest.approx(kept, rel=1e-4)


def test_the_same_command_again_and_another_one(run, photos, capsys):
    assert main(["train", str(photos / "good"), *TINY, *TILES, "--out", str(run)]) == 0
    for other in (["--tile", "64"], []):  # an overlap of 8, and whole photographs
        assert "with other tiles, or without" in fails(capsys, "train", photos / "good", *TINY, *other, "--out", run)


def test_what_is_refused(run, photos, capsys):
    def train(*more: str | Path, data: str | Path = photos / "good") -> str:
        return fails(capsys, "train", data, *TINY, *more, "--out", "no")

    assert "give --tile too" in train("--overlap", "8")
    assert "from 0 to half a tile, 32" in train("--tile", "64", "--overlap", "33")
    assert "32 pixels or more" in train("--tile", "31")
    assert "give --region or --tile" in train(*TILES, "--region", photos / "new" / "plain.png")
    assert "tiles are for a folder of photographs" in train(*TILES, data="textures")
    assert "has 160 x 100 pixels, less than a tile of 128" in train("--tile", "128")
    Image.new("RGB", (200, 60)).save("low.png")
    assert "low.png: has 200 x 60 pixels" in fails(capsys, "score", run, "low.png", "--out", "out")
    assert "only attnad score does" in fails(capsys, "export", run, "model.onnx")
    assert "only attnad score does" in fails(capsys, "evaluate", run, "textures")
    assert "only attnad score does" in fails(capsys, "figure", run, "--out", "f.png")
