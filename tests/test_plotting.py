"""Galleries: which images are chosen, that every map has the one scale, and the picture that the command writes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from made import few_crops
from PIL import Image

from attnad.cli import main
from attnad.detectors import recipe
from attnad.report.plotting import ATTENTION, COLOURS, choose, gallery, overlay
from attnad.run.run import train_run

KINDS = ("good",) * 20 + ("hole",) * 5 + ("crack",) * 2 + ("stain",) * 9


@pytest.mark.parametrize(
    ("n", "wanted"),
    [
        (8, {"good": 4, "crack": 2, "hole": 1, "stain": 1}),
        (1, {"good": 1}),
        (13, {"good": 7, "crack": 2, "hole": 2, "stain": 2}),
        (99, {"good": 20, "hole": 5, "crack": 2, "stain": 9}),
    ],
)
def test_half_of_the_chosen_are_good_and_the_others_of_all_kinds(n, wanted):
    chosen = choose(KINDS, n)
    assert len(set(chosen)) == len(chosen)
    found = Counter(KINDS[i] for i in chosen)
    assert found == wanted
    assert [KINDS[i] for i in chosen][: wanted["good"]] == ["good"] * wanted["good"]


def test_the_seed_alone_decides_the_choice():
    assert choose(KINDS, 8, seed=3) == choose(KINDS, 8, seed=3)
    assert len({tuple(choose(KINDS, 8, seed=seed)) for seed in range(5)}) > 1
    assert choose(["hole", "good"], 2) == [1, 0]
    assert choose(["hole"] * 3, 2, seed=1) != []
    with pytest.raises(ValueError, match="0 images"):
        choose(KINDS, 0)


def test_overlay_is_half_grey_half_colour():
    images = torch.randint(0, 256, (2, 3, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    maps = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(1))
    found = overlay(images, maps)
    grey = images[1, :, 2, 3].double().mean().item() / 255
    colour = matplotlib.colormaps[COLOURS](maps[1, 2, 3].item())[:3]
    np.testing.assert_allclose(found[1, :, 2, 3], (grey + np.array(colour)) / 2, atol=1e-6)
    assert 0 <= found.min() <= found.max() <= 1


def test_every_map_has_the_scale_0_to_1_and_its_pixels():
    maps = torch.full((2, 4, 4), 0.4)
    maps[0, 1, 2] = 0.6
    rows = {"image": torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "attention": maps, "truth": maps > 0.5}
    figure = gallery(rows, ["good", "hole"], title="bottle")
    *axes, bar = figure.axes
    assert [ax.get_title() for ax in axes[:2]] == ["good", "hole"]
    assert [ax.get_ylabel() for ax in axes[::2]] == list(rows)
    for ax in axes:
        (image,) = ax.images
        assert (image.norm.vmin, image.norm.vmax) == (0, 1)
        assert image.get_interpolation() == "nearest"
    np.testing.assert_array_equal(axes[2].images[0].get_array(), maps[0])
    assert axes[4].images[0].get_cmap().name == "gray"
    assert bar.get_ylim() == (0, 1)
    assert bar.get_ylabel() == "attention: 0 anomalous, 1 normal"


@pytest.mark.parametrize(("label", "bright"), [(ATTENTION, 0), ("anomaly map: 0 normal, 1 anomalous", 1)])
def test_bright_is_anomalous_whichever_way_a_map_counts(label, bright):
    figure = gallery({"map": torch.rand(1, 4, 4)}, [""], label=label)
    ax, bar = figure.axes
    for colours in (ax.images[0].get_cmap(), bar._colorbar.cmap):
        assert sum(colours(float(bright))[:3]) > 2 > 0.1 > sum(colours(1 - float(bright))[:3])


def test_without_maps_there_is_no_colour_bar():
    assert len(gallery({"image": torch.zeros(2, 3, 4, 4)}, ["a", "b"]).axes) == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({}, "nothing to draw"),
        ({"map": torch.zeros(3, 4, 4)}, "'map' has 3 images and there are 2"),
        ({"map": torch.full((2, 4, 4), 1.5)}, r"'map' has values outside \[0, 1\]"),
        ({"map": torch.full((2, 4, 4), torch.nan)}, "or NaN"),
    ],
)
def test_what_cannot_be_drawn_is_named(rows, message):
    with pytest.raises(ValueError, match=message):
        gallery(rows, ["a", "b"])


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    """Two tiny runs on bricks."""
    folders = []
    for seed in (0, 1):
        config = replace(recipe("quick", "textures"), size=32, seed=seed)
        attention = replace(config.attention, width=4, latent=4, epochs=1)
        config = replace(config, attention=attention, adgan=replace(config.adgan, epochs=1))
        folders.append(tmp_path_factory.mktemp("runs") / f"brick{seed}")
        with pytest.MonkeyPatch.context() as patch:
            few_crops(patch)
            train_run(config, folders[-1], device="cpu", progress=False)
    return folders


def test_the_command_draws_one_run(runs, tmp_path, capsys):
    out = tmp_path / "new" / "gallery.png"
    assert main(["figure", str(runs[0]), "--out", str(out), "--columns", "6", "--device", "cpu"]) == 0
    assert str(out) in capsys.readouterr().out
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        assert picture.width > 800
        assert len(picture.convert("RGB").getcolors(10**6)) > 100
    assert [path.name for path in out.parent.iterdir()] == ["gallery.png"]


def test_the_command_draws_several_runs_side_by_side(runs, tmp_path):
    one, two = tmp_path / "one.svg", tmp_path / "two.svg"
    options = ["--columns", "3", "--device", "cpu"]
    assert main(["figure", str(runs[0]), "--out", str(one), *options]) == 0
    names = ["--names", "first", "second", "--reconstruction"]
    assert main(["figure", *map(str, runs), "--out", str(two), *names, *options]) == 0
    # one <image> for each picture, 3 x (image, map, overlay, truth) or 3 x (image, 2 pairs, truth), and for the bar
    assert [path.read_text().count("<image ") for path in (one, two)] == [3 * 4 + 1, 3 * 6 + 1]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--out", "x.bmp3"], "bmp3"),
        (["--out", "x.png", "--columns", "0"], "cannot draw 0 images"),
        (["--out", "x.png", "--names", "a", "b"], "1 runs, called a, b"),
    ],
)
def test_the_command_says_what_is_wrong(runs, tmp_path, monkeypatch, capsys, extra, message):
    monkeypatch.chdir(tmp_path)
    assert main(["figure", str(runs[0]), "--device", "cpu", *extra]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("x.*"))
