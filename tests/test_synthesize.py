"""Synthetic anomalies as a whole: generator, shares, shapes, and what is refused."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from made import images, rng

from attnad.augmentations import (
    cut_and_fill,
    hard_augmentation,
    permute_patches,
    rotate,
    synthesize,
)
from attnad.config import AugmentConfig

DEFAULT = AugmentConfig()
OFF = AugmentConfig(rotation=False, permutation=False, jitter=False)
ROTATION = AugmentConfig(permutation=False, jitter=False)

# Both kinds of anomaly


def test_synthesize_depends_on_its_generator_only():
    x = images(8)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    first, again, other = (synthesize(x, DEFAULT, rng(seed)) for seed in (1, 1, 2))
    torch.manual_seed(99)
    later = synthesize(x, DEFAULT, rng(1))
    torch.set_rng_state(before[0])
    synthesize(x, DEFAULT, rng(1))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert random.getstate() == before[2]
    for a, b, c, d in zip(first, again, later, other, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
        assert not torch.equal(a, d)
    assert torch.equal(x, images(8)), "the normal images were changed in place"


def test_synthesize_goes_on_from_the_generators_state():
    generator = rng()
    first, second = (synthesize(images(8), DEFAULT, generator)[0] for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("size", [4, 8, 32])
@pytest.mark.parametrize("n", [1, 32])
def test_shapes_types_and_ranges(n, size):
    for seed in range(8 if n == 1 else 1):
        x_ano, a_ano = synthesize(images(n, size), DEFAULT, rng(seed))
        assert x_ano.shape == (n, 3, size, size)
        assert a_ano.shape == (n, 1, size, size)
        assert x_ano.dtype == a_ano.dtype == torch.float32
        assert x_ano.min() >= 0
        assert x_ano.max() <= 1
        assert set(a_ano.unique().tolist()) <= {0.0, 1.0}


def test_both_kinds_of_anomaly_and_their_shares():
    n = 3000
    x = images(n, 8) * 0.9 + 0.1  # without jitter no pixel can become 0 but by zero fill
    x_ano, a_ano = synthesize(x, ROTATION, rng())
    turned = torch.stack([x.rot90(k, (2, 3)) for k in (1, 2, 3)])
    kinds = []
    for i in range(n):
        inside = (a_ano[i] == 0).expand(3, -1, -1)
        filled_by_x1 = any(torch.equal(x_ano[i][inside], t[i][inside]) for t in turned)
        if inside.all():
            kinds.append("x'")
            assert filled_by_x1
            continue
        rows, columns = inside[0].any(1).nonzero().flatten(), inside[0].any(0).nonzero().flatten()
        box = inside[0, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert box.all()
        assert box.sum() == inside[0].sum(), "the map is no rectangle"
        assert torch.equal(x_ano[i][~inside], x[i][~inside])
        zeros = not x_ano[i][inside].any()
        assert zeros != filled_by_x1
        kinds.append("x'' of zeros" if zeros else "x'' of x'")
    # Binomial standard deviations: 27 of 1500, 24 of 750.
    assert abs(kinds.count("x'") - n / 2) < 4 * 27
    assert abs(kinds.count("x'' of zeros") - n / 4) < 4 * 24
    assert abs(kinds.count("x'' of x'") - n / 4) < 4 * 24


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_whole_share(share):
    n = 2000
    _, a_ano = synthesize(images(n, 8), AugmentConfig(whole_share=share), rng())
    whole = (a_ano == 0).all(dim=(1, 2, 3)).sum().item()
    assert abs(whole - share * n) <= 4 * (n * share * (1 - share)) ** 0.5


def test_the_filling_is_the_hard_augmentation_of_the_same_image():
    """All steps on: inside its rectangle, x'' is x' of the same draw, or zeros."""
    x = images(64)
    x1 = hard_augmentation(x, DEFAULT, rng(3))
    x_ano, a_ano = synthesize(x, AugmentConfig(whole_share=0.0), rng(3))
    inside = (a_ano == 0).expand_as(x)
    zeros = (x_ano * inside).flatten(1).sum(1) == 0
    assert 10 < zeros.sum() < 54
    assert torch.equal((x_ano * inside)[~zeros], (x1 * inside)[~zeros])
    assert torch.equal(x_ano[~inside], x[~inside])


# Errors


def test_images_that_are_not_square_are_refused():
    flat = images(2, 8, 16)
    for attempt in (
        lambda: rotate(flat, torch.tensor([1, 2])),
        lambda: hard_augmentation(flat, DEFAULT, rng()),
        lambda: synthesize(flat, DEFAULT, rng()),
        lambda: synthesize(flat, OFF, rng()),
        lambda: cut_and_fill(flat, flat, torch.tensor([[0, 0, 4, 4]] * 2)),
    ):
        with pytest.raises(ValueError, match="8x16"):
            attempt()


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="30x30 images into 16"):
        permute_patches(images(1, 30), torch.arange(16)[None])
    with pytest.raises(ValueError, match="8x6 images into 16"):
        permute_patches(images(1, 8, 6), torch.arange(16)[None])
    with pytest.raises(ValueError, match="into 5 equal patches"):
        permute_patches(images(1, 10), torch.arange(5)[None])
    with pytest.raises(ValueError, match="30x30"):
        synthesize(images(1, 30), DEFAULT, rng())
    synthesize(images(1, 30), AugmentConfig(permutation=False), rng())
