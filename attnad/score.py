"""Anomaly maps and anomaly scores of images; higher = more anomalous, everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attnad.errors import SettingError
from attnad.models import ADGAN, AttentionNetwork, Discriminator, pair
from attnad.train import autocast, to_float


@dataclass(frozen=True)
class Scores:
    """Scores of n images of side s by any detector, float on the CPU; higher = more anomalous.

    image: scores of whole images by name, each [n]. maps: [n, s, s], the map that segments, where the detector draws
    one. parts: further maps [n, s, s] by name, of which `maps` is made. x_re: reconstructions [n, 3, s, s] in [0, 1],
    where there are any.
    """

    image: dict[str, Tensor]
    maps: Tensor | None = None
    parts: dict[str, Tensor] = field(default_factory=dict)
    x_re: Tensor | None = None

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Everything that is there, with its name."""
        yield from (self.image | {f"{name} map": values for name, values in self.parts.items()}).items()
        for name in ("maps", "x_re"):
            if (values := getattr(self, name)) is not None:
                yield name, values


EXTENTS = (1000, 100, 10)  # the highest 1/1000, 1/100 and 1/10 of an image's places


def at_extents(places: Tensor) -> list[Tensor]:
    """The mean of the highest places of images [n, p], at each of EXTENTS, of one place or more: three times [n]."""
    return [places.topk(max(1, places.shape[1] // extent), 1).values.mean(1) for extent in EXTENTS]


def check_images(images: Any, size: int) -> None:
    """Raise SettingError, saying what to pass instead, on what is no tensor uint8 [n, 3, size, size], n >= 1.

    Values in [0, 1] taken for bytes, or bytes taken for values in [0, 1], would give scores without a meaning.
    """
    takes = f"uint8 [n, 3, {size}, {size}]"
    if not isinstance(images, Tensor):
        raise SettingError(f"images are {type(images).__name__}; pass a tensor {takes}, as attnad.load_images gives")
    shape, remedies = list(images.shape), []
    if len(shape) == 3:
        remedies.append("of one image, pass images[None]")
        shape = [1, *shape]
    if len(shape) == 4 and shape[1] != 3 and shape[3] == 3:
        remedies.append("with channels last, move them: images.permute(0, 3, 1, 2)")
        shape = [shape[0], 3, *shape[1:3]]
    if len(shape) != 4 or not shape[0] or shape[1:] != [3, size, size]:
        remedies.append(f"read images at the run's size: attnad.load_images(..., size={size})")
    if images.is_floating_point():
        remedies.append("multiply values in [0, 1] by 255 and convert: (255 * images).round().to(torch.uint8)")
    elif images.dtype != torch.uint8:
        remedies.append("convert values from 0 to 255: images.to(torch.uint8)")
    if remedies:
        kind = str(images.dtype).removeprefix("torch.")
        raise SettingError(f"images are {kind} {list(images.shape)}; scoring takes {takes}: {'; '.join(remedies)}")


# minus D2's logit (section 4); mean of the map, in [0, 1]; mean squared error of x_re and minus D1's logit of
# (x, A_gen), both of table 5
PAPER_SCORES = ("adgan", "attention", "reconstruction", "discriminator")


@torch.no_grad()
def score(
    network: AttentionNetwork, discriminator: Discriminator, adgan: ADGAN, images: Tensor, *, batch: int = 64
) -> Scores:
    """Score uint8 images [n, 3, s, s] with the paper's networks in evaluation mode, on the networks' device.

    The scores are those of PAPER_SCORES; the map is 1 - A_gen, in [0, 1] (section 4).
    """
    device = next(network.parameters()).device
    parts = []
    for part in images.split(batch):
        x = to_float(part.to(device))
        with autocast(device):
            out = network(x)
            a_gen, x_re = out.a_gen.float(), out.x_re.float()
            d1, d2 = discriminator(pair(x, a_gen)).float(), adgan.discriminator(adgan.masked(x, a_gen)).float()
        maps = 1 - a_gen[:, 0]
        parts.append((-d2, maps.mean((1, 2)), (x - x_re).square().mean((1, 2, 3)), -d1, maps, x_re))
    *image, maps, x_re = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
    return Scores(dict(zip(PAPER_SCORES, image, strict=True)), maps, x_re=x_re)
