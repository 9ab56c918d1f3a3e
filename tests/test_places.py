"""Features at places, their Gaussians and their judges, against plain references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import empirical_covariance
from torch.distributions import Independent, Normal

from attnad.features.backbones import EfficientNetLite0
from attnad.features.places import (
    PatchDiscriminator,
    PatchFeatures,
    PatchGaussians,
    distance,
    fit_gaussians,
    train_discriminator,
)
from attnad.models import ResNet18


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def features(n: int = 40, c: int = 5, side: int = 3, seed: int = 0) -> torch.Tensor:
    """Correlated features whose mean and covariance differ from place to place: [n, c, side, side]."""
    generator = rng(seed)
    mix = torch.randn(side * side, c, c, generator=generator)
    shift = torch.randn(side * side, 1, c, generator=generator)
    f = torch.randn(side * side, n, c, generator=generator) @ mix + shift
    return f.permute(1, 2, 0).reshape(n, c, side, side)


@pytest.fixture(scope="module")
def resnet() -> ResNet18:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ResNet18(4)


# --- features --------------------------------------------------------------------------------------------------------


def average(f: np.ndarray) -> np.ndarray:
    """The mean over what there is of each 3 x 3 neighbourhood, by a loop."""
    h, w = f.shape[-2:]
    found = np.empty_like(f)
    for i in range(h):
        for j in range(w):
            found[..., i, j] = f[..., max(0, i - 1) : i + 2, max(0, j - 1) : j + 2].mean((-2, -1))
    return found


def test_levels_are_the_encoders_averaged_over_neighbours(resnet):
    x = torch.rand(2, 3, 128, 128, generator=rng())
    found = PatchFeatures(resnet)(x)
    with torch.no_grad():
        raw = [f.numpy() for f in resnet.pyramid(x)]
    fine = average(raw[0]).reshape(2, 4, 32, 2, 32, 2).mean((3, 5))
    for level, wanted in zip(found, (fine, average(raw[1]), average(raw[2]), raw[3]), strict=True):
        np.testing.assert_allclose(level, wanted, rtol=1e-4, atol=1e-5)
    assert [128 // f.shape[-1] for f in found] == list(PatchFeatures(resnet).strides)


def test_joined_levels_are_one_of_stride_8(resnet):
    x = torch.rand(1, 3, 128, 128, generator=rng())
    together = PatchFeatures(resnet, per_level=False)
    (found,) = together(x)
    with torch.no_grad():
        fine, middle, coarse = (average(f.numpy()) for f in resnet.pyramid(x)[1:])
    assert found.shape == (1, 8 + 16 + 32, 16, 16)
    assert (together.strides, together.widths) == ((8,), [56])
    np.testing.assert_allclose(found[:, :8], fine.reshape(1, 8, 16, 2, 16, 2).mean((3, 5)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[:, 8:24], middle, rtol=1e-4, atol=1e-5)
    corners = found[:, 24:, ::15, ::15]  # bilinear enlargement leaves the corners as they are
    np.testing.assert_allclose(corners, coarse[:, :, ::7, ::7], rtol=1e-4, atol=1e-5)


def test_small_images_are_enlarged_first(resnet):
    x = torch.rand(2, 3, 32, 32, generator=rng())
    large = torch.nn.functional.interpolate(x, size=(128, 128), mode="bilinear")
    for small, wanted in zip(PatchFeatures(resnet)(x), PatchFeatures(resnet)(large), strict=True):
        assert torch.equal(small, wanted)
    assert PatchFeatures(resnet, min_side=32)(x)[0].shape[-1] == 8


def test_so_many_channels_are_kept_and_the_seed_says_which(resnet):
    x = torch.rand(1, 3, 128, 128, generator=rng())
    every = PatchFeatures(resnet)(x)
    few = PatchFeatures(resnet, channels=6, seed=1)
    assert few.widths == [4, 6, 6, 6]
    for i, (level, whole) in enumerate(zip(few(x), every, strict=True)):
        assert torch.equal(level, whole[:, getattr(few, f"kept{i}")])
    assert torch.equal(PatchFeatures(resnet, channels=6, seed=1).kept3, few.kept3)
    assert not torch.equal(PatchFeatures(resnet, channels=6, seed=2).kept3, few.kept3)


def test_the_encoder_stays_as_it_is(resnet):
    before = {name: value.clone() for name, value in resnet.state_dict().items()}
    frozen = PatchFeatures(resnet).train()
    frozen(torch.rand(4, 3, 128, 128, generator=rng()))
    assert not any(module.training for module in frozen.modules())
    assert not any(p.requires_grad for p in frozen.parameters())
    assert all(torch.equal(value, before[name]) for name, value in resnet.state_dict().items())


def test_both_encoders_say_their_channels(resnet):
    x = torch.rand(1, 3, 64, 64, generator=rng())
    for encoder in (resnet, EfficientNetLite0()):
        pyramid = encoder.eval().pyramid(x)
        assert [f.shape[1] for f in pyramid] == list(encoder.channels)
        assert [64 // f.shape[-1] for f in pyramid] == [2, 4, 8, 16]
        assert torch.equal(pyramid[-1], encoder(x))


# --- Gaussians -------------------------------------------------------------------------------------------------------


def test_distances_are_mahalanobis_of_each_place():
    """Against scikit-learn's covariance and SciPy's distance, with the shrinking and the ridge written out."""
    f, new, shrink, ridge = features(), features(6, seed=1), 0.3, 0.01
    (places,) = fit_gaussians([[f]], shrink=shrink, ridge=ridge)
    found = distance(places(new)).numpy()
    values = f.flatten(2).numpy().astype(np.float64)  # [n, c, p]
    covariances = np.stack([empirical_covariance(values[:, :, p]) for p in range(9)])
    spread = values.transpose(0, 2, 1).reshape(-1, 5).std(0)  # of each channel, over all places and images
    for p in range(9):
        covariance = (1 - shrink) * covariances[p] + shrink * covariances.mean(0) + ridge * np.diag(spread**2)
        inverse, mean = np.linalg.inv(covariance), values[:, :, p].mean(0)
        for i, image in enumerate(new.flatten(2).numpy()):
            wanted = mahalanobis(image[:, p], mean, inverse) / math.sqrt(5)
            assert found[i, 0].reshape(-1)[p] == pytest.approx(wanted, rel=1e-3)


def test_whitened_features_of_what_was_fitted_are_standard():
    f = features(400)
    (places,) = fit_gaussians([[f]], shrink=0.0, ridge=1e-9)
    white = places(f).flatten(2)  # [n, c, p]
    torch.testing.assert_close(white.mean(0), torch.zeros(5, 9), atol=1e-3, rtol=0)
    for p in range(9):
        torch.testing.assert_close(torch.cov(white[:, :, p].T, correction=0), torch.eye(5), atol=1e-2, rtol=0)
    assert distance(places(f)).square().mean() == pytest.approx(1, abs=1e-2)


def test_batches_do_not_matter():
    f, other = features(), features(seed=3, side=2)
    whole = fit_gaussians([[f, other]], shrink=0.5, ridge=0.002)
    parts = fit_gaussians(([f[i : i + 7], other[i : i + 7]] for i in range(0, 40, 7)), shrink=0.5, ridge=0.002)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a(f if a.side == 3 else other), b(f if a.side == 3 else other), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_images_and_dead_channels_give_finite_distances(n):
    f = features(n)
    f[:, 2] = 0.25  # never varies
    (places,) = fit_gaussians([[f]], shrink=0.5, ridge=0.002)
    found = distance(places(features(4, seed=5)))
    assert found.isfinite().all()
    with pytest.raises(ValueError, match="no normal image to fit"):
        fit_gaussians([], shrink=0.5, ridge=0.002)


def test_large_means_cost_no_precision():
    """The sums are taken about the first batch's mean: a mean of ten thousand deviations changes nothing."""
    f = features(64)
    (near,) = fit_gaussians([[f]], shrink=0.5, ridge=0.002)
    (far,) = fit_gaussians([[f[:16] + 10_000], [f[16:] + 10_000]], shrink=0.5, ridge=0.002)
    torch.testing.assert_close(far(f + 10_000), near(f), rtol=0, atol=0.02)


# --- judges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0])
def test_a_judge_starts_as_the_best_answer_for_gaussians(noise):
    z = torch.randn(200, 6, generator=rng())
    judge = PatchDiscriminator(6, noise, 8).eval()
    real = Independent(Normal(torch.zeros(6), torch.ones(6)), 1)
    fake = Independent(Normal(torch.zeros(6), torch.full((6,), math.sqrt(1 + noise**2))), 1)
    torch.testing.assert_close(judge(z), real.log_prob(z) - fake.log_prob(z), rtol=1e-4, atol=1e-4)
    white = torch.randn(2, 6, 3, 4, generator=rng())
    torch.testing.assert_close(judge.distance(white), distance(white), rtol=1e-4, atol=1e-4)


def teach(
    real: torch.Tensor, *, rate: float = 1e-3, steps: int = 300, seed: int = 0
) -> tuple[PatchDiscriminator, float, float]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        judge = PatchDiscriminator(real.shape[1], 1.0, 32)
    values = train_discriminator(judge, real, 1.0, steps=steps, batch=1024, learning_rate=rate, generator=rng(seed))
    return judge, *values


def ring(n: int) -> torch.Tensor:
    """Features on a circle: mean 0, covariance 1, and nothing near the mean."""
    turn = 2 * math.pi * torch.rand(n, generator=rng())
    return math.sqrt(2) * torch.stack([turn.cos(), turn.sin()], 1)


def test_a_judge_learns_what_is_not_gaussian():
    real = ring(20_000)
    judge, before, after = teach(real, rate=1e-2, steps=600)
    assert after < before - 0.05
    middle, on_ring = torch.zeros(1, 2, 1, 1), real[:100, :, None, None]
    assert distance(middle).max() < distance(on_ring).min()  # to the Gaussian the empty middle is the most normal
    assert judge.distance(middle).min() > judge.distance(on_ring).mean()
    assert not judge.training


def test_of_gaussian_features_there_is_nothing_to_learn():
    judge, before, after = teach(torch.randn(20_000, 4, generator=rng()))
    assert after == pytest.approx(before, abs=0.02)
    white = torch.randn(1, 4, 20, 20, generator=rng(9))
    torch.testing.assert_close(judge.distance(white), distance(white), atol=0.25, rtol=0)


def test_a_judge_learns_from_other_fakes_what_noise_does_not_show():
    generator = rng()
    ring = torch.nn.functional.normalize(torch.randn(4000, 2, generator=generator)) * 2**0.5  # whitened: covariance 1
    middle = 0.1 * torch.randn(1000, 2, generator=generator)  # no distance from the mean shows these
    for share in (0.0, 0.5, 1.0):
        torch.manual_seed(0)
        judge = PatchDiscriminator(2, 1.5, 32)
        before, after = train_discriminator(
            judge, ring.half(), 1.5, steps=200, batch=512, learning_rate=1e-2, generator=generator,
            others=middle.half(), share=share,
        )  # fmt: skip
        assert after < before
        with torch.no_grad():
            told = (judge(middle) < judge(ring).quantile(0.05)).float().mean()
        assert (told > 0.95) == (share > 0), share


def test_a_judge_without_other_fakes_has_noise():
    losses = []
    for others in (None, torch.empty(0, 3)):
        torch.manual_seed(0)
        more = {"steps": 3, "batch": 16, "learning_rate": 1e-2, "generator": rng(1)}
        real = torch.randn(50, 3, generator=rng(2))
        losses.append(train_discriminator(PatchDiscriminator(3, 1.5, 8), real, 1.5, others=others, share=0.5, **more))
    assert losses[0] == losses[1]


def test_training_that_fails_leaves_the_start():
    judge, before, after = teach(ring(5_000), rate=50.0, steps=20)
    assert not after < before
    white = torch.randn(1, 2, 8, 8, generator=rng())
    torch.testing.assert_close(judge.distance(white), distance(white), rtol=1e-4, atol=1e-4)


def test_the_same_generator_gives_the_same_judge():
    one, two, other = (teach(ring(2_000), steps=20, seed=seed)[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert not all(torch.equal(value, other[name]) for name, value in one.items())


def test_half_precision_features_teach_the_same():
    real = ring(4_000)
    judge, _, _ = teach(real.half(), steps=50)
    other, _, _ = teach(real, steps=50)
    white = torch.randn(1, 2, 8, 8, generator=rng())
    torch.testing.assert_close(judge.distance(white), other.distance(white), atol=0.05, rtol=0)


def test_places_load_as_they_were():
    (fitted,) = fit_gaussians([[features()]], shrink=0.5, ridge=0.002)
    empty = PatchGaussians(5, 3)
    empty.load_state_dict(fitted.state_dict())
    f = features(3, seed=2)
    assert torch.equal(empty(f), fitted(f))
