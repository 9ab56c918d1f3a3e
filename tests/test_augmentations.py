"""Each step of hard augmentation against NumPy, torchvision or a loop."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from made import images, rng
from torchvision.transforms import functional as tv

from attnad.augmentations import (
    boxes_to_map,
    color_jitter,
    cut_and_fill,
    hard_augmentation,
    permute_patches,
    random_boxes,
    random_orders,
    rotate,
)
from attnad.config import AugmentConfig

DEFAULT = AugmentConfig()
OFF = AugmentConfig(rotation=False, permutation=False, jitter=False)
ROTATION = AugmentConfig(permutation=False, jitter=False)

PERMUTATION = AugmentConfig(rotation=False, jitter=False)
JITTER = AugmentConfig(rotation=False, permutation=False)


def shuffled(image: np.ndarray, order) -> np.ndarray:
    """Patch i of the result is patch order[i] of the image [c, h, w], by a loop."""
    grid = round(len(order) ** 0.5)
    h, w = image.shape[1] // grid, image.shape[2] // grid
    result = np.empty_like(image)
    for i, source in enumerate(order):
        (r, c), (y, x) = divmod(i, grid), divmod(int(source), grid)
        result[:, r * h : (r + 1) * h, c * w : (c + 1) * w] = image[:, y * h : (y + 1) * h, x * w : (x + 1) * w]
    return result


# The transformations, by given parameters


def test_rotate_is_numpy_rot90():
    x, turns = images(9, 5), torch.tensor([0, 1, 2, 3, 4, 7, -1, -2, 1])
    for image, k, turned in zip(x.numpy(), turns.tolist(), rotate(x, turns).numpy(), strict=True):
        np.testing.assert_array_equal(turned, np.rot90(image, k, axes=(1, 2)))


@pytest.mark.parametrize(("grid", "height", "width"), [(1, 3, 4), (2, 8, 8), (3, 6, 9), (4, 8, 16)])
def test_permute_patches_against_a_loop(grid, height, width):
    x, order = images(6, height, width, channels=2), torch.rand(6, grid * grid, generator=rng(1)).argsort(1)
    for image, row, result in zip(x.numpy(), order, permute_patches(x, order).numpy(), strict=True):
        np.testing.assert_array_equal(result, shuffled(image, row))


def test_permute_patches_by_hand():
    x = torch.tensor([[0.0, 1.0], [2.0, 3.0]]).expand(1, 1, 2, 2)
    assert permute_patches(x, torch.tensor([[2, 0, 3, 1]])).flatten().tolist() == [2, 0, 3, 1]


def test_color_jitter_is_torchvisions_image_by_image():
    n = 64
    x = images(n, 8)
    x[:8] = (x[:8] * 3).floor() / 2  # pure colours, ties between channels, gray, black and white
    factors = [torch.rand(n, generator=rng(seed)) * 2 for seed in (1, 2, 3)]
    hue = torch.rand(n, generator=rng(4)) - 0.5
    factors[0][8], factors[1][9], factors[2][10], hue[11], hue[12] = 0, 0, 0, -0.5, 0.5
    result = color_jitter(x, *factors, hue)
    for i in range(n):
        expected = tv.adjust_brightness(x[i], factors[0][i].item())
        expected = tv.adjust_contrast(expected, factors[1][i].item())
        expected = tv.adjust_saturation(expected, factors[2][i].item())
        expected = tv.adjust_hue(expected, hue[i].item())
        torch.testing.assert_close(result[i], expected, rtol=0, atol=2e-5, msg=lambda m, i=i: f"image {i}: {m}")
    assert result.min() >= 0
    assert result.max() <= 1


def test_color_jitter_without_a_change():
    x, one = images(4), torch.ones(4)
    torch.testing.assert_close(color_jitter(x, one, one, one, 0 * one), x, rtol=0, atol=1e-6)
    torch.testing.assert_close(color_jitter(x, one, one, one, one), x, rtol=0, atol=1e-5)  # a whole turn of the hue


def test_a_third_of_a_turn_makes_red_green():
    red = torch.tensor([1.0, 0, 0]).reshape(1, 3, 1, 1)
    one = torch.ones(1)
    torch.testing.assert_close(color_jitter(red, one, one, one, one / 3).flatten(), torch.tensor([0.0, 1, 0]))


def test_gray_images_stay_gray():
    gray = images(32, channels=1).expand(-1, 3, -1, -1)
    result = hard_augmentation(gray, DEFAULT, rng())
    assert torch.equal(result[:, :1].expand_as(result), result)
    assert not torch.equal(result, gray)


def test_boxes_to_map_is_a_numpy_slice():
    boxes = torch.tensor([[0, 0, 1, 1], [2, 3, 5, 7], [0, 0, 7, 7], [6, 0, 7, 7], [3, 3, 3, 6]])
    maps = boxes_to_map(boxes, 7)
    assert maps.shape == (5, 1, 7, 7)
    assert maps.dtype == torch.float32
    for (top, left, bottom, right), drawn in zip(boxes.tolist(), maps.numpy(), strict=True):
        expected = np.zeros((1, 7, 7), np.float32)
        expected[0, top:bottom, left:right] = 1
        np.testing.assert_array_equal(drawn, expected)


def test_cut_and_fill_against_a_loop():
    x, filling = images(8, 12), images(8, 12, seed=1)
    boxes = random_boxes(8, 12, DEFAULT, rng())
    result, attention = cut_and_fill(x, filling, boxes)
    for i, (top, left, bottom, right) in enumerate(boxes.tolist()):
        expected, expected_map = x[i].numpy().copy(), np.ones((1, 12, 12), np.float32)
        expected[:, top:bottom, left:right] = filling[i, :, top:bottom, left:right].numpy()
        expected_map[:, top:bottom, left:right] = 0
        np.testing.assert_array_equal(result[i], expected)
        np.testing.assert_array_equal(attention[i], expected_map)


# The random draws


@pytest.mark.parametrize(
    "config",
    [DEFAULT, AugmentConfig(box_area=(0.1, 0.2), box_aspect=1.5), AugmentConfig(box_area=(0.5, 0.9), box_aspect=8)],
)
def test_random_boxes_keep_the_configs_bounds(config):
    n, size = 4000, 64
    boxes = random_boxes(n, size, config, rng())
    assert boxes.shape == (n, 4)
    assert boxes.dtype == torch.int64
    top, left, bottom, right = boxes.double().unbind(1)
    height, width = bottom - top, right - left
    assert min(top.min(), left.min(), height.min() - 1, width.min() - 1) >= 0
    assert max(bottom.max(), right.max()) <= size
    low, high = config.box_area
    rounding = 0.5  # pixels, on each side
    assert ((height - rounding) * (width - rounding) <= high * size**2).all()
    fits = (height < size) & (width < size)  # a side that would not fit is cut to the image's
    assert ((height + rounding) * (width + rounding) >= low * size**2)[fits].all()
    assert ((height - rounding) / (width + rounding) <= config.box_aspect).all()
    assert ((width - rounding) / (height + rounding) <= config.box_aspect).all()


def test_random_boxes_spread_as_documented():
    n, size = 5000, 1024
    top, left, bottom, right = random_boxes(n, size, AugmentConfig(box_area=(0.02, 0.3)), rng()).double().unbind(1)
    height, width = bottom - top, right - left
    # Log-uniform area and aspect: each is uniform after this scaling, whose deciles are those of [0, 1].
    area = ((height * width / size**2).log() - np.log(0.02)) / np.log(0.3 / 0.02)
    aspect = ((height / width).log() / np.log(3) + 1) / 2
    across, down = left / (size - width), top / (size - height)
    deciles = torch.linspace(0.1, 0.9, 9).double()
    for values in (area, aspect, across, down):
        torch.testing.assert_close(values.quantile(deciles), deciles, rtol=0, atol=0.03)
    table = torch.stack([area, aspect, across, down])
    assert (torch.corrcoef(table) - torch.eye(4)).abs().max() < 0.06  # drawn apart
    for ends in (left, top, right - size, bottom - size):
        assert (ends == 0).any()


def test_random_boxes_are_never_empty():
    boxes = random_boxes(200, 4, AugmentConfig(box_area=(1e-4, 1e-3)), rng())
    assert ((boxes[:, 2:] - boxes[:, :2]) == 1).all()


def test_random_orders_are_all_permutations_but_the_identity():
    orders = random_orders(4000, 4, rng()).tolist()
    counts = {order: orders.count(list(order)) for order in itertools.permutations(range(4))}
    assert sum(counts.values()) == 4000
    assert counts.pop((0, 1, 2, 3)) == 0
    assert min(counts.values()) > 100  # 4000 / 24 = 167, standard deviation 13
    assert sorted(counts.values())[-2] < 240  # the shift stands in for the identity, so it comes twice as often
    assert random_orders(3, 1, rng()).tolist() == [[0]] * 3


# x'


def test_hard_augmentation_applies_its_steps_in_the_papers_order():
    """jitter(perm(rotate(x))), and each step draws the same whether the others are on or off."""
    x, expected = images(16), images(16)
    for config in (ROTATION, PERMUTATION, JITTER):
        expected = hard_augmentation(expected, config, rng(5))
    assert torch.equal(hard_augmentation(x, DEFAULT, rng(5)), expected)
    assert torch.equal(hard_augmentation(x, OFF, rng(5)), x)


def test_rotation_alone():
    x = images(90)
    turns = [
        [k for k in range(4) if np.array_equal(result, np.rot90(image, k, axes=(1, 2)))]
        for image, result in zip(x.numpy(), hard_augmentation(x, ROTATION, rng()).numpy(), strict=True)
    ]
    counts = [turns.count([k]) for k in range(4)]
    assert sum(counts) == 90
    assert counts[0] == 0
    assert min(counts[1:]) > 15


def test_permutation_alone():
    x = images(60, 8)
    for grids, patches in (((2,), 4), ((4,), 16)):
        config = AugmentConfig(rotation=False, jitter=False, grids=grids)
        side = 8 // grids[0]
        for image, result in zip(x.numpy(), hard_augmentation(x, config, rng()).numpy(), strict=True):
            cells = {
                image[:, i : i + side, j : j + side].tobytes(): len(range(0, 8, side)) * (i // side) + j // side
                for i, j in itertools.product(range(0, 8, side), repeat=2)
            }
            order = [
                cells[result[:, i : i + side, j : j + side].tobytes()]
                for i, j in itertools.product(range(0, 8, side), repeat=2)
            ]
            assert sorted(order) == list(range(patches))
            assert order != list(range(patches))


def test_both_grids_are_used():
    x = images(200, 8)
    results = hard_augmentation(x, PERMUTATION, rng()).numpy()
    coarse = [
        any(np.array_equal(result, shuffled(image, order)) for order in itertools.permutations(range(4)))
        for image, result in zip(x.numpy(), results, strict=True)
    ]
    assert 60 < sum(coarse) < 140


def test_jitter_alone_moves_no_pixel():
    x = images(16, 8)
    x[:, :, 4:] = x[:, :, :4]  # whatever happens to a colour happens wherever it is
    result = hard_augmentation(x, JITTER, rng())
    assert torch.equal(result[:, :, 4:], result[:, :, :4])
    assert ((result - x).abs().amax((1, 2, 3)) > 0.05).all()
    still = AugmentConfig(rotation=False, permutation=False, brightness=0, contrast=0, saturation=0, hue=0)
    torch.testing.assert_close(hard_augmentation(x, still, rng()), x, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "change"), [("brightness", 0.5), ("contrast", 0.5), ("saturation", 0.5), ("hue", 0.1)]
)
def test_each_strength_of_the_jitter_is_kept(name, change):
    """One strength at a time, on images from which the factor can be read off."""
    strengths = dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0.0) | {name: change}
    config = AugmentConfig(rotation=False, permutation=False, **strengths)
    n = 500
    x = torch.empty(n, 3, 1, 2)
    x[:] = torch.tensor([[0.5, 0.4], [0.4, 0.5], [0.4, 0.4]])[:, None]
    result = hard_augmentation(x, config, rng())
    if name == "brightness":
        amount = result.mean((1, 2, 3)) / x.mean((1, 2, 3)) - 1
    elif name == "contrast":
        amount = (result[:, 0, 0, 0] - result[:, 0, 0, 1]) / 0.1 - 1
    elif name == "saturation":
        amount = (result.amax(1) - result.amin(1))[:, 0, 0] / 0.1 - 1
    else:  # red turns towards yellow (green rises) or towards magenta (blue rises), by 6 * turns of the chroma
        amount = (result[:, 1] - result[:, 2])[:, 0, 0] / 0.1 / 6
    assert amount.abs().max() <= change + 1e-4
    assert amount.min() < -0.9 * change
    assert amount.max() > 0.9 * change
    assert abs(amount.mean()) < 0.12 * change
