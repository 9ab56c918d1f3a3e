"""Stage 1 with skip connections, alone: recipe `map`, what `discriminators` was to stand on and does not (D30).

The paper's decoder draws its map from one vector of an image, and has lost the detail by then. Here each level of a
frozen network gives its part to the map, from the coarsest to the finest, as in a feature pyramid (Lin et al. 2017,
"Feature pyramid networks for object detection"). There is no reconstruction and no game: the map alone is taught, by
stains and scratches (`attnad.features.stains`), with focal and dice losses in the place of eq. (4).

    A_gen = sigmoid(logit),    L = focal_weight * focal + dice_weight * dice,    m = -log A_gen

RUN/map.safetensors                encoder and pyramid
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, softplus

from attnad.config import SIZE, AttentionConfig, FrozenName, Recipe
from attnad.detectors.network import NetworkConfig, NetworkDetector, Prediction
from attnad.features.backbones import enlarged
from attnad.features.stains import StainConfig, stain
from attnad.losses import dice_loss, focal_loss
from attnad.models import build_encoder
from attnad.training.state import FitOptions


@dataclass(frozen=True)
class MapConfig(NetworkConfig):
    """All that decides a `map` run's scores, beside the code and the machine."""

    recipe: Recipe[Literal["map"]] = "map"
    encoder: FrozenName = "efficientnet-lite0"
    """The network with ImageNet's weights, frozen unless `tune` says otherwise."""
    min_side: int = field(default=128, metadata={"was": "least"})
    """Smaller images are enlarged to this side first, in pixels (D27)."""
    width: int = 64
    """Channels of the pyramid (D32)."""
    focal_weight: float = 10.0
    """Weight of the focal loss (D32)."""
    dice_weight: float = 0.2
    """Weight of the dice loss (D32)."""
    tune: float = field(default=0.0, metadata={"before": 0.0})
    """Learning rate of the encoder, as a share of the pyramid's; at 0 it is frozen (D32)."""
    schedule: Literal["constant", "one-cycle"] = field(default="constant", metadata={"before": "constant"})
    """What becomes of the learning rates: they stay, or rise for three tenths of the training and fall to 0 (D32)."""
    stains: StainConfig = field(default_factory=StainConfig)


def one_cycle(passed: float) -> float:
    """Share of the highest learning rate, 1/25 at the beginning, 1 after three tenths of the training, 0 at its end.

    Source: Smith & Topin 2017, "Super-convergence"; cosines and numbers are those of PyTorch's OneCycleLR.
    """
    rising = passed < 0.3
    half_turn = passed / 0.3 if rising else 1 + (passed - 0.3) / 0.7
    wave = (1 - math.cos(math.pi * half_turn)) / 2
    return 1 / 25 + wave * 24 / 25 if rising else wave


class AttentionPyramid(nn.Module):
    """Features of several levels to one map: a list of [n, c, h, w], finest first, to logits [n, 1, h, w] of A_gen."""

    def __init__(self, channels: list[int], width: int):
        super().__init__()
        self.across = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.smooth = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
            for _ in channels
        )
        self.logit = nn.Conv2d(width, 1, 1)

    def forward(self, levels: list[Tensor]) -> Tensor:
        f: Tensor | None = None
        for level, across, smooth in reversed(list(zip(levels, self.across, self.smooth, strict=True))):
            part = across(level)
            f = smooth(part if f is None else part + interpolate(f, size=part.shape[-2:], mode="bilinear"))
        assert f is not None, "there are levels"
        return self.logit(f)


class AttentionMap(NetworkDetector):
    """Recipe `map`."""

    config_type = MapConfig
    terms = ("L", "L_focal", "L_dice")
    ranges = (
        ("min_side", *SIZE[1:]),
        ("tune", "from 0 to 1", lambda v: 0 <= v <= 1),
        ("focal_weight dice_weight", "0 or more", lambda v: 0 <= v < math.inf),
        ("stains.window stains.box", "two shares above 0 and up to 1, the lower first",
         lambda v: 0 < v[0] <= v[1] <= 1),
        ("stains.thinness", "1 or more", lambda v: 1 <= v < math.inf),
        ("stains.opacity stains.changed stains.augment.brightness stains.augment.contrast stains.augment.saturation",
         "from 0 to 1", lambda v: 0 <= v <= 1),
        ("stains.augment.hue", "from 0 to 0.5", lambda v: 0 <= v <= 0.5),
        ("stains.augment.grids", "one or more of 2, 4, 8, 16 and 32, which divide every size",
         lambda v: v and all(g in (2, 4, 8, 16, 32) for g in v)),
    )  # fmt: skip

    def __init__(self, config: MapConfig):
        super().__init__(config)
        encoder = build_encoder(AttentionConfig(encoder=config.encoder), pretrained=False)
        self.encoder = encoder.eval().requires_grad_(config.tune > 0)
        self.pyramid = AttentionPyramid(list(self.encoder.channels[1:]), config.width)  # the finest costs most

    def train(self, mode: bool = True) -> AttentionMap:
        super().train(mode)
        self.encoder.eval()  # its batch statistics stay ImageNet's, also where it is tuned: those would lag (D34)
        return self

    def begin(self, images: Tensor, options: FitOptions) -> None:
        pretrained = build_encoder(AttentionConfig(encoder=self.config.encoder))
        self.encoder.load_state_dict(pretrained.state_dict())

    def parts(self) -> dict[str, nn.Module]:
        return {"pyramid": self.pyramid, "encoder": self.encoder} if self.config.tune else super().parts()

    def pace(self, part: str, passed: float) -> float:
        share = self.config.tune if part == "encoder" else 1.0
        return share * (one_cycle(passed) if self.config.schedule == "one-cycle" else 1.0)

    def logits(self, x: Tensor) -> Tensor:
        """Logits of A_gen [n, 1, s, s] for images [n, 3, s, s] in [0, 1]."""
        size = x.shape[-2:]
        with torch.set_grad_enabled(self.config.tune > 0 and torch.is_grad_enabled()):
            levels = [level.float() for level in self.encoder.pyramid(enlarged(x, self.config.min_side))[1:]]
        return interpolate(self.pyramid(levels), size=size, mode="bilinear")

    def losses(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        x_ano, a_ano = stain(x, self.config.stains, generator)
        logits = self.logits(torch.cat([x, x_ano]))
        a = torch.cat([torch.ones_like(a_ano), a_ano])
        focal, dice = focal_loss(logits, a), dice_loss(logits.sigmoid(), a)
        return self.config.focal_weight * focal + self.config.dice_weight * dice, focal, dice

    def finish(self, images: Tensor) -> None:
        """Leave `map_scale` at 1, where A_gen is 1 / e: the map needs no other scale."""

    def predict_maps(self, x: Tensor) -> Prediction:
        return Prediction(softplus(-self.logits(x))[:, 0])

    @classmethod
    def recipe(cls, name: str, data: str) -> MapConfig:
        """Give the configuration for a data set: 32 pixels for cifar10, 64 for textures, 256 for others (D32)."""
        size, epochs = {"cifar10": (32, 2), "textures": (64, 12)}.get(data, (256, 30))
        return MapConfig(data=data, size=size, epochs=epochs)
