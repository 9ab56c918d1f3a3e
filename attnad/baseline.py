"""The line to justify against: nearest neighbours on the features of a frozen network, nothing trained.

Images are judged by the cosine distance of pooled features (Bergman et al. 2020, "Deep nearest neighbor anomaly
detection"), pixels by the distance of patch features (Cohen & Hoshen 2020, "Sub-image anomaly detection with deep
pyramid correspondences"; Roth et al. 2022, "Towards total recall in industrial anomaly detection").
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from attnad.data import TestSet, load_train, split_normal
from attnad.metrics import evaluate_scores, normal_threshold
from attnad.models import WeightsError, load_lite0_weights
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
        """Give pooled features [n, 1280] of length 1, and patch features [n, 152, s / 8, s / 8] (strides 8 and 16)."""
        x = (x - 127 / 255) / (128 / 255)  # the scaling that its weights were trained with
        last, (fine, coarse) = self.body.forward_intermediates(x, indices=(2, 3))
        patches = torch.cat([fine, interpolate(coarse, size=fine.shape[-2:], mode="bilinear")], 1)
        return normalize(self.body.forward_head(last, pre_logits=True)), patches


def nearest_distance(queries: Tensor, stored: Tensor, *, chunk: int = 1024) -> Tensor:
    """Euclidean distance of each query [m, c] to the nearest of the stored features [k, c]: [m].

    Works through `chunk` queries at a time, so that memory stays near chunk * k numbers.
    """
    squares = stored.square().sum(1)
    parts = [squares - 2 * part @ stored.T for part in queries.split(chunk)]  # |s|^2 - 2 q s
    return (torch.cat([part.amin(1) for part in parts]) + queries.square().sum(1)).clamp(min=0).sqrt()
