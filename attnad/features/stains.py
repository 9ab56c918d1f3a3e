"""Synthetic anomalies of recipe `map`: stains and scratches, blended in softly, as batched tensor operations.

The rectangles of section 3.2.1 have four straight edges, and so an attention map can learn to look for those. Here the
masks are noise of several frequencies above a threshold, within a random window, or rectangles that may be thin;
what they are filled with shows through; and the target says "anomalous" only where a pixel really changed. After
Zavrtanik et al. 2021 (DRAEM) and Schluter et al. 2022 (NSA), with the paper's x'_ano among the fillings.

Functions that transform take their parameters as tensors, one row an image; `stain` draws them from an explicit
generator. Images are float [n, 3, s, s] in [0, 1]; masks and maps float [n, 1, s, s].
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from attnad.augmentations import boxes_to_map, hard_augmentation, random_boxes
from attnad.config import AugmentConfig, TransformConfig

CELLS = (4, 8, 16, 32)  # of noise, a side: from blots to crumbs


@dataclass(frozen=True)
class StainConfig:
    """How stains and scratches are drawn (D32)."""

    window: tuple[float, float] = (0.02, 0.4)
    """Least and most share of the image that the window of a noise-shaped mask has."""
    box: tuple[float, float] = (0.002, 0.1)
    """Least and most share of the image that a rectangle has."""
    thinness: float = 12.0
    """Most times that a rectangle is longer than wide."""
    opacity: float = 0.3
    """Least opacity of what is blended in; the most is 1."""
    changed: float = 0.03
    """Least mean change of a pixel's channels that makes it anomalous."""
    augment: TransformConfig = field(default_factory=TransformConfig)
    """How x'_ano is made, one of the fillings."""


def summed_noise(noises: list[Tensor], size: int) -> Tensor:
    """Noises [n, 1, k, k] of several k, each enlarged to `size` pixels between its values, and summed: [n, 1, s, s]."""
    return torch.stack([interpolate(each, size=(size, size), mode="bilinear") for each in noises]).sum(0)


def highest_within(values: Tensor, window: Tensor, share: Tensor) -> Tensor:
    """Mask of each image's highest values within its window.

    Takes values and windows (1 inside, 0 outside) [n, 1, s, s] and shares [n] in (0, 1] of the window's pixels; returns
    a mask [n, 1, s, s] of that many pixels, at least one where the window has one, and of ties with the last of them.
    """
    inside = torch.where(window > 0, values, torch.full_like(values, -torch.inf)).flatten(1)
    wanted = (share * window.flatten(1).sum(1)).ceil().clamp(min=1).long() - 1
    least = inside.sort(1, descending=True).values.gather(1, wanted[:, None])
    return ((inside >= least) & (inside > -torch.inf)).float().reshape(values.shape)


def soften(mask: Tensor, width: int) -> Tensor:
    """Means of a mask [n, 1, s, s] over squares of 2 width + 1 pixels, where outside of the image there is nothing."""
    return avg_pool2d(mask, 2 * width + 1, 1, width)


def unchanged(x: Tensor, x_ano: Tensor, least: float) -> Tensor:
    """Target map A_ano [n, 1, s, s] of images [n, 3, s, s]: 1 where the channels' mean change is below `least`."""
    return ((x_ano - x).abs().mean(1, keepdim=True) < least).float()


def stain(x: Tensor, config: StainConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Make one stained or scratched image x_ano and its target map A_ano of each normal image.

    Half of the masks are noise-shaped, half rectangles. A third each is filled with x'_ano, with another image of the
    batch, and with a colour under noise. Takes images [n, 3, s, s] in [0, 1] on the generator's device; returns
    ([n, 3, s, s], [n, 1, s, s]).
    """
    n, size, device = len(x), x.shape[-1], x.device

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device) * (high - low) + low

    window = AugmentConfig(box_area=config.window, box_aspect=2.0)
    windows = boxes_to_map(random_boxes(n, size, window, generator), size)
    noise = summed_noise([torch.randn(n, 1, k, k, generator=generator, device=device) for k in CELLS], size)
    blots = highest_within(noise, windows, uniform(n, low=0.1, high=0.6))
    thin = AugmentConfig(box_area=config.box, box_aspect=config.thinness)
    scratches = boxes_to_map(random_boxes(n, size, thin, generator), size)
    masks = soften(torch.where(uniform(n, 1, 1, 1) < 0.5, blots, scratches), max(1, size // 128))

    colour = (uniform(n, 3, 1, 1) + 0.1 * torch.randn(x.shape, generator=generator, device=device)).clamp(0, 1)
    fillings = torch.stack([hard_augmentation(x, config.augment, generator), x.roll(1, 0), colour])
    chosen = torch.randint(len(fillings), (n,), generator=generator, device=device)
    filling = fillings[chosen, torch.arange(n, device=device)]
    x_ano = torch.lerp(x, filling, masks * uniform(n, 1, 1, 1, low=config.opacity))
    return x_ano, unchanged(x, x_ano, config.changed)
