"""The camera moved: test images as they look on a day when it stands, or the light falls, a little otherwise.

Each change takes images, uint8 [n, 3, s, s], and masks, bool [n, s, s], and gives the same; masks move along. Pixels
are counted in a picture of 256, and scaled with s / 256. What moves in from outside repeats the edge.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from attnad.augmentations import as_jpeg
from attnad.augmentations import move as placed

Move = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def as_is(images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Change nothing."""
    return images, masks


def shift(pixels: float) -> Move:
    """Shift to the right and down, by so many pixels of 256 each."""
    return partial(_placed, turned=0.0, shifted=pixels)


def turn(degrees: float) -> Move:
    """Turn about the centre, clockwise."""
    return partial(_placed, turned=degrees, shifted=0.0)


def light(factor: float) -> Move:
    """Multiply the light."""
    return gain(factor, factor, factor)


def gain(red: float, green: float, blue: float) -> Move:
    """Multiply the light of each colour."""
    return lambda images, masks: (_whole(images * torch.tensor([red, green, blue])[:, None, None]), masks)


def gradient(share: float) -> Move:
    """Less light on the left and more on the right, by this share at the edges."""

    def move(images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        return _whole(images * torch.linspace(1 - share, 1 + share, images.shape[-1])), masks

    return move


def noise(levels: float) -> Move:
    """Add Gaussian noise of so many grey levels of 255, the same each time."""

    def move(images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        drawn = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
        return _whole(images + levels * drawn), masks

    return move


def blur(pixels: float) -> Move:
    """Blur by a Gaussian with a deviation of so many pixels of 256."""

    def move(images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        from scipy.ndimage import gaussian_filter  # here: its import is slow

        deviation = pixels * images.shape[-1] / 256
        blurred = [gaussian_filter(each, (0, deviation, deviation), mode="nearest") for each in images.float().numpy()]
        return _whole(torch.from_numpy(np.stack(blurred))), masks

    return move


def jpeg(quality: int) -> Move:
    """Save as JPEG and read again."""

    return lambda images, masks: (torch.stack([as_jpeg(image, quality) for image in images]).contiguous(), masks)


def any_pose(images: Tensor, masks: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
    """Turn each image about its centre, by any angle, which the seed draws."""
    angles = 360 * torch.rand(len(images), generator=torch.Generator().manual_seed(seed))
    return _placed(images, masks, turned=angles, shifted=0.0)


def _placed(images: Tensor, masks: Tensor, *, turned: float | Tensor, shifted: float) -> tuple[Tensor, Tensor]:
    """Turn by degrees and shift by pixels of 256: images between pixels linearly, masks where they cover half."""
    clockwise = -torch.as_tensor(turned).expand(len(images))

    def sampled(x: Tensor) -> Tensor:
        away = torch.full((len(x), 2), shifted / 256)
        parts = zip(*(values.split(16) for values in (x, away, clockwise)), strict=True)
        return torch.cat([placed(part.float(), *pose) for part, *pose in parts])

    return _whole(sampled(images)), sampled(masks[:, None])[:, 0] >= 0.5


def _whole(images: Tensor) -> Tensor:
    """Round and clip to uint8."""
    return images.round().clamp(0, 255).to(torch.uint8)


# What a detector is judged under, beside the images as they are. Fixed before the first run: see `attnad.study.sets`.
MOVED: dict[str, Move] = {
    "as is": as_is,
    **{f"shift {pixels}": shift(pixels) for pixels in (2, 4, 8)},
    **{f"turn {degrees}": turn(degrees) for degrees in (1, 3, 5)},
    **{f"light {factor}": light(factor) for factor in (0.8, 0.9, 1.1, 1.2)},
    "gain": gain(1.05, 1, 0.95),
    "gradient 0.15": gradient(0.15),
    "noise 4": noise(4),
    "blur 1": blur(1),
    "jpeg 50": jpeg(50),
}
