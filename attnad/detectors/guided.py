"""Recipe `guided`: what stage 1 could still do for recipe `discriminators`, measured and not taken (D33).

The paper's second stage sees features times the attention map of its first, eq. (6). Here both stages are strong ones:
the map is recipe `map`'s, and the features and their discriminators are recipe `discriminators`'s.

    F_nor = F_img x A_gen(x),    a level at a time

RUN/strong.safetensors             encoder, Gaussians, discriminators and the map
RUN/map.safetensors                the map alone, where it was trained here
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from attnad.config import GaussianConfig, Recipe, from_dict, gaussian_recipe
from attnad.detectors.gaussian import Gaussian, Levels, fit_levels
from attnad.detectors.map import AttentionMap, MapConfig
from attnad.errors import TrainingError
from attnad.features.backbones import enlarged
from attnad.losses import masked_features
from attnad.train import seeded
from attnad.training.state import FitOptions, fingerprint, read_log, write_log
from attnad.training.storage import load_json


@dataclass(frozen=True)
class GuidedConfig(GaussianConfig):
    """All that decides a `guided` run's scores, beside the code and the machine."""

    recipe: Recipe[Literal["guided"]] = "guided"


def attention_config(config: GuidedConfig) -> MapConfig:
    """Give the configuration of the `map` run whose map weighs the features."""
    own = {name: getattr(config, name) for name in ("normal_class", "size", "seed", "encoder", "min_side")}
    return replace(AttentionMap.recipe("map", config.data), **own)


class GuidedLevels(Levels):
    """`Levels` whose features are weighed by a map."""

    def __init__(self, config: GuidedConfig, *, pretrained: bool):
        super().__init__(config, pretrained=pretrained)
        with seeded(config.seed):
            self.attention = AttentionMap(attention_config(config))

    def seen(self, x: Tensor) -> list[Tensor]:
        """F_nor of eq. (6) of images [n, 3, s, s] in [0, 1], by level [n, c, h, w]."""
        a_gen = enlarged(self.attention.logits(x).sigmoid(), self.features.min_side)
        return [masked_features(f, a_gen) for f in super().seen(x)]


class Guided(Gaussian):
    """Recipe `guided`: recipe `discriminators` on weighed features, in evaluation mode."""

    config_type = GuidedConfig
    levels_type = GuidedLevels

    @staticmethod
    def recipe(name: str, data: str) -> GuidedConfig:
        """Give the configuration for a data set: sizes as those of `discriminators`."""
        return GuidedConfig(data=data, size=gaussian_recipe("discriminators", data).size)

    @classmethod
    def fit(
        cls,
        config: Any,  # GuidedConfig
        images: Tensor,
        folder: Path,
        options: FitOptions,
    ) -> Guided:
        """Train the map, or take over that of `options.stage1`, a finished run of recipe `map`; then as `Gaussian.fit`.

        Raises TrainingError where that run has other values or images, and what training the map raises.
        """
        cls.check_memory(config)
        device, stage1 = options.device, options.stage1
        levels = GuidedLevels(config, pretrained=True).to(device).to(memory_format=torch.channels_last).eval()
        first = attention_config(config)
        attention = (
            AttentionMap.fit(first, images, folder, options)
            if stage1 is None
            else _take_over(stage1, folder, first, images, device)
        )
        levels.attention.load_state_dict(attention.state_dict())
        fit_levels(levels, config, images, folder, progress=options.progress)
        return cls(levels.eval())


def _take_over(stage1: Path, folder: Path, config: MapConfig, images: Tensor, device: torch.device) -> AttentionMap:
    """Load the map of another run, and begin the log with that run's, as if it had been trained here."""
    there: MapConfig | None = None
    with suppress(ValueError):  # of another recipe
        there = from_dict(MapConfig, load_json(stage1 / "config.json"))
    if there != config:
        raise TrainingError(f"{stage1} is no run of recipe map with these values; train without it")
    if load_json(stage1 / "run.json").get("images") != fingerprint(images):
        raise TrainingError(f"{stage1} was trained on other images than these; restore the data or move that run away")
    write_log(folder / "log.csv", read_log(stage1 / "log.csv"))
    return cast(AttentionMap, AttentionMap.load(config, stage1, device=device))
