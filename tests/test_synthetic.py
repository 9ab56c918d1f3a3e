"""The check without labelled defects: what it says of detectors that see all, nothing, or the image alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attnad.augmentations import random_parts, synthesize
from attnad.config import AugmentConfig
from attnad.run.region import Region
from attnad.run.self_check import ANOMALIES, MOST, learned_enough, synthetic_check
from attnad.score import Scores
from attnad.train import to_float


def photographs(n: int) -> Tensor:
    """Images of noise, every pixel of which differs from every other image's."""
    return torch.randint(0, 256, (n, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def knows(normal: Tensor, *, maps: bool = True):
    """A detector that compares an image with the normal one most like it."""

    def score(images: Tensor) -> Scores:
        away = (images[:, None].float() - normal.float()).abs().mean(2)  # [n, k, s, s]
        nearest = away[torch.arange(len(images)), away.mean((2, 3)).argmin(1)] / 255
        return Scores({"it": nearest.amax((1, 2))}, nearest if maps else None)

    return score


def blind(images: Tensor) -> Scores:
    return Scores({"it": torch.full((len(images),), 0.4775)}, torch.full((len(images), 32, 32), 0.4775))


@pytest.mark.parametrize(("n", "synthetic"), [(1, 40), (7, 42), (40, 40), (MOST + 1, MOST)])
def test_a_detector_that_sees_all_finds_all(n, synthetic):
    normal = photographs(n)
    check = synthetic_check(knows(normal), "it", normal, threshold=0.01, seed=0)
    assert check["n"] == synthetic
    assert check["image_auroc"] == check["found"] == 1
    assert check["pixel_auroc"] > 0.99  # a pixel of the filling may be as it was
    assert learned_enough(check)


def test_a_map_that_is_the_same_everywhere_has_learned_nothing():
    check = synthetic_check(blind, "it", photographs(5), threshold=0.4775, seed=0)
    assert check["image_auroc"] == check["pixel_auroc"] == 0.5
    assert check["found"] == 0
    assert not learned_enough(check)


def test_good_images_with_a_blind_map_are_not_enough():
    normal = photographs(5)

    def half_blind(images: Tensor) -> Scores:
        return Scores(knows(normal)(images).image, blind(images).maps)

    check = synthetic_check(half_blind, "it", normal, threshold=0.01, seed=0)
    assert check["image_auroc"] == 1
    assert not learned_enough(check)


def test_without_maps_only_images_are_judged():
    normal = photographs(5)
    check = synthetic_check(knows(normal, maps=False), "it", normal, threshold=0.01, seed=0)
    assert check["pixel_auroc"] is None
    assert learned_enough(check)


def test_the_same_seed_draws_the_same_anomalies_and_no_global_generator_is_touched():
    seen, normal = [], photographs(3)

    def watched(images: Tensor) -> Scores:
        seen.append(images)
        return blind(images)

    before = torch.get_rng_state()
    for seed in (0, 0, 1):
        synthetic_check(watched, "it", normal, threshold=0, seed=seed)
    assert torch.equal(before, torch.get_rng_state())
    drawn = seen[1::2]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert all(torch.equal(good, normal) for good in seen[::2])
    assert (drawn[0] != normal.repeat(14, 1, 1, 1)).flatten(1).any(1).all(), "an image without an anomaly"


def region(*boxes: tuple[int, int, int, int], size: int = 32) -> Tensor:
    mask = torch.zeros(size, size, dtype=torch.bool)
    for top, left, bottom, right in boxes:
        mask[top:bottom, left:right] = True
    return mask


REGIONS = {  # of 1,024 pixels
    "all": region((0, 0, 32, 32)),
    "a twentieth": region((3, 20, 10, 27)),
    "a line": region((15, 0, 16, 32)),
    "a short line": region((4, 31, 9, 32)),
    "a frame": region((0, 0, 32, 32)) & ~region((1, 1, 31, 31)),
    "two corners": region((0, 0, 3, 3), (29, 29, 32, 32)),
    "a slant": torch.eye(32, dtype=torch.bool),
    "three pixels": region((9, 9, 10, 12)),
    "one pixel": region((9, 9, 10, 10)),
}


@pytest.mark.parametrize("name", REGIONS)
def test_anomalies_are_drawn_and_counted_inside_a_region(name):
    """Who sees all finds all, and who sees nothing nothing, however small the region is."""
    mask, normal, seen = REGIONS[name], photographs(9), []
    judged = Region(mask, (32, 32), "")

    def inside(score):
        def watched(images: Tensor) -> Scores:
            seen.append(images)
            found = score(images)
            return judged.inside(Scores({"peak": found.image["it"]}, found.maps))

        return watched

    check = synthetic_check(inside(knows(normal)), "peak", normal, threshold=0.001, seed=0, region=mask)
    changed = (seen[1] != normal.repeat(5, 1, 1, 1)).any(1)
    assert not changed[:, ~mask].any()
    assert changed.flatten(1).any(1).all(), "an image without an anomaly"
    assert check["image_auroc"] == check["found"] == 1
    assert check["pixel_auroc"] is None if name == "one pixel" else check["pixel_auroc"] > 0.99
    assert learned_enough(check)
    assert not learned_enough(synthetic_check(inside(blind), "peak", normal, threshold=1, seed=0, region=mask))


@pytest.mark.parametrize("name", ["a twentieth", "a line", "a frame", "three pixels"])
def test_rectangles_in_a_region_have_the_area_that_was_drawn_and_leave_half_of_it(name):
    mask, config = REGIONS[name], AugmentConfig(box_area=(0.01, 0.0101))
    parts = random_parts(200, mask, config, torch.Generator().manual_seed(0))[:, 0]
    assert set(parts.sum((1, 2)).tolist()) == {min(10, mask.sum().item() // 2)}
    assert (parts.amax(0) > 0).equal(mask), "a place of the region that nothing is drawn at"


def test_without_a_region_the_same_is_drawn_as_before():
    normal, seen = photographs(MOST), []

    def watched(images: Tensor) -> Scores:
        seen.append(images)
        return blind(images)

    synthetic_check(watched, "it", normal, threshold=0, seed=3)
    x_ano, _ = synthesize(to_float(normal), ANOMALIES, torch.Generator().manual_seed(3))
    assert torch.equal(seen[1], (x_ano * 255).round().to(torch.uint8))
