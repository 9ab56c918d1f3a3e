"""Recipe `strong`, the default for photographs: what a frozen network sees, compared with normal photographs twice.

One map says how unusual a place's features are for that place, by a Gaussian a place (Defard et al. 2021, "PaDiM: a
patch distribution modeling framework for anomaly detection and localization"); the other how far they are from every
patch that was ever normal (Roth et al. 2022, "Towards total recall in industrial anomaly detection"). Each is
standardised on photographs that it was not fitted to, and they are added. Both learn from softly augmented copies too
(D35), and every photograph is left out once, so that all of them serve for the threshold (D37).

RUN/strong.safetensors             encoder, Gaussians, patches, and each map's mean and deviation
RUN/log.csv                        seconds of each step
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from tqdm import tqdm

from attnad.augmentations import soft_augmentation
from attnad.config import SEED, SIZE, AttentionConfig, Range, StrongConfig, check_ranges, strong_recipe
from attnad.features.places import PatchFeatures, PatchGaussians, PlaceSums, distance, k_centers, nearest_distance
from attnad.models import build_encoder
from attnad.score import Scores
from attnad.train import to_float
from attnad.training.state import FitOptions, Log
from attnad.training.storage import check_bytes, load_modules, module_tensors, outline, save_tensors

JUDGED = 400  # photographs that are left out in turn, at most: enough for any rate, and their features fit the memory
CANDIDATES = 60_000  # patches that those to keep are chosen from
NORMAL, HALF = -3.0, 4.0  # standard deviations from normal that are 0 and 1/2 in the maps

_RANGES: tuple[Range, ...] = (
    SIZE,
    ("min_side", *SIZE[1:]),
    SEED,
    ("copies", "from 0 to 20", lambda v: 0 <= v <= 20),
    ("shrink", "from 0 to 1", lambda v: 0 <= v <= 1),
    ("ridge", "from 0.00001 to 1", lambda v: 1e-5 <= v <= 1),
    ("patches", "from 1 to 100000", lambda v: 1 <= v <= 100_000),
    ("folds", "from 2 to 1000", lambda v: 2 <= v <= 1000),
    ("soft.shift soft.light soft.gain", "from 0 to 0.5", lambda v: 0 <= v <= 0.5),
    ("soft.turn", "from 0 to 180", lambda v: 0 <= v <= 180),
    ("soft.noise", "from 0 to 100", lambda v: 0 <= v <= 100),
    ("soft.jpeg", "from 1 to 95", lambda v: 1 <= v <= 95),
)


def check_strong(config: StrongConfig) -> None:
    """Raise ValueError, naming the field and what it takes, where a value makes no sense."""
    check_ranges(config, _RANGES)


class Comparison(nn.Module):
    """Images to two maps of distances, by Gaussians and by neighbours, and to their standardised mean."""

    patches: Tensor  # [k, c]
    mean: Tensor  # [2], of each map on normal photographs
    deviation: Tensor  # [2]

    def __init__(self, config: StrongConfig, *, pretrained: bool):
        super().__init__()
        encoder = build_encoder(AttentionConfig(encoder=config.encoder), pretrained=pretrained)
        self.features = PatchFeatures(encoder, min_side=config.min_side, per_level=False, channels=1024)
        (channels,), (stride,) = self.features.widths, self.features.strides
        self.gaussians = PatchGaussians(channels, max(config.size, config.min_side) // stride)
        self.register_buffer("patches", torch.zeros(config.patches, channels))
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("deviation", torch.ones(2))

    def distances(self, f: Tensor) -> Tensor:
        """Both distances of features [n, c, h, w]: [n, 2, h, w] >= 0."""
        return torch.cat([distance(self.gaussians(f)), nearest_distance(f, self.patches)], 1)

    def standardised(self, distances: Tensor) -> Tensor:
        """The mean of both maps [n, 2, h, w], each in its deviations from normal: [n, 1, h, w]."""
        shape = (1, 2, 1, 1)
        return ((distances - self.mean.reshape(shape)) / self.deviation.reshape(shape)).mean(1, keepdim=True)

    def answer(self, x: Tensor) -> tuple[Tensor, ...]:
        """Image scores [n] and maps [n, s, s] in [0, 1) of images [n, 3, s, s] in [0, 1], in the order of ANSWERS."""
        return self.judge(self.distances(self.features(x)), x.shape[-1])

    def judge(self, distances: Tensor, size: int) -> tuple[Tensor, ...]:
        """The same of distances [n, 2, h, w], with maps of `size` pixels a side."""
        z = self.standardised(distances)
        highest = z.flatten(1).topk(max(1, z.shape[-2] * z.shape[-1] // 100), 1).values
        above = (interpolate(z, size=(size, size), mode="bilinear")[:, 0] - NORMAL).clamp(min=0).square()
        return highest.mean(1), highest[:, 0], above / (above + (HALF - NORMAL) ** 2)


# What `Comparison.answer` gives, in its order: two image scores, then the map.
ANSWERS = ("top", "peak", "map")


@dataclass(frozen=True)
class Strong:
    """A fitted comparison, in evaluation mode; after `fit`, with the scores of the photographs that were left out.

    left_out: scores of photographs by what was fitted to the others. judged: the indices of these among the images.
    """

    comparison: Comparison
    left_out: Scores | None = None
    judged: Tensor | None = None

    config_type: ClassVar[type] = StrongConfig
    recipe = staticmethod(strong_recipe)
    check = staticmethod(check_strong)

    @classmethod
    def fit(
        cls, config: StrongConfig, images: Tensor, folder: Path, options: FitOptions, groups: Tensor | None = None
    ) -> Strong:
        """Fit to normal images, uint8 [n, 3, s, s], and leave each of up to `JUDGED` groups of them out once.

        `groups` [n], as `attnad.data.near_copies` gives them, are left out together, and the first image of each is
        judged. It takes seconds, so what was stopped begins again. Raises TrainingError where it would need too much
        memory.
        """
        check_bytes(outline(lambda: Comparison(config, pretrained=False)), vars(config), "encoder", "size", "min_side")
        comparison = Comparison(config, pretrained=True).to(options.device).to(memory_format=torch.channels_last).eval()
        groups = torch.arange(len(images)) if groups is None else groups
        left_out, judged = _fit(comparison, config, images, groups, folder, progress=options.progress)
        return cls(comparison, left_out, judged)

    @classmethod
    def load(cls, config: StrongConfig, folder: Path, *, device: torch.device) -> Strong:
        """Load what `fit` gave; raises CheckpointError where the file is missing, damaged or of another model."""
        comparison = outline(lambda: Comparison(config, pretrained=False))
        load_modules(folder / "strong.safetensors", comparison=comparison)
        return cls(comparison.to(device).to(memory_format=torch.channels_last).eval())

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """Score uint8 images [n, 3, s, s]; four deviations from normal have 1/2 in the maps."""
        device = self.comparison.patches.device
        parts = [self.comparison.answer(to_float(part.to(device))) for part in images.split(16)]
        return _scores(parts)


def _scores(parts: list[tuple[Tensor, ...]]) -> Scores:
    top, peak, maps = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
    return Scores({"top": top, "peak": peak}, maps)


@torch.no_grad()
def _fit(
    comparison: Comparison, config: StrongConfig, images: Tensor, groups: Tensor, folder: Path, *, progress: bool
) -> tuple[Scores, Tensor]:
    """Fit the comparison and save it into `folder`; give the scores of those left out, and which images these are."""
    device = comparison.patches.device
    folds, first = _folds(groups, config)
    generator = torch.Generator(device).manual_seed(config.seed)
    log = Log(folder / "log.csv", "features", ("mean distance",), 0)
    started = time.perf_counter()
    # In the folds' order, those that are never left out last. Each view: its features in half precision.
    kept: list[list[Tensor]] = [[] for _ in folds]
    candidates: list[Tensor] = []
    owners: list[Tensor] = []
    sums: PlaceSums | None = None
    rest = torch.tensor(sorted(set(range(len(images))) - set(torch.cat(folds).tolist())), dtype=torch.int64)
    for number, chosen in enumerate(tqdm([*folds, rest], desc="features", disable=not progress)):
        for f in _features(comparison.features, images[chosen], config, generator):
            sums = sums or PlaceSums(f)
            sums.add(f)
            places = f.flatten(2).permute(0, 2, 1).flatten(0, 1)
            share = max(1, round(CANDIDATES * len(places) / (f[0, 0].numel() * len(images) * (1 + config.copies))))
            drawn = torch.randperm(len(places), generator=generator, device=device)[:share]
            candidates.append(places[drawn])
            owners.append(torch.full((len(drawn),), number, device=device))
            if number < len(folds):
                kept[number].append(f.half())
    assert sums is not None, "images are there"
    stored, owner = torch.cat(candidates), torch.cat(owners)
    centers = k_centers(stored, config.patches, generator)
    comparison.patches, owner = stored[centers], owner[centers]
    comparison.gaussians.load_state_dict(sums.gaussian(config.shrink, config.ridge).state_dict())
    log.add(1, [0.0], time.perf_counter() - started)
    return _leave_out(comparison, config, sums, kept, owner, folds, first, folder, progress)
