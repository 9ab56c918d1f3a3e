"""Anomaly maps and anomaly scores of images; higher = more anomalous, everywhere."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from attnad.models import ADGAN, AttentionNetwork, Discriminator, pair
from attnad.train import autocast, to_float


class Scores(NamedTuple):
    """Scores of n images of side s, float on the CPU; higher = more anomalous."""

    maps: Tensor  # [n, s, s] in [0, 1]: 1 - A_gen (section 4)
    adgan: Tensor  # [n]: minus D2's logit (section 4)
    attention: Tensor  # [n] in [0, 1]: mean of the map
    reconstruction: Tensor  # [n] >= 0: mean squared error of x_re (table 5)
    discriminator: Tensor  # [n]: minus D1's logit of (x, A_gen) (table 5)
    x_re: Tensor  # [n, 3, s, s] in [0, 1]


@torch.no_grad()
def score(
    network: AttentionNetwork, discriminator: Discriminator, adgan: ADGAN, images: Tensor, *, batch: int = 64
) -> Scores:
    """Score uint8 images [n, 3, s, s] with trained networks in evaluation mode, on the networks' device."""
    device = next(network.parameters()).device
    parts = []
    for part in images.split(batch):
        x = to_float(part.to(device))
        with autocast(device):
            out = network(x)
            a_gen, x_re = out.a_gen.float(), out.x_re.float()
            d1, d2 = discriminator(pair(x, a_gen)).float(), adgan.discriminator(adgan.masked(x, a_gen)).float()
        maps = 1 - a_gen[:, 0]
        parts.append((maps, -d2, maps.mean((1, 2)), (x - x_re).square().mean((1, 2, 3)), -d1, x_re))
    return Scores(*(torch.cat(column).cpu() for column in zip(*parts, strict=True)))
