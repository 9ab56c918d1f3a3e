"""Recipe `strong`, the default for photographs: what a frozen network sees, compared with normal photographs twice.

One map says how unusual a place's features are for that place, by a Gaussian a place (Defard et al. 2021, "PaDiM: a
patch distribution modeling framework for anomaly detection and localization"); the other how far they are from every
patch that was ever normal (Roth et al. 2022, "Towards total recall in industrial anomaly detection"). Each is
standardised on photographs that it was not fitted to, and they are added. Both learn from softly augmented copies too
(D35), and every photograph is left out once, so that all of them serve for the threshold (D37).

RUN/strong.safetensors             encoder, Gaussians, patches, and each map's mean and deviation
RUN/log.csv                        the mean score of photographs that were left out, and the seconds
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from tqdm import tqdm

from attnad.augmentations import soft_augmentation
from attnad.config import SEED, SIZE, AttentionConfig, Range, StrongConfig, check_ranges, strong_recipe
from attnad.features.neighbours import k_centers, nearest_distance
from attnad.features.places import PatchFeatures, PatchGaussians, PlaceSums, distance
from attnad.models import build_encoder
from attnad.score import Scores
from attnad.train import to_float
from attnad.training.state import FitOptions, Log
from attnad.training.storage import check_bytes, load_modules, module_tensors, outline, save_tensors

BATCH = 16
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

    def standardised(self, distances: Tensor) -> Tensor:
        """The mean of both maps [n, 2, h, w], each in its deviations from normal: [n, 1, h, w]."""
        shape = (1, 2, 1, 1)
        return ((distances - self.mean.reshape(shape)) / self.deviation.reshape(shape)).mean(1, keepdim=True)

    def answer(self, x: Tensor) -> tuple[Tensor, ...]:
        """Image scores [n] and maps [n, s, s] in [0, 1) of images [n, 3, s, s] in [0, 1], in the order of ANSWERS."""
        return self.judge(both_distances(self.features(x)[0], self.gaussians, self.patches), x.shape[-1])

    def judge(self, distances: Tensor, size: int) -> tuple[Tensor, ...]:
        """The same of distances [n, 2, h, w], with maps of `size` pixels a side."""
        z = self.standardised(distances)
        highest = z.flatten(1).topk(max(1, z.shape[-2] * z.shape[-1] // 100), 1).values
        above = (interpolate(z, size=(size, size), mode="bilinear")[:, 0] - NORMAL).clamp(min=0).square()
        return highest.mean(1), highest[:, 0], above / (above + (HALF - NORMAL) ** 2)


def both_distances(f: Tensor, gaussians: PatchGaussians, patches: Tensor) -> Tensor:
    """Distances of features [n, c, h, w] by the Gaussians, and from the nearest of patches [k, c]: [n, 2, h, w] >= 0."""
    nearest = nearest_distance(f.permute(0, 2, 3, 1).flatten(0, 2), patches)
    return torch.cat([distance(gaussians(f)), nearest.reshape(len(f), 1, *f.shape[-2:])], 1)


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
        started, log = time.perf_counter(), Log(folder / "log.csv", "comparison", ("mean score left out",), 0)
        left_out, judged = fit_comparison(comparison, config, images, groups, progress=options.progress)
        log.add(1, [left_out.image["top"].mean().item()], time.perf_counter() - started)
        save_tensors(folder / "strong.safetensors", module_tensors("comparison", comparison))
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
        parts = [self.comparison.answer(to_float(part.to(device))) for part in images.split(BATCH)]
        return _scores(parts)


def _scores(parts: list[tuple[Tensor, ...]]) -> Scores:
    top, peak, maps = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
    return Scores({"top": top, "peak": peak}, maps)


@torch.no_grad()
def fit_comparison(
    comparison: Comparison, config: StrongConfig, images: Tensor, groups: Tensor, *, progress: bool = False
) -> tuple[Scores, Tensor]:
    """Fit a comparison to normal images, uint8 [n, 3, s, s], and judge each of up to `JUDGED` groups by the others.

    Returns the scores of those judged, and their indices: the first image of each group. The encoder sees each view of
    an image once; features of those that are left out are kept, in half precision.
    """
    device = comparison.patches.device
    generator = torch.Generator(device).manual_seed(config.seed)
    folds, judged = _folds(groups, config)
    left_out = torch.zeros(len(images), dtype=torch.bool)
    left_out[torch.cat(folds)] = True
    parts = [(number, part) for number, fold in enumerate(folds) for part in fold.split(BATCH)]
    parts += [(len(folds), part) for part in (~left_out).nonzero()[:, 0].split(BATCH)]
    sums: PlaceSums | None = None
    kept: list[list[Tensor]] = [[] for _ in folds]  # features of all views
    own: list[list[Tensor]] = [[] for _ in folds]  # features of those judged, as they are
    drawn: list[Tensor] = []
    owner: list[Tensor] = []  # the fold that a drawn patch is of
    for number, part in tqdm(parts, desc="features", disable=not progress):
        x = to_float(images[part].to(device))
        for copy in range(1 + config.copies):
            f = comparison.features(soft_augmentation(x, config.soft, generator) if copy else x)[0].half()
            sums = sums or PlaceSums(f.float())
            sums.add(f.float())
            places = f.permute(0, 2, 3, 1).flatten(0, 2)
            share = max(1, CANDIDATES * len(part) // (len(images) * (1 + config.copies)))
            drawn.append(places[torch.randperm(len(places), generator=generator, device=device)[:share]].float())
            owner.append(torch.full((len(drawn[-1]),), number, device=device))
            if number < len(folds):
                kept[number].append(f)
                if not copy:
                    own[number].append(f[torch.isin(part, judged)])
    assert sums is not None, "there are images"
    candidates = torch.cat(drawn)
    chosen = k_centers(candidates, config.patches, generator)
    chosen = chosen[torch.arange(config.patches, device=device) % len(chosen)]  # of few, some twice: the file's shape
    comparison.patches, owners = candidates[chosen], torch.cat(owner)[chosen]
    comparison.gaussians = sums.gaussian(config.shrink, config.ridge)

    distances = []
    for number in tqdm(range(len(folds)), desc="left out", disable=not progress):
        f = torch.cat(own[number]).float()
        others = sums.without(torch.cat(kept[number]).float()).gaussian(config.shrink, config.ridge)
        distances.append(both_distances(f, others, comparison.patches[owners != number]))
    found = torch.cat(distances)
    comparison.mean, comparison.deviation = found.mean((0, 2, 3)), found.std((0, 2, 3)).clamp(min=1e-6)
    return _scores([comparison.judge(part, images.shape[-1]) for part in found.split(BATCH)]), judged


def _folds(groups: Tensor, config: StrongConfig) -> tuple[list[Tensor], Tensor]:
    """Images that are left out together, by fold, and the indices of those judged, in the folds' order.

    Of a group, all are left out together and the first is judged. Groups beyond `JUDGED` are never left out.
    """
    order = torch.randperm(int(groups.max()) + 1, generator=torch.Generator().manual_seed(config.seed))[:JUDGED]
    folds = [torch.isin(groups, part).nonzero()[:, 0] for part in order.tensor_split(min(config.folds, len(order)))]
    first = torch.tensor([int((groups == group).nonzero()[0]) for group in order])
    return folds, torch.cat([fold[torch.isin(fold, first)] for fold in folds])
