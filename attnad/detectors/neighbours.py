"""The line to justify against: nearest neighbours on the features of a frozen network, nothing trained.

Images are judged by the cosine distance of pooled features (Bergman et al. 2020, "Deep nearest neighbor anomaly
detection"), pixels by the distance of patch features (Cohen & Hoshen 2020, "Sub-image anomaly detection with deep
pyramid correspondences"; Roth et al. 2022, "Towards total recall in industrial anomaly detection").
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, normalize

from attnad.config import SEED, SIZE, DetectorConfig, Range, Recipe, check_ranges
from attnad.errors import CheckpointError
from attnad.features.backbones import lite0, load_lite0_weights
from attnad.features.neighbours import nearest_distance
from attnad.score import Scores
from attnad.train import to_float
from attnad.training.state import FitOptions
from attnad.training.storage import load_tensors, save_tensors


@dataclass(frozen=True)
class NeighboursConfig(DetectorConfig):
    """All that decides the scores of nearest neighbours, beside the code and the machine."""

    recipe: Recipe[Literal["neighbours"]] = "neighbours"
    size: int = 256
    seed: int = 0
    """Seed of the split that holds out normal images, and of the choice of patches."""
    image_score: Literal["patch", "whole"] = "patch"
    """What judges an image: its farthest patch, or the image as a whole; then no map is drawn."""
    patches: int = 10_000
    """Normal patches that are kept to compare with."""

    @property
    def encoder(self) -> str:
        """Name of the encoder, for tables."""
        return "efficientnet-lite0"

    @property
    def epochs(self) -> str:
        """Epochs, for tables: nothing is trained."""
        return "0"


def neighbours_recipe(name: str, data: str) -> NeighboursConfig:
    """Give the configuration for a data set: whole images of 128 pixels for cifar10, patches of 256 for the others."""
    if data == "cifar10":
        return NeighboursConfig(data=data, size=128, image_score="whole")
    return NeighboursConfig(data=data, size=256)


def check_neighbours(config: NeighboursConfig) -> None:
    """Raise ValueError, naming the field and what it takes, where a value makes no sense."""
    patches: Range = ("patches", "from 1 to ten million", lambda v: 1 <= v <= 10_000_000)
    check_ranges(config, (SIZE, SEED, patches))


class FrozenFeatures(nn.Module):
    """EfficientNet-Lite0 with ImageNet's weights, in evaluation mode: images [n, 3, s, s] to two kinds of features.

    Raises WeightsError where the packages that bring architecture and weights are not installed.
    """

    def __init__(self):
        super().__init__()
        self.body = lite0()
        self.body.load_state_dict(load_lite0_weights())
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Give pooled features [n, 1280] of length 1, and patch features [n, 152, s / 8, s / 8].

        Patch features are those of strides 8 and 16, averaged over 3 x 3 neighbours as Roth et al. do.
        """
        x = (x - 127 / 255) / (128 / 255)  # the scaling that its weights were trained with
        last, (fine, coarse) = self.body.forward_intermediates(x, indices=(2, 3))
        patches = torch.cat([fine, interpolate(coarse, size=fine.shape[-2:], mode="bilinear")], 1)
        return normalize(self.body.forward_head(last, pre_logits=True)), avg_pool2d(patches, 3, 1, 1)


def neighbour_distances(stored: Tensor) -> Tensor:
    """Distance of each feature [k, c] to the nearest other one: [k]; 0 where there is no other."""
    if len(stored) < 2:
        return stored.new_zeros(len(stored))
    two = [torch.cdist(part, stored).topk(2, 1, largest=False).values[:, 1] for part in stored.split(1024)]
    return torch.cat(two)  # the nearest of all is the feature itself


def pooled_features(network: FrozenFeatures, images: Tensor, *, batch: int = 64) -> Tensor:
    """Pooled features of uint8 images [n, 3, s, s], of length 1: [n, 1280] on the network's device."""
    return torch.cat([network(x)[0] for x in _batches(network, images, batch)])


def patch_features(network: FrozenFeatures, images: Tensor, *, keep: int, seed: int, batch: int = 16) -> Tensor:
    """Patch features of uint8 images [n, 3, s, s], `keep` of them chosen at random: [keep, 152] or all, if fewer."""
    side = images.shape[-1] // 8
    total = len(images) * side * side
    chosen = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:keep].sort().values
    parts, first = [], 0
    for x in _batches(network, images, batch):
        patches = network(x)[1].permute(0, 2, 3, 1).flatten(0, 2)  # [b * side * side, 152]
        here = chosen[(chosen >= first) & (chosen < first + len(patches))] - first
        parts.append(patches[here.to(patches.device)])
        first += len(patches)
    return torch.cat(parts)


def patch_maps(network: FrozenFeatures, images: Tensor, stored: Tensor, *, batch: int = 16) -> tuple[Tensor, Tensor]:
    """Distance to the nearest stored patch [k, 152]: maps [n, s, s], and each image's largest [n], on the CPU."""
    maps, peaks = [], []
    for x in _batches(network, images, batch):
        patches = network(x)[1]
        distance = nearest_distance(patches.permute(0, 2, 3, 1).flatten(0, 2), stored)
        distance = distance.reshape(len(x), 1, *patches.shape[-2:])  # [b, 1, s / 8, s / 8]
        maps.append(interpolate(distance, size=x.shape[-2:], mode="bilinear")[:, 0].cpu())
        peaks.append(distance.amax((1, 2, 3)).cpu())
    return torch.cat(maps), torch.cat(peaks)


def _batches(network: FrozenFeatures, images: Tensor, batch: int) -> Iterator[Tensor]:
    device = next(network.parameters()).device
    return (to_float(part.to(device)) for part in images.split(batch))


@dataclass(frozen=True)
class Neighbours:
    """What is kept of normal images: features of patches [k, 152], or of whole images [n, 1280].

    `map_scale` is what is far: a patch at this distance from all that is kept has 1/2 in the map.
    """

    network: FrozenFeatures
    stored: Tensor
    whole: bool
    map_scale: Tensor  # []

    config_type = NeighboursConfig
    recipe = staticmethod(neighbours_recipe)
    check = staticmethod(check_neighbours)

    @classmethod
    def fit(cls, config: NeighboursConfig, images: Tensor, folder: Path, options: FitOptions) -> Neighbours:
        """Keep features of normal images, uint8 [n, 3, s, s], in RUN/neighbours.safetensors; nothing is trained."""
        network = FrozenFeatures().to(options.device).to(memory_format=torch.channels_last)
        whole = config.image_score == "whole"
        if whole:
            stored = pooled_features(network, images)
        else:
            stored = patch_features(network, images, keep=config.patches, seed=config.seed)
        map_scale = 2 * neighbour_distances(stored[:10_000]).median().clamp(min=1e-6)
        save_tensors(folder / "neighbours.safetensors", {"features": stored, "map_scale": map_scale})
        return cls(network, stored, whole, map_scale)

    @classmethod
    def load(cls, config: NeighboursConfig, folder: Path, *, device: torch.device) -> Neighbours:
        """Load what `fit` kept; raises CheckpointError where the file is missing or damaged."""
        network, whole = (
            FrozenFeatures().to(device).to(memory_format=torch.channels_last),
            config.image_score == "whole",
        )
        path = folder / "neighbours.safetensors"
        tensors, channels = load_tensors(path), 1280 if whole else 152
        features, map_scale = (tensors.get(name, torch.empty(0)) for name in ("features", "map_scale"))
        if features.ndim != 2 or features.shape[1] != channels or not len(features) or map_scale.shape != ():
            raise CheckpointError(f"{path} does not hold features of {channels} channels; restore it or train again")
        return cls(network, features.to(device), whole, map_scale.to(device))

    def score(self, images: Tensor) -> Scores:
        """Score uint8 images [n, 3, s, s] by distance to what is kept: "patch", with a map in [0, 1), or "whole"."""
        if self.whole:
            # Of features of length 1 the cosine distance is half the squared Euclidean one.
            distance = nearest_distance(pooled_features(self.network, images), self.stored).square() / 2
            return Scores({"whole": distance.cpu()})
        maps, peaks = patch_maps(self.network, images, self.stored)
        return Scores({"patch": peaks}, maps / (maps + self.map_scale.cpu()))
