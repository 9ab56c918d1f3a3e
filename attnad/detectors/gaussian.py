"""Recipe `gaussian`, one Gaussian a place, and `discriminators`: the paper's second stage on top of it.

Every place of an image is judged by itself: features of a frozen encoder, at strides 4, 8 and 16, are whitened by one
Gaussian a place, and a small discriminator a level tells normal ones from the same with noise, and from places of
stained images (`attnad.features.places`, `attnad.features.stains`).

RUN/strong.safetensors             (its first name) encoder, Gaussians and discriminators
RUN/log.csv                        the mean distance of normal images by the Gaussians, and each discriminator's loss
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate
from tqdm import tqdm

from attnad.config import FROZEN, SEED, SIZE, GaussianConfig, Range, check_ranges, gaussian_recipe
from attnad.features.places import (
    PatchDiscriminator,
    PatchFeatures,
    PatchGaussians,
    distance,
    fit_gaussians,
    train_discriminator,
)
from attnad.features.stains import StainConfig, stain
from attnad.models import frozen_encoder
from attnad.score import Scores
from attnad.train import seeded, to_float
from attnad.training.state import FitOptions, Log
from attnad.training.storage import check_bytes, load_modules, module_tensors, outline, save_tensors

KEPT_NUMBERS = 200_000_000  # whitened features of normal images, to teach a discriminator: 400 MB in half precision


_RANGES: tuple[Range, ...] = (
    SIZE,
    FROZEN,
    ("min_side", *SIZE[1:]),
    SEED,
    ("channels", "from 1 to 1024", lambda v: 1 <= v <= 1024),
    ("shrink", "from 0 to 1", lambda v: 0 <= v <= 1),
    ("ridge", "from 0.00001 to 1", lambda v: 1e-5 <= v <= 1),
    ("noise", "from 0.5 to 4", lambda v: 0.5 <= v <= 4),
    ("stain_share", "from 0 to 1", lambda v: 0 <= v <= 1),
    ("steps", "from 0 to a million", lambda v: 0 <= v <= 1_000_000),
    ("batch", "from 2 to a million", lambda v: 2 <= v <= 1_000_000),
    ("width", "from 1 to 4096", lambda v: 1 <= v <= 4096),
    ("learning_rate", "above 0", lambda v: 0 < v < math.inf),
)


def check_gaussian(config: GaussianConfig) -> None:
    """Raise ValueError, naming the field and what it takes, where a value makes no sense."""
    check_ranges(config, _RANGES)


class Levels(nn.Module):
    """Images to one distance map a level, the whole model: features, Gaussians, discriminators."""

    def __init__(self, config: GaussianConfig, *, pretrained: bool):
        super().__init__()
        encoder = frozen_encoder(config.encoder, pretrained=pretrained)
        self.features = PatchFeatures(
            encoder, min_side=config.min_side, per_level=config.per_level, channels=config.channels, seed=config.seed
        )
        side = max(config.size, config.min_side)
        widths = self.features.widths
        self.gaussians = nn.ModuleList(
            PatchGaussians(c, side // s) for c, s in zip(widths, self.features.strides, strict=True)
        )
        with seeded(config.seed):
            self.discriminators = nn.ModuleList(PatchDiscriminator(c, config.noise, config.width) for c in widths)

    def seen(self, x: Tensor) -> list[Tensor]:
        """What is judged of images [n, 3, s, s] in [0, 1], by level [n, c, h, w]: the features."""
        return self.features(x)

    def white(self, x: Tensor) -> list[Tensor]:
        return [places(f) for places, f in zip(self.gaussians, self.seen(x), strict=True)]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Distances by the Gaussians and by the discriminators, each the mean over the levels at the finest one's size.

        Takes images [n, 3, s, s] in [0, 1]; gives two maps [n, 1, h, w] >= 0.
        """
        white = self.white(x)
        taught = [
            cast(PatchDiscriminator, d).distance(each) for d, each in zip(self.discriminators, white, strict=True)
        ]
        return _mean([distance(each) for each in white]), _mean(taught)

    def answer(self, x: Tensor) -> tuple[Tensor, ...]:
        """Image scores [n] and maps [n, s, s] in [0, 1) of images [n, 3, s, s] in [0, 1], in the order of ANSWERS."""
        gaussian, discriminator = self(x)
        smaller = torch.minimum(gaussian, discriminator)
        highest = smaller.flatten(1).topk(max(1, smaller.shape[-2] * smaller.shape[-1] // 100), 1).values
        size = x.shape[-2:]
        squares = [
            interpolate(d, size=size, mode="bilinear")[:, 0].square() for d in (smaller, gaussian, discriminator)
        ]
        return highest.mean(1), highest[:, 0], *(square / (square + 4) for square in squares)


# What `Levels.answer` gives, in its order: two image scores, then maps.
ANSWERS = ("top", "peak", "smaller", "gaussian", "discriminator")


def _mean(maps: list[Tensor]) -> Tensor:
    """Mean of maps [n, 1, h, w] of several sizes, at the first one's."""
    return torch.stack([interpolate(m, size=maps[0].shape[-2:], mode="bilinear") for m in maps]).mean(0)


@dataclass(frozen=True)
class Gaussian:
    """Features, Gaussians and discriminators, in evaluation mode."""

    levels: Levels

    config_type: ClassVar[type] = GaussianConfig
    levels_type: ClassVar[type[Levels]] = Levels
    recipe = staticmethod(gaussian_recipe)
    check = staticmethod(check_gaussian)

    @classmethod
    def fit(
        cls,
        config: GaussianConfig,
        images: Tensor,
        folder: Path,
        options: FitOptions,
    ) -> Gaussian:
        """Fit the Gaussians to normal images, uint8 [n, 3, s, s], then train a discriminator a level, into `folder`.

        It takes seconds, so what was stopped begins again. Raises TrainingError where it would need too much memory.
        """
        cls.check_memory(config)
        levels = Levels(config, pretrained=True).to(options.device).to(memory_format=torch.channels_last).eval()
        fit_levels(levels, config, images, folder, progress=options.progress)
        return cls(levels.eval())

    @classmethod
    def check_memory(cls, config: GaussianConfig) -> None:
        """Raise TrainingError where the Gaussians would take too much memory."""
        levels = outline(lambda: cls.levels_type(config, pretrained=False))
        check_bytes(levels, vars(config), "encoder", "size", "min_side", "channels")

    @classmethod
    def load(cls, config: GaussianConfig, folder: Path, *, device: torch.device) -> Gaussian:
        """Load what `fit` gave; raises CheckpointError where the file is missing, damaged or of another model."""
        levels = outline(lambda: cls.levels_type(config, pretrained=False))
        load_modules(folder / "strong.safetensors", levels=levels)
        return cls(levels.to(device).to(memory_format=torch.channels_last).eval())

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """Score uint8 images [n, 3, s, s]; a distance of 2 has 1/2 in the maps.

        What counts is the smaller of both distances: a place is normal where Gaussian or discriminator finds it so.
        """
        device = next(self.levels.parameters()).device
        columns = zip(*(self.levels.answer(x) for x in batches(images, device)), strict=True)
        found = {name: torch.cat(column).cpu() for name, column in zip(ANSWERS, columns, strict=True)}
        parts = {name: found[name] for name in ("gaussian", "discriminator")}
        return Scores({name: found[name] for name in ("top", "peak")}, found["smaller"], parts)


@torch.no_grad()
def fit_levels(levels: Levels, config: GaussianConfig, images: Tensor, folder: Path, *, progress: bool) -> None:
    """Fit a model to normal images, uint8 [n, 3, s, s], Gaussians first, then discriminators; save it into `folder`."""
    started, device = time.perf_counter(), next(levels.parameters()).device
    generator = torch.Generator(device).manual_seed(config.seed)
    log = Log(folder / "log.csv", "gaussians", ("mean distance",), 0)
    # The Gaussians need all images before any can be whitened: the encoder sees them twice, and nothing is kept.
    seen = map(levels.seen, batches(images, device, "Gaussians" if progress else None))
    fitted = fit_gaussians(seen, shrink=config.shrink, ridge=config.ridge)
    for places, gaussian in zip(levels.gaussians, fitted, strict=True):
        places.load_state_dict(gaussian.state_dict())
    normal = torch.cat([levels(x)[0].flatten() for x in batches(images[:64], device)]).mean().item()
    log.add(1, [normal], time.perf_counter() - started)

    real: list[Tensor] = []
    fake: list[Tensor] = []
    if config.steps:
        whole = ((x, None) for x in batches(images, device, "whitening" if progress else None))
        real = _whitened(levels, whole, len(images), generator)
        if config.stain_share:
            bare = batches(images, device, "stains" if progress else None)
            stained = (stain(x, StainConfig(), generator) for x in bare)
            fake = _whitened(levels, stained, len(images), generator)
    log = Log(folder / "log.csv", "discriminators", ("L_D before", "L_D"), 0)
    for level, white in enumerate(tqdm(real, desc="discriminators", disable=not progress), 1):
        started = time.perf_counter()
        with torch.enable_grad():
            losses = train_discriminator(
                cast(PatchDiscriminator, levels.discriminators[level - 1]), white, config.noise, steps=config.steps,
                batch=config.batch, learning_rate=config.learning_rate, generator=generator,
                others=fake[level - 1] if fake else None, share=config.stain_share,
            )  # fmt: skip
        log.add(level, losses, time.perf_counter() - started)
    save_tensors(folder / "strong.safetensors", module_tensors("levels", levels))


def batches(images: Tensor, device: torch.device, name: str | None = None, batch: int = 16) -> Iterator[Tensor]:
    """Float images of a device, a batch at a time, with a bar where there is a name for it."""
    return (to_float(part.to(device)) for part in tqdm(images.split(batch), desc=name, disable=name is None))


def _whitened(
    levels: Levels, found: Iterable[tuple[Tensor, Tensor | None]], n: int, generator: torch.Generator
) -> list[Tensor]:
    """Whitened features of n images in half precision, a [m, c] for each level: all places, or as many as are kept.

    Of an image with a map A_ano only those of which a quarter or more is anomalous.
    """
    parts: list[list[Tensor]] = [[] for _ in levels.gaussians]
    for x, a_ano in found:
        for part, white in zip(parts, levels.white(x), strict=True):
            c, places = white.shape[1], white[0, 0].numel()
            kept = min(places, max(1, KEPT_NUMBERS // (len(parts) * c * n)))
            chosen = torch.randperm(places, generator=generator, device=white.device)[:kept]
            features = white.flatten(2)[:, :, chosen].permute(0, 2, 1).reshape(-1, c).half()
            if a_ano is not None:
                normal = adaptive_avg_pool2d(a_ano, white.shape[-1]).flatten(1)[:, chosen].flatten()
                features = features[normal <= 0.75]
            part.append(features)
    return [torch.cat(part) for part in parts]
