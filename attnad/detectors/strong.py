"""Recipe `strong`, the default for photographs: how unusual is what a frozen network sees, for that place of the image?

Features of strides 4, 8 and 16, joined at stride 8, have one Gaussian a place (Defard et al. 2021, "PaDiM: a patch
distribution modeling framework for anomaly detection and localization"). What is ours: they are fitted to softly
augmented copies too, so that a camera or a lamp may move a little (D35); an image is judged at three extents, so that
a dot counts and a stain as well (D36); every photograph is left out once, so that all of them learn, and all of them
serve for the threshold (D37); and photographs of one part are laid alike first, in whatever pose it lay (D38).

RUN/strong.safetensors             encoder, pose, Gaussians, and what is normal for the map and at each extent
RUN/log.csv                        the mean score of photographs that were left out, and the seconds
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from tqdm import tqdm

from attnad.augmentations import soft_augmentation
from attnad.config import FROZEN, SEED, SIZE, Range, StrongConfig, check_ranges, strong_recipe
from attnad.features.places import PatchFeatures, PatchGaussians, PlaceSums, distance
from attnad.features.registration import SAMPLE, Registration, as_photographed, shrunken
from attnad.models import frozen_encoder
from attnad.score import EXTENTS, Scores, at_extents
from attnad.train import to_float
from attnad.training.state import FitOptions, Log
from attnad.training.storage import check_bytes, load_modules, module_tensors, outline, save_tensors

BATCH = 16
CHANNELS = 448  # most that are kept: all of ResNet-18's; of more, those that the seed draws (D28)
JUDGED = 400  # photographs that are left out in turn, at most: enough for any rate, and their features fit the memory
NORMAL, HALF = -3.0, 4.0  # standard deviations from normal that are 0 and 1/2 in the maps

_RANGES: tuple[Range, ...] = (
    SIZE,
    FROZEN,
    ("min_side", *SIZE[1:]),
    SEED,
    ("copies", "from 0 to 20", lambda v: 0 <= v <= 20),
    ("shrink", "from 0 to 1", lambda v: 0 <= v <= 1),
    ("ridge", "from 0.00001 to 1", lambda v: 1e-5 <= v <= 1),
    ("folds", "from 2 to 1000", lambda v: 2 <= v <= 1000),
    ("soft.shift soft.light soft.gain", "from 0 to 0.5", lambda v: 0 <= v <= 0.5),
    ("soft.turn", "from 0 to 180", lambda v: 0 <= v <= 180),
    ("soft.noise", "from 0 to 100", lambda v: 0 <= v <= 100),
    ("soft.jpeg", "from 1 to 95", lambda v: 1 <= v <= 95),
)


def check_strong(config: StrongConfig) -> None:
    """Raise ValueError, naming the field and what it takes, where a value makes no sense."""
    check_ranges(config, _RANGES)


class Surprise(nn.Module):
    """Images to a map of distances from normal, place by place, and to image scores, in standard deviations."""

    normal: Tensor  # [4, 2]: mean and deviation, on photographs left out, of the map, then of it at each extent

    def __init__(self, config: StrongConfig, *, pretrained: bool):
        super().__init__()
        encoder = frozen_encoder(config.encoder, pretrained=pretrained)
        self.features = PatchFeatures(
            encoder, min_side=config.min_side, per_level=False, smooth=False, channels=CHANNELS, seed=config.seed
        )
        (channels,), (stride,) = self.features.widths, self.features.strides
        self.gaussians = PatchGaussians(channels, max(config.size, config.min_side) // stride)
        self.registration = Registration() if config.register else None
        self.registers = False  # `registration.alike`, without waiting for the device
        self.register_buffer("normal", torch.tensor([[0.0, 1.0]] * (1 + len(EXTENTS))))

    def see(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features [n, c, h, w] of images [n, 3, s, s] in [0, 1], and the poses [n, 2, 3] of those that are registered.

        The places of features are then those of the pose that all have.
        """
        poses = None
        if self.registers and self.registration is not None:
            x, poses = self.registration(x)
        return self.features(x)[0], poses

    def judge(self, distances: Tensor, size: int, poses: Tensor | None = None) -> tuple[Tensor, ...]:
        """Image scores [n] and maps [n, size, size] in [0, 1), in the order of ANSWERS, of Mahalanobis distances.

        Distances [n, 1, h, w] >= 0 are those of images in the pose of all, maps of the photographs that had `poses`.
        """
        (mean, deviation), *extents = self.normal
        z = (distances - mean) / deviation
        at = at_extents(z.flatten(1))
        standard = [(value - m) / d for value, (m, d) in zip(at, extents, strict=True)]
        maps = interpolate(z, size=(size, size), mode="bilinear")
        if poses is not None:
            maps = as_photographed(maps, poses)
        above = (maps[:, 0] - NORMAL).clamp(min=0).square()
        return torch.stack(standard).amax(0), at[1], z.flatten(1).amax(1), above / (above + (HALF - NORMAL) ** 2)

    def answer(self, x: Tensor) -> tuple[Tensor, ...]:
        """The same of images [n, 3, s, s] in [0, 1]; maps have their size."""
        features, poses = self.see(x)
        return self.judge(distance(self.gaussians(features)), x.shape[-1], poses)


# What `Surprise.answer` gives, in its order: three image scores, then the map.
ANSWERS = ("extent", "top", "peak", "map")


@dataclass(frozen=True)
class Strong:
    """What a fit has learned, in evaluation mode.

    After `fit` it has what each photograph was given by the others, too. left_out: their scores. judged: their indices.
    """

    surprise: Surprise
    left_out: Scores | None = None
    judged: Tensor | None = None

    leaves_out: ClassVar[bool] = True
    config_type: ClassVar[type] = StrongConfig
    recipe = staticmethod(strong_recipe)
    check = staticmethod(check_strong)

    @classmethod
    def fit(cls, config: StrongConfig, images: Tensor, folder: Path, options: FitOptions) -> Strong:
        """Fit to normal images, uint8 [n, 3, s, s], two or more, and leave each out once, up to `JUDGED` of them.

        Copies, by `options.groups`, are left out together, and the first is judged. It takes seconds, so what was
        stopped begins again. Raises TrainingError where it would need too much memory.
        """
        check_bytes(outline(lambda: Surprise(config, pretrained=False)), vars(config), "encoder", "size", "min_side")
        surprise = Surprise(config, pretrained=True).to(options.device).to(memory_format=torch.channels_last).eval()
        groups = torch.arange(len(images)) if options.groups is None else options.groups
        started, log = time.perf_counter(), Log(folder / "log.csv", "gaussians", ("mean score left out",), 0)
        left_out, judged = fit_surprise(surprise, config, images, groups, progress=options.progress)
        log.add(1, [left_out.image["extent"].mean().item()], time.perf_counter() - started)
        save_tensors(folder / "strong.safetensors", module_tensors("surprise", surprise))
        return cls(surprise, left_out, judged)

    @classmethod
    def load(cls, config: StrongConfig, folder: Path, *, device: torch.device) -> Strong:
        """Load what `fit` gave; raises CheckpointError where the file is missing, damaged or of another model."""
        surprise = outline(lambda: Surprise(config, pretrained=False))
        load_modules(folder / "strong.safetensors", surprise=surprise)
        surprise.registers = surprise.registration is not None and bool(surprise.registration.alike)
        return cls(surprise.to(device).to(memory_format=torch.channels_last).eval())

    @property
    def registers(self) -> bool:
        """Whether photographs are laid alike first."""
        return self.surprise.registers

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """Score uint8 images [n, 3, s, s]; a place four standard deviations from normal has 1/2 in the map."""
        device = self.surprise.normal.device
        return _scores([self.surprise.answer(to_float(part.to(device))) for part in images.split(BATCH)])


def _scores(parts: list[tuple[Tensor, ...]]) -> Scores:
    *image, maps = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
    return Scores(dict(zip(ANSWERS[:-1], image, strict=True)), maps)


@torch.no_grad()
def fit_surprise(
    surprise: Surprise, config: StrongConfig, images: Tensor, groups: Tensor, *, progress: bool = False
) -> tuple[Scores, Tensor]:
    """Fit to normal images, uint8 [n, 3, s, s], and judge each of up to `JUDGED` groups by Gaussians of the others.

    Returns the scores of those judged, and their indices. The encoder sees each view of an image once; features of
    those that are left out are kept, in half precision.
    """
    device = surprise.normal.device
    generator = torch.Generator(device).manual_seed(config.seed)
    if surprise.registration is not None:
        sample = images[:: math.ceil(len(images) / SAMPLE)]
        surprise.registration.fit(torch.cat([shrunken(to_float(part.to(device))) for part in sample.split(BATCH)]))
        surprise.registers = bool(surprise.registration.alike)
    folds, judged = leave_out(groups, config.folds, config.seed)
    never = torch.isin(torch.arange(len(images)), torch.cat(folds), invert=True).nonzero()[:, 0]
    parts = [(number, part) for number, fold in enumerate([*folds, never]) for part in fold.split(BATCH) if len(part)]
    sums: PlaceSums | None = None
    views: list[list[Tensor]] = [[] for _ in folds]  # features of all views of those that are left out
    plain: list[list[Tensor]] = [[] for _ in folds]  # features of those judged, as they are
    poses: list[Tensor | None] = []  # of the same
    for number, part in tqdm(parts, desc="features", disable=not progress):
        x = to_float(images[part].to(device))
        for copy in range(1 + config.copies):
            f, pose = surprise.see(soft_augmentation(x, config.soft, generator) if copy else x)
            half = f.half()
            sums = sums or PlaceSums(f)
            sums.add(half.float())  # as they are taken away again
            if number < len(folds):
                views[number].append(half)
                if not copy:
                    shown = torch.isin(part, judged).to(device)
                    plain[number].append(half[shown])
                    poses.append(None if pose is None else pose[shown])
    assert sums is not None, "there are images"
    surprise.gaussians.load_state_dict(sums.gaussian(config.shrink, config.ridge).state_dict())

    parts_found = []
    for mine, own in zip(tqdm(views, desc="left out", disable=not progress), plain, strict=True):
        others = sums.without(torch.cat(mine).float())
        parts_found += others.distances(torch.cat(own).float(), config.shrink, config.ridge).split([*map(len, own)])
    found = torch.cat(parts_found)
    moments = [found.mean(), found.std().clamp(min=1e-6)]
    at = at_extents(((found - moments[0]) / moments[1]).flatten(1))
    moments += [moment for each in at for moment in (each.mean(), each.std().clamp(min=1e-6))]
    surprise.normal.copy_(torch.stack(moments).reshape(-1, 2))
    size, pairs = images.shape[-1], zip(parts_found, poses, strict=True)
    return _scores([surprise.judge(distances, size, pose) for distances, pose in pairs]), judged


def leave_out(groups: Tensor, folds: int, seed: int) -> tuple[list[Tensor], Tensor]:
    """Which images are left out together, and which are judged, of images in groups [n] of copies.

    Returns the indices of each of at most `folds` parts, whole groups each, and the first index of each group, part by
    part. Groups beyond `JUDGED`, drawn by `seed`, are never left out.
    """
    order = torch.randperm(int(groups.max()) + 1, generator=torch.Generator().manual_seed(seed))[:JUDGED]
    parts = [torch.isin(groups, part).nonzero()[:, 0] for part in order.tensor_split(min(folds, len(order)))]
    first = torch.tensor([int((groups == group).nonzero()[0]) for group in order])
    return parts, torch.cat([part[torch.isin(part, first)] for part in parts])
