"""AUPRO against values by hand, an independent implementation and properties."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made import random_set
from skimage.measure import label as label_regions
from sklearn.metrics import roc_auc_score

from attnad.metrics import (
    aupro,
    auroc,
)

sampled = settings(max_examples=60)


def aupro_by_thresholds(masks, maps, max_fpr):
    regions = []  # (image, pixels of the region)
    for i, mask in enumerate(masks):
        labelled = label_regions(mask, connectivity=2)
        regions += [(i, labelled == k) for k in range(1, labelled.max() + 1)]
    curve = [(0.0, 0.0)]
    for t in sorted(set(maps.ravel().tolist()), reverse=True):
        pro = sum((maps[i][pixels] >= t).mean() for i, pixels in regions) / len(regions)
        curve.append(((maps[masks == 0] >= t).mean(), pro))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(curve):
        if x1 > max_fpr:  # the segment in which the limit lies: interpolate, then stop
            y1 = y0 + (y1 - y0) * (max_fpr - x0) / (x1 - x0)
            x1 = max_fpr
        area += (x1 - x0) * (y0 + y1) / 2
        if x1 == max_fpr:
            break
    return area / max_fpr


@st.composite
def masks_and_maps(draw):
    seed, levels = draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([1, 2, 4, 30, 10_000]))
    return random_set(seed, levels)


# AUPRO.


def test_aupro_interpolates_at_the_limit():
    # Four defect-free pixels and one defective. Curve: (0, 0), (1/4, 0), then a tie of both kinds (2/4, 1).
    # At 0.3 the line from (1/4, 0) to (1/2, 1) has reached 0.2; cutting at the last point before 0.3 would give 0.
    masks, maps = [[[0, 1, 0, 0, 0]]], [[[9, 5, 5, 1, 0]]]
    assert aupro(masks, maps) == pytest.approx(0.05 * 0.2 / 2 / 0.3)
    assert aupro(masks, maps, max_fpr=0.25) == 0
    assert aupro(masks, maps, max_fpr=1) == pytest.approx(0.25 / 2 + 0.5)


def test_aupro_climbs_at_the_limit_itself():
    # The region enters at FPR exactly 1/4: a vertical step at the limit has no area below it.
    masks, maps = [[[0, 1, 0, 0, 0]]], [[[9, 5, 4, 1, 0]]]
    assert aupro(masks, maps, max_fpr=0.25) == 0
    assert aupro(masks, maps, max_fpr=0.5) == pytest.approx(0.5)


def test_aupro_weighs_regions_alike_whatever_their_size_and_image():
    # Image 0: a region of 4 pixels found before any false positive. Image 1: two regions of 1 pixel, never found
    # before the limit. Pooled: 1/3. By pixels it would be 4/6, by images (1 + 0) / 2.
    masks = np.zeros((2, 4, 10), dtype=int)
    masks[0, 1:3, 1:3] = 1
    masks[1, 0, 0] = masks[1, 0, 5] = 1
    maps = np.where(masks == 1, -1.0, 0.0)
    maps[0][masks[0] == 1] = 1
    maps[~masks.astype(bool)] = np.linspace(0.1, 0.9, 80 - 6)  # distinct: no tie reaches across the limit
    assert aupro(masks, maps) == pytest.approx(1 / 3)


def test_aupro_joins_diagonal_neighbours_and_never_two_images():
    # A diagonal pair is one region; the same pixel in the next image is another. Only that other one is found.
    masks = np.zeros((2, 3, 3), dtype=bool)
    masks[0, 0, 0] = masks[0, 1, 1] = masks[1, 1, 1] = True
    maps = np.zeros((2, 3, 3))
    maps[masks] = -1
    maps[1, 1, 1] = 2
    maps[~masks] = np.linspace(0, 1, 15)
    assert aupro(masks, maps) == pytest.approx(1 / 2)


@pytest.mark.parametrize("levels", [2, 5, 40, 100_000])
@pytest.mark.parametrize("max_fpr", [0.05, 0.3, 1.0])
def test_aupro_matches_an_independent_implementation(levels, max_fpr):
    for seed in range(4):
        masks, maps = random_set(seed, levels)
        assert aupro(masks, maps, max_fpr) == pytest.approx(aupro_by_thresholds(masks, maps, max_fpr))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.uint8])
@pytest.mark.parametrize("max_fpr", [0.05, 0.3, 1.0])
def test_aupro_matches_scikit_learn_on_many_pixels(dtype, max_fpr):
    rng = np.random.default_rng(3)
    masks = rng.random((5, 64, 64)) < 0.05
    maps = np.clip(rng.normal(20, 12, masks.shape) + 15 * masks, 0, 127).astype(dtype)
    weights = np.ones(masks.shape)  # of one region together as much as of any other
    for mask, weight in zip(masks, weights, strict=True):
        regions = label_regions(mask, connectivity=2)
        weight[mask] /= np.bincount(regions.ravel())[regions[mask]]
    area = roc_auc_score(masks.ravel(), maps.ravel(), sample_weight=weights.ravel(), max_fpr=max_fpr)
    chance = max_fpr / 2  # which scikit-learn stretches to 1/2, and leaves 1 where it is
    assert aupro(masks, maps, max_fpr) == pytest.approx(chance + (2 * area - 1) * (1 - chance), abs=1e-12)


def test_aupro_of_one_pixel_regions_to_the_end_is_the_pixel_auroc():
    masks = np.zeros((2, 9, 9), dtype=bool)
    masks[:, ::2, ::2] = True
    maps = np.random.default_rng(1).integers(0, 9, masks.shape) + 2 * masks
    assert aupro(masks, maps, max_fpr=1) == pytest.approx(auroc(masks, maps))


@sampled
@given(masks_and_maps(), st.sampled_from([0.01, 0.3, 1.0]))
def test_aupro_properties(data, max_fpr):
    masks, maps = data
    value = aupro(masks, maps, max_fpr)
    assert 0 <= value <= 1 + 1e-12
    assert aupro(masks, masks.astype(float), max_fpr) == pytest.approx(1)
    assert aupro(masks, np.full(masks.shape, 4.0), max_fpr) == pytest.approx(max_fpr / 2)
    assert aupro(masks, 5 * maps.astype(float) ** 3 - 2, max_fpr) == pytest.approx(value)
    order = np.random.default_rng(0).permutation(len(masks))
    assert aupro(masks[order], maps[order], max_fpr) == pytest.approx(value)
    # A good image below all other scores only adds defect-free pixels: it squeezes the curve to the left.
    more_masks = np.concatenate([masks, np.zeros_like(masks[:1])])
    low = np.concatenate([maps, np.full_like(maps[:1], maps.min() - 1)])
    assert aupro(more_masks, low, max_fpr) >= value - 1e-12
    # One above all others takes 1/7 or more of the false-positive rate before anything is found.
    high = np.concatenate([maps, np.full_like(maps[:1], maps.max() + 1)])
    assert aupro(more_masks, high, max_fpr) <= max(0, 1 - 1 / 7 / max_fpr) + 1e-12
