"""Equations (1) to (6) against torch.distributions, float64 NumPy and values worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.distributions import Independent, Normal
from torch.distributions import kl_divergence as reference_kl

from attnad.losses import (
    adversarial_loss,
    anomaly_adversarial_loss,
    attention_loss,
    generator_loss,
    kl_divergence,
    masked_features,
    non_saturating_loss,
    reconstruction_nll,
    total_loss,
)

GAMES = [adversarial_loss, anomaly_adversarial_loss]
logits = st.lists(st.floats(-30, 30), min_size=1, max_size=8)


def log_sigmoid(x) -> np.ndarray:
    return np.log(1 / (1 + np.exp(-np.asarray(x, dtype=np.float64))))


def randn(*shape: int, seed: int = 0, requires_grad: bool = False) -> torch.Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.requires_grad_(requires_grad)


# Equations (1) and (2)


@pytest.mark.parametrize("game", GAMES)
@given(real=logits, fake=logits)
def test_value_of_the_game(game, real, fake):
    expected = log_sigmoid(real).mean() + log_sigmoid(-np.asarray(fake)).mean()  # log(1 - D) = log sigmoid(-logit)
    value = game(torch.tensor(real, dtype=torch.float64), torch.tensor(fake, dtype=torch.float64))
    # softplus is cut to its argument above 20, which is off by less than exp(-20).
    assert value.item() == pytest.approx(expected, rel=1e-9, abs=1e-8)
    assert value <= 0


@pytest.mark.parametrize("game", GAMES)
def test_value_of_the_game_by_hand(game):
    undecided = torch.zeros(3, 1)
    assert game(undecided, undecided).item() == pytest.approx(-2 * math.log(2))
    # D = 3/4 on the real pair; D = 1/2 and 1/4 on the fakes: log 3/4 + (log 1/2 + log 3/4) / 2.
    value = game(torch.tensor([math.log(3)]), torch.tensor([0.0, -math.log(3)]))
    assert value.item() == pytest.approx(1.5 * math.log(3 / 4) + 0.5 * math.log(1 / 2), rel=1e-6)


@pytest.mark.parametrize("game", GAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_game_stays_finite(game, dtype):
    for logit in (-1e4, 1e4):
        real = torch.tensor([logit], dtype=dtype, requires_grad=True)
        fake = torch.tensor([-logit], dtype=dtype, requires_grad=True)
        value = game(real, fake)
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(real.grad).all()
        assert torch.isfinite(fake.grad).all()
        assert value.item() == pytest.approx(2 * min(logit, 0), rel=1e-2)


def test_the_discriminator_raises_the_value_and_is_right_to():
    """Real pairs come first in the signature: the value grows with their logits and falls with the fakes'."""
    for game in GAMES:
        real, fake = randn(5, requires_grad=True), randn(5, seed=1, requires_grad=True)
        game(real, fake).backward()
        assert (real.grad > 0).all()
        assert (fake.grad < 0).all()


@given(fake=logits)
def test_non_saturating_value(fake):
    value = non_saturating_loss(torch.tensor(fake, dtype=torch.float64))
    assert value.item() == pytest.approx(-log_sigmoid(fake).mean(), rel=1e-9, abs=1e-8)
    assert value >= 0


def test_non_saturating_loss_pulls_the_same_way_as_the_game():
    saturating, other = (torch.linspace(-12, 12, 49, requires_grad=True) for _ in range(2))
    adversarial_loss(torch.zeros(49), saturating).backward()  # the generator lowers this value ...
    non_saturating_loss(other).backward()  # ... or this loss
    assert (saturating.grad < 0).all()
    assert (other.grad < 0).all()
    # Where D is sure of a fake, eq. (1)'s gradient vanishes and the other's does not.
    assert saturating.grad[0].abs() < 1e-4 / 49
    assert other.grad[0].abs() > 0.99 / 49
    assert torch.isfinite(non_saturating_loss(torch.tensor([1e4, -1e4])))


# Equation (3)


def test_reconstruction_is_a_gaussian_likelihood_up_to_its_constant():
    x, x_re = randn(2, 3, 4, 4), randn(2, 3, 4, 4, seed=1)
    expected = -Normal(x_re, 1).log_prob(x).mean() - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(reconstruction_nll(x, x_re), expected)
    assert reconstruction_nll(torch.zeros(1, 1, 1, 2), torch.tensor([1.0, 3.0]).reshape(1, 1, 1, 2)).item() == 2.5


def test_kl_divergence_is_that_of_torch_distributions():
    mean, log_variance = randn(2, 3, 4, 5), randn(2, 3, 4, 5, seed=1)
    posterior = Normal(mean, (0.5 * log_variance).exp())
    expected = reference_kl(posterior, Normal(torch.zeros_like(mean), torch.ones_like(mean))).mean()
    torch.testing.assert_close(kl_divergence(mean, log_variance), expected)
    # The whole latent's divergence, as the paper writes it, is the number of its elements times ours (D5).
    prior = Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), 3)
    whole = reference_kl(Independent(posterior, 3), prior).mean()
    torch.testing.assert_close(kl_divergence(mean, log_variance) * mean[0].numel(), whole)


def test_kl_divergence_is_zero_at_the_prior_only():
    zero = torch.zeros(2, 3, 1, 1)
    assert kl_divergence(zero, zero).item() == 0
    for change in (-0.5, 0.5):
        assert kl_divergence(zero + change, zero) > 0
        assert kl_divergence(zero, zero + change) > 0
    assert kl_divergence(zero + 2, zero).item() == pytest.approx(2)  # mean^2 / 2
    assert kl_divergence(zero, zero + math.log(4)).item() == pytest.approx((4 - 1 - math.log(4)) / 2)


def test_generator_loss_is_the_weighted_sum():
    x, x_re, mean, log_variance = (randn(2, 3, 4, 4, seed=seed) for seed in range(4))
    r, kl = reconstruction_nll(x, x_re), kl_divergence(mean, log_variance)
    torch.testing.assert_close(generator_loss(x, x_re, mean, log_variance), r + kl)
    torch.testing.assert_close(generator_loss(x, x_re, mean, log_variance, kl_weight=0.25), r + 0.25 * kl)
    torch.testing.assert_close(generator_loss(x, x_re, mean, log_variance, kl_weight=0), r)


@pytest.mark.parametrize("copies", [2, 3])
def test_a_loss_means_the_same_for_more_images_and_larger_ones(copies):
    """Means, not sums (D5): repeating the batch or tiling the image changes no loss."""
    x, x_re = randn(2, 3, 4, 4), randn(2, 3, 4, 4, seed=1)
    for loss in (reconstruction_nll, kl_divergence, lambda a, b: attention_loss(a, b, b, a)):
        for repeats in ((copies, 1, 1, 1), (1, 1, copies, copies)):
            torch.testing.assert_close(loss(x.repeat(repeats), x_re.repeat(repeats)), loss(x, x_re))


# Equation (4)


def test_attention_loss_by_hand():
    nor = torch.tensor([1.0, 0.5, 0.0, 1.0]).reshape(1, 1, 2, 2)  # errors from ones: 0, 1/2, 1, 0
    ano = torch.tensor([0.5, 1.0, 1.0, 1.0]).reshape(1, 1, 2, 2)
    target = torch.tensor([0.0, 1.0, 1.0, 0.0]).reshape(1, 1, 2, 2)  # errors: 1/2, 0, 0, 1
    value = attention_loss(nor, torch.ones(1, 1, 2, 2), ano, target)
    assert value.item() == (0.25 + 1) / 4 + (0.25 + 1) / 4
    one, zero = torch.ones(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    assert attention_loss(one, one, zero, zero).item() == 0
    assert attention_loss(zero, one, zero, zero).item() == 1  # each term is weighted alike,
    assert attention_loss(one, one, one, zero).item() == 1
    assert attention_loss(zero, one, one[:1], zero[:1]).item() == 2  # whatever the sizes of its batches


# Equation (5)


def test_total_loss_weighs_the_terms_in_the_papers_order():
    terms = [torch.tensor(value) for value in (1.0, 10.0, 100.0, 1000.0)]
    assert total_loss(*terms, weights=(1, 1, 1, 1)).item() == 1111
    assert total_loss(*terms, weights=(2, 3, 4, 0.5)).item() == 2 + 30 + 400 + 500


def test_a_term_of_weight_zero_is_left_out():
    good, nan = torch.tensor(3.0, requires_grad=True), torch.tensor(math.nan, requires_grad=True)
    for place in range(4):
        terms, weights = [good] * 4, [1.0] * 4
        terms[place], weights[place] = nan, 0.0
        good.grad = nan.grad = None
        value = total_loss(*terms, weights=tuple(weights))
        value.backward()
        assert value.item() == 9
        assert good.grad.item() == 3
        assert nan.grad is None
    assert math.isnan(total_loss(good, nan, good, good, weights=(1, 1, 1, 1)).item())
    with pytest.raises(ValueError, match=r"shorter|longer"):
        total_loss(good, good, good, good, weights=(1, 1, 1))


# Equation (6)


@pytest.mark.parametrize(
    ("features", "attention"), [((4, 4), (4, 4)), ((4, 4), (8, 8)), ((2, 3), (8, 9)), ((1, 1), (5, 7))]
)
def test_masked_features_against_a_loop(features, attention):
    f_img, a_gen = randn(2, 3, *features), torch.sigmoid(randn(2, 1, *attention, seed=1))
    f, a = f_img.numpy(), a_gen.numpy()
    expected = np.empty_like(f)
    down, across = attention[0] // features[0], attention[1] // features[1]
    for n, c, i, j in np.ndindex(*f.shape):
        under = a[n, 0, i * down : (i + 1) * down, j * across : (j + 1) * across]
        expected[n, c, i, j] = f[n, c, i, j] * under.mean()
    np.testing.assert_allclose(masked_features(f_img, a_gen), expected, rtol=1e-12)


def test_masked_features_keeps_normal_and_removes_anomalous_features():
    f_img = randn(2, 3, 4, 4)
    torch.testing.assert_close(masked_features(f_img, torch.ones(2, 1, 8, 8).double()), f_img, rtol=0, atol=0)
    assert masked_features(f_img, torch.zeros(2, 1, 8, 8).double()).abs().max() == 0


@pytest.mark.parametrize("attention", [(6, 8), (8, 6), (2, 2)])
def test_masked_features_refuses_sizes_that_do_not_divide(attention):
    with pytest.raises(ValueError, match=rf"{attention[0]}x{attention[1]}.*4x4"):
        masked_features(torch.ones(1, 3, 4, 4), torch.ones(1, 1, *attention))


# Gradients


@pytest.mark.parametrize(
    ("loss", "shapes"),
    [
        (adversarial_loss, [(3,), (2,)]),
        (non_saturating_loss, [(3, 1)]),
        (reconstruction_nll, [(2, 1, 2, 2)] * 2),
        (generator_loss, [(1, 2, 2, 1)] * 4),
        (attention_loss, [(2, 1, 2, 1)] * 4),
        (lambda *terms: total_loss(*terms, weights=(1, 2, 0, 3)), [()] * 4),
        (masked_features, [(1, 2, 1, 2), (1, 1, 2, 4)]),
    ],
)
def test_gradients(loss, shapes):
    assert gradcheck(loss, [randn(*shape, seed=seed, requires_grad=True) for seed, shape in enumerate(shapes)])
