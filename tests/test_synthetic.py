"""The check without labelled defects: what it says of detectors that see all, nothing, or the image alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attnad.score import Scores
from attnad.synthetic import MOST, learned_enough, synthetic_check


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
