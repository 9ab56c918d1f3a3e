"""The line to justify against: nearest neighbours on the features of a frozen network, nothing trained.

Images are judged by the cosine distance of pooled features (Bergman et al. 2020, "Deep nearest neighbor anomaly
detection"), pixels by the distance of patch features (Cohen & Hoshen 2020, "Sub-image anomaly detection with deep
pyramid correspondences"; Roth et al. 2022, "Towards total recall in industrial anomaly detection").
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, normalize

from attnad.checkpoint import CheckpointError, load_tensors, save_tensors
from attnad.data import TestSet, load_train, split_normal
from attnad.metrics import evaluate_scores, normal_threshold
from attnad.models import WeightsError, load_lite0_weights
from attnad.run import machine_facts
from attnad.train import pick_device, to_float


@dataclass(frozen=True)
class BaselineConfig:
    """All that decides the baseline's scores, beside the code and the machine."""

    data: str
    normal_class: str | None = None
    size: int = 256
    """Side of the square images, in pixels: a multiple of 32."""
    seed: int = 0
    """Seed of the split that holds out normal images, and of the choice of patches."""
    patches: int = 10_000
    """Normal patches that are kept to compare with."""


class FrozenFeatures(nn.Module):
    """EfficientNet-Lite0 with ImageNet's weights, in evaluation mode: images [n, 3, s, s] to two kinds of features.

    Raises WeightsError where the extra that brings architecture and weights is not installed.
    """

    def __init__(self):
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise WeightsError("the baseline's network needs an extra: pip install 'attnad[lite0]'") from error
        self.body = timm.create_model("tf_efficientnet_lite0")
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


def nearest_distance(queries: Tensor, stored: Tensor, *, chunk: int = 1024) -> Tensor:
    """Euclidean distance of each query [m, c] to the nearest of the stored features [k, c]: [m].

    Works through `chunk` queries at a time, so that memory stays near chunk * k numbers.
    """
    squares = stored.square().sum(1)
    nearest = [(squares - 2 * part @ stored.T).amin(1) for part in queries.split(chunk)]  # |q - s|^2 less |q|^2
    return (torch.cat(nearest) + queries.square().sum(1)).clamp(min=0).sqrt()


def pooled_features(network: FrozenFeatures, images: Tensor, *, batch: int = 64, cache: Path | None = None) -> Tensor:
    """Pooled features of uint8 images [n, 3, s, s], of length 1: [n, 1280] on the network's device.

    With a folder `cache` they are kept there: CIFAR-10's classes have one test set, and all seeds the same images.
    """
    device = next(network.parameters()).device
    if cache is None:
        return torch.cat([network(x)[0] for x in _batches(network, images, batch)])
    path = cache / f"pooled-{hashlib.sha256(images.cpu().contiguous().numpy()).hexdigest()[:16]}.safetensors"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):  # others that need the same wait for it
        if not path.exists():
            save_tensors(path, {"features": pooled_features(network, images, batch=batch)})
        features = load_tensors(path).get("features")
    if features is None or len(features) != len(images):
        raise CheckpointError(f"{path} does not hold these images' features; remove it")
    return features.to(device)


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


def evaluate_baseline(
    config: BaselineConfig,
    test: TestSet,
    *,
    device: str = "auto",
    data_root: Path | None = None,
    cache: Path | None = None,
) -> dict[str, Any]:
    """Judge a test set by its distance to normal training images, by patches where it has masks, else by whole images.

    A tenth of the training images is held out for the threshold, as in `attnad.run.train_run`. Returns the metrics of
    `attnad.metrics.evaluate_scores` and "facts"; `cache` is as in `pooled_features`. Raises DataError, WeightsError or
    TrainingError.
    """
    started, chosen = time.perf_counter(), pick_device(device)
    normal = load_train(config.data, size=config.size, normal_class=config.normal_class, root=data_root)
    network, arrays = FrozenFeatures().to(chosen, memory_format=torch.channels_last), {}
    if test.has_mask.any():
        images, held_out = split_normal(normal.images, seed=config.seed)
        stored = patch_features(network, images, keep=config.patches, seed=config.seed)
        _, held_out_scores = patch_maps(network, held_out, stored)
        maps, scores = patch_maps(network, test.images, stored)
        arrays = {"masks": test.masks.numpy(), "maps": maps.numpy(), "has_mask": test.has_mask.numpy()}
    else:
        stored, held_out = split_normal(pooled_features(network, normal.images, cache=cache), seed=config.seed)
        judged = pooled_features(network, test.images, cache=cache)
        # Of features of length 1 the cosine distance is half the squared Euclidean one.
        held_out_scores, scores = (nearest_distance(each, stored).square().cpu() / 2 for each in (held_out, judged))
    threshold = normal_threshold(held_out_scores.numpy())
    result = evaluate_scores(test.labels.numpy(), scores.numpy(), threshold=threshold, **arrays)
    seconds = round(time.perf_counter() - started, 1)
    return {**result, "facts": machine_facts(chosen) | {"threshold": threshold, "seconds": {"baseline": seconds}}}
