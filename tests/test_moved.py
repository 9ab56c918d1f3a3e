"""The camera moved: what is done to test images, against NumPy and Pillow."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from made import write_set
from PIL import Image

from attnad.cli import main
from attnad.data.textures import train_crops
from attnad.study import curves
from attnad.study.curves import CURVES, GRADED, draw, points, table
from attnad.study.moved import MOVED, any_pose, turn
from attnad.study.records import read_records
from attnad.study.sets import COLUMNS


@pytest.fixture(scope="module")
def bricks() -> torch.Tensor:
    """Three pictures of 256 pixels, each colour another picture."""
    return torch.from_numpy(train_crops("brick", 256)[:9, ..., 0].copy()).reshape(3, 3, 256, 256)


@pytest.fixture(scope="module")
def masks() -> torch.Tensor:
    masks = torch.zeros(3, 256, 256, dtype=torch.bool)
    masks[0, 100:120, 60:100] = masks[1, 0:30, 200:] = True
    return masks


def test_the_list_of_changes_is_the_one_that_was_fixed():
    assert list(MOVED) == [
        "as is", "shift 2", "shift 4", "shift 8", "turn 1", "turn 3", "turn 5", "light 0.8", "light 0.9", "light 1.1",
        "light 1.2", "gain", "gradient 0.15", "noise 4", "blur 1", "jpeg 50",
    ]  # fmt: skip


@pytest.mark.parametrize("name", list(MOVED))
def test_a_change_keeps_what_images_and_masks_are_and_comes_out_the_same_each_time(bricks, masks, name):
    images, moved = MOVED[name](bricks, masks)
    assert (images.shape, images.dtype) == (bricks.shape, torch.uint8)
    assert (moved.shape, moved.dtype) == (masks.shape, torch.bool)
    assert torch.equal(images, bricks) == torch.equal(images, MOVED["as is"](bricks, masks)[0]) == (name == "as is")
    again = MOVED[name](bricks, masks)
    assert torch.equal(images, again[0])
    assert torch.equal(moved, again[1])
    assert torch.equal(moved, masks) == (not name.startswith(("shift", "turn")))


@pytest.mark.parametrize("pixels", [2, 4, 8])
def test_a_shift_is_numpys_roll_and_repeats_the_edge(bricks, masks, pixels):
    images, moved = MOVED[f"shift {pixels}"](bricks, masks)
    for before, after in ((bricks.numpy(), images.numpy()), (masks.numpy(), moved.numpy())):
        expected = np.roll(before, (pixels, pixels), (-2, -1))
        expected[..., :pixels, :] = expected[..., [pixels], :]
        expected[..., :pixels] = expected[..., [pixels]]
        np.testing.assert_array_equal(after, expected)


def test_a_shift_is_of_256_pixels_whatever_the_size(bricks, masks):
    images, _ = MOVED["shift 8"](bricks[..., :64, :64], masks[..., :64, :64])
    np.testing.assert_array_equal(images[..., 2:, 2:], bricks[..., :62, :62])


@pytest.mark.parametrize("degrees", [1, 3, 5])
def test_a_turn_is_pillows_the_other_way_round(bricks, masks, degrees):
    images, moved = MOVED[f"turn {degrees}"](bricks, masks)
    picture = Image.fromarray(bricks[0].permute(1, 2, 0).numpy()).rotate(-degrees, Image.Resampling.BILINEAR)
    inside = slice(16, -16)  # Pillow's corners are black
    apart = np.abs(np.asarray(picture).astype(int) - images[0].permute(1, 2, 0).numpy())[inside, inside]
    assert apart.max() <= 2  # it counts in fixed point
    mask = Image.fromarray(masks[0].numpy()).rotate(-degrees, Image.Resampling.NEAREST)
    assert (np.asarray(mask) != moved[0].numpy()).sum() < 0.02 * masks[0].sum()


def test_any_pose_turns_each_image_otherwise_and_its_mask_with_it(bricks, masks):
    images, turned = any_pose(bricks, masks, seed=0)
    again, _ = any_pose(bricks, masks, seed=0)
    assert torch.equal(images, again)
    angles = 360 * torch.rand(len(bricks), generator=torch.Generator().manual_seed(0))
    for i, angle in enumerate(angles):
        alone, mask = turn(angle)(bricks[i : i + 1], masks[i : i + 1])
        assert torch.equal(images[i : i + 1], alone)
        assert torch.equal(turned[i : i + 1], mask)


def test_light_gain_and_gradient_are_products_that_are_clipped(bricks, masks):
    bright = bricks.clamp(min=150)
    column = np.array([0.85, 1.15])[None, None, None]
    for name, factor in {
        "light 0.8": 0.8,
        "light 1.2": 1.2,
        "gain": np.array([1.05, 1, 0.95])[None, :, None, None],
    }.items():
        expected = np.clip(np.rint(bright.numpy() * factor), 0, 255)
        assert np.abs(MOVED[name](bright, masks)[0].numpy() - expected).max() <= 1  # halves, in single precision
    ends = MOVED["gradient 0.15"](bright, masks)[0].numpy()[..., [0, -1]]
    assert np.abs(ends - np.clip(np.rint(bright.numpy()[..., [0, -1]] * column), 0, 255)).max() <= 1


def test_noise_has_its_deviation_and_blur_is_a_gaussians(bricks, masks):
    grey = bricks // 2 + 64  # far from the ends
    apart = MOVED["noise 4"](grey, masks)[0].float() - grey
    assert apart.std().item() == pytest.approx(4, abs=0.05)
    assert apart.mean().item() == pytest.approx(0, abs=0.05)
    kernel = np.exp(-0.5 * np.arange(-6, 7) ** 2.0)
    kernel /= kernel.sum()
    padded = np.pad(grey[0, 0].numpy().astype(float), 6, mode="edge")
    for axis in (0, 1):
        padded = np.apply_along_axis(np.convolve, axis, padded, kernel, mode="valid")
    assert np.abs(MOVED["blur 1"](grey, masks)[0][0, 0].numpy() - padded).max() <= 1


def test_jpeg_is_pillows(bricks, masks):
    images, _ = MOVED["jpeg 50"](bricks, masks)
    file = io.BytesIO()
    Image.fromarray(bricks[0].permute(1, 2, 0).numpy()).save(file, "JPEG", quality=50)
    np.testing.assert_array_equal(images[0], np.asarray(Image.open(file)).transpose(2, 0, 1))


# --- more and more ---------------------------------------------------------------------------------------------------


def test_curves_are_graded_from_no_change_on():
    assert set(CURVES) == {"shift", "turn", "light", "gradient", "cast", "noise", "blur", "jpeg"}
    for name, curve in CURVES.items():
        assert len(curve.values) >= 4
        if curve.none is not None:
            images = torch.full((1, 3, 32, 32), 100, dtype=torch.uint8)
            assert torch.equal(curve.move(curve.none)(images, images[:, 0] > 0)[0], images), name
    assert list(GRADED)[:3] == ["as is", "shift 2", "shift 4"]
    assert len(GRADED) == 1 + sum(len(curve.values) for curve in CURVES.values())


def moved_row(detector: str, name: str, moved: str, auroc: float, alarms: str = "") -> dict[str, str]:
    return dict.fromkeys(COLUMNS, "") | {
        "set": name, "detector": detector, "moved": moved, "image_auroc": str(auroc), "false_alarms": alarms
    }  # fmt: skip


MOVED_ROWS = [
    moved_row("strong", "pill", "as is", 1.0, "0.1"), moved_row("strong", "bottle", "as is", 0.9, "0.3"),
    moved_row("strong", "pill", "shift 2", 0.8, "0.5"), moved_row("strong", "bottle", "shift 2", 0.7, "0.5"),
    moved_row("padim", "pill", "jpeg 50", 0.6),
]  # fmt: skip


def test_points_are_means_over_sets_and_every_curve_begins_with_the_images_as_they_are():
    found = points(MOVED_ROWS, "image_auroc")
    assert found["shift"] == {"strong": {0: pytest.approx(0.95), 2: pytest.approx(0.75)}}
    assert found["light"] == {"strong": {1: pytest.approx(0.95)}}
    assert found["jpeg"] == {"padim": {50: 0.6}}
    lines = {line[:2]: line[2:] for line in table(MOVED_ROWS).rows}
    assert lines["shift, pixels of 256", "2"] == ("0.750 / 0.50", "-")
    assert lines["JPEG quality", "50"] == ("-", "0.600")


def test_the_figure_has_a_panel_a_change_and_a_line_a_detector():
    panels = {ax.get_xlabel(): ax for ax in draw(MOVED_ROWS).axes}
    assert list(panels) == [curve.label for curve in CURVES.values()]
    (line,) = panels["shift, pixels of 256"].lines
    assert (line.get_label(), list(line.get_xdata())) == ("strong", [0, 2])
    assert panels["JPEG quality"].xaxis_inverted()


def test_the_command_measures_the_four_sets_that_are_there(tmp_path, capsys, monkeypatch):
    write_set(tmp_path / "data" / "bottle", normal=30)
    monkeypatch.setattr(curves, "GRADED", {name: GRADED[name] for name in ("as is", "noise 8")})
    arguments = ["--results", str(tmp_path), "--data-root", str(tmp_path / "data"), "--seeds", "0", "--size", "64"]
    assert main(["reproduce", "moved", "--detectors", "gaussian", *arguments]) == 0
    assert [row["moved"] for row in read_records(tmp_path / "moved.csv", COLUMNS)] == ["as is", "noise 8"]
    assert all(row["pixel_auroc"] == "" for row in read_records(tmp_path / "moved.csv", COLUMNS))  # it has no masks
    printed = capsys.readouterr().out
    assert "left out, for they are not below" in printed
    assert "means over bottle." in printed
    assert main(["reproduce", "moved", "--classes", "pill", *arguments]) == 2
    assert "holds none of the sets pill; name their folder: --data-root" in capsys.readouterr().err
