"""The paper's equations (1) to (6), one pure function each: tensors in, a scalar (or, for (6), a tensor) out.

At the end two losses of recipe `map`, which stand in (4)'s place there.

Two readings are fixed here and listed in the book's deviations: every squared norm and likelihood is a mean over
batch and elements, so that a loss weight means the same at 32 and at 256 pixels (D5); the generator's side of (1) and
(2) is the non-saturating one (D6).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus


def adversarial_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Value of the game of eq. (1), E[log D(x, A_nor)] + E[log(1 - D(x_re, A_gen))]: D raises it, G lowers it.

    Takes the discriminator's logits (any shape), where D = sigmoid(logit). Returns a scalar <= 0, finite for every
    finite logit. Source: eq. (1), with log sigmoid(l) = -softplus(-l).
    """
    return -softplus(-real_logits).mean() - softplus(fake_logits).mean()


def anomaly_adversarial_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Value of the game of eq. (2), E[log D(x_ano, A_ano)] + E[log(1 - D(x_re, A_gen_ano))].

    The pair of a synthetic anomaly with its TRUE map counts as real: D learns which map belongs to which image, not
    that anomalies are fake. Arguments and range as in `adversarial_loss`. Source: eq. (2); its printed "1 - log D" is
    read as log(1 - D) (D7).
    """
    return adversarial_loss(real_logits, fake_logits)


def non_saturating_loss(fake_logits: Tensor) -> Tensor:
    """Generator's side of (1) and (2), -E[log D(fake)]: same fixed point as eq. (1), stronger gradient early on (D6).

    Takes logits of any shape; returns a scalar >= 0. Source: Goodfellow et al. 2014, section 3.
    """
    return softplus(-fake_logits).mean()


def reconstruction_nll(x: Tensor, x_re: Tensor) -> Tensor:
    """L_R of eq. (3): negative log-likelihood of x under a unit-variance Gaussian around x_re, without its constant.

    Takes [n, 3, h, w] images in [0, 1]; returns a scalar >= 0, a mean over batch and elements (D5).
    Source: section 3.2.2.
    """
    return 0.5 * (x - x_re).square().mean()


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(q(z|x) || p(z)) of eq. (3) between a diagonal Gaussian and the standard normal.

    Takes the latent mean and log-variance [n, c, h, w]; returns a scalar >= 0, a mean over batch and elements (D5).
    Source: Kingma & Welling 2014, appendix B.
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()


def generator_loss(x: Tensor, x_re: Tensor, mean: Tensor, log_variance: Tensor, *, kl_weight: float = 1.0) -> Tensor:
    """L_G of eq. (3): reconstruction plus KL divergence.

    Shapes as in `reconstruction_nll` and `kl_divergence`; returns a scalar >= 0. Source: eq. (3); the weight of the
    KL term is D8.
    """
    return reconstruction_nll(x, x_re) + kl_weight * kl_divergence(mean, log_variance)


def attention_loss(a_gen_nor: Tensor, a_nor: Tensor, a_gen_ano: Tensor, a_ano: Tensor) -> Tensor:
    """L_att of eq. (4): squared error of the attention map on normal images plus that on synthetic anomalies.

    Takes maps [n, 1, h, w] in [0, 1], generated and target; returns a scalar in [0, 2], means over batch and pixels
    (D5). Source: eq. (4).
    """
    return (a_gen_nor - a_nor).square().mean() + (a_gen_ano - a_ano).square().mean()


def total_loss(
    l_adv_ano: Tensor, l_adv: Tensor, l_g: Tensor, l_att: Tensor, *, weights: tuple[float, float, float, float]
) -> Tensor:
    """L_total of eq. (5): weighted sum of the four terms, in the paper's order.

    Takes four scalars; `weights` are (adv_ano, adv, g, att), all 1 as the paper prints it (D8). A term of weight 0 is
    left out, so a term that was not computed may be any value.
    """
    terms = zip(weights, (l_adv_ano, l_adv, l_g, l_att), strict=True)
    return torch.stack([weight * term for weight, term in terms if weight != 0]).sum()


def masked_features(f_img: Tensor, a_gen: Tensor) -> Tensor:
    """F_nor of eq. (6): image features times the attention map, point by point.

    Takes features [n, c, h, w] and a map [n, 1, H, W] in [0, 1] whose sides are whole multiples of h and w: each
    feature is weighted by the mean attention of the pixels under it (D13). Returns [n, c, h, w].
    Raises ValueError where the sizes do not divide. Source: eq. (6).
    """
    (height, width), (map_height, map_width) = f_img.shape[-2:], a_gen.shape[-2:]
    if map_height % height or map_width % width:
        raise ValueError(
            f"attention map of {map_height}x{map_width} does not divide into features of {height}x{width}; "
            "give a map whose sides are whole multiples of the features' sides"
        )
    return f_img * torch.nn.functional.avg_pool2d(a_gen, (map_height // height, map_width // width))


def focal_loss(logits: Tensor, a: Tensor, *, gamma: float = 2.0) -> Tensor:
    """Cross entropy of a map's logits with its target, where what is known well already counts less.

    Takes logits and targets in {0, 1} of one shape; returns a scalar >= 0, the mean of (1 - p)^gamma (-log p), p the
    probability of the target. Source: Lin et al. 2017, eq. (4).
    """
    surprise = torch.where(a > 0.5, softplus(-logits), softplus(logits))  # -log p
    return ((1 - torch.exp(-surprise)) ** gamma * surprise).mean()


def dice_loss(a_gen: Tensor, a: Tensor) -> Tensor:
    """One minus the overlap of what a map and its target call anomalous, over the whole batch: a scalar in [0, 1].

    Takes maps in [0, 1], 1 = normal, generated and target, of one shape. Source: Milletari et al. 2016, section 3,
    without its squares.
    """
    p, q = 1 - a_gen, 1 - a
    return 1 - (2 * (p * q).sum() + 1) / (p.sum() + q.sum() + 1)  # one pixel more, for a batch without anomaly
