"""Attention from a latent, by Grad-CAM (Selvaraju et al. 2017): what two baselines look through."""

from __future__ import annotations

import torch
from torch import Tensor


def weighted(score: Tensor, features: Tensor, *, keep: bool = False) -> Tensor:
    """Sum over channels of alpha_k A_k, with alpha_k the mean over places of d score / d A_k: Grad-CAM before its ReLU.

    Takes a score an image [n] and the features that it was computed from [n, c, h, w]; returns [n, h, w]. With `keep`
    the result can be differentiated, for training. Source: Selvaraju et al. 2017, eqs. (1) and (2).
    """
    (gradient,) = torch.autograd.grad(score.sum(), features, create_graph=keep, retain_graph=True)
    return (gradient.mean((2, 3), keepdim=True) * features).sum(1)
