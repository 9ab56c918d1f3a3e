"""The paper's detector: the attention network G1 with its discriminator D1, then ADGAN on masked features.

RUN/attention.safetensors          G1 and D1
RUN/adgan.safetensors              F_img, G2 and D2
RUN/*.state.safetensors            training state, to resume from; removed when the run is finished
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attnad.config import PaperConfig, check, differences, from_dict, paper_recipe, short_hash, to_dict
from attnad.errors import CheckpointError, TrainingError
from attnad.models import ADGAN, AttentionNetwork, Discriminator
from attnad.score import Scores, score
from attnad.train import train_adgan, train_attention
from attnad.training.state import FitOptions, fingerprint, read_log, write_log
from attnad.training.storage import load_json, load_modules, module_tensors, outline, save_tensors


@dataclass(frozen=True)
class Paper:
    """The networks of both stages, in evaluation mode."""

    network: AttentionNetwork
    discriminator: Discriminator
    adgan: ADGAN

    config_type = PaperConfig
    recipe = staticmethod(paper_recipe)
    check = staticmethod(check)

    @classmethod
    def fit(cls, config: PaperConfig, images: Tensor, folder: Path, options: FitOptions) -> Paper:
        """Train both stages, or go on where they stopped; `options.stage1` is a finished run with the same stage 1."""
        training: dict[str, Any] = {
            "device": options.device, "folder": folder,
            "save_seconds": options.save_seconds, "progress": options.progress,
        }  # fmt: skip
        if options.stage1 is None or (folder / "attention.state.safetensors").exists():
            network, discriminator = train_attention(config, images, **training)
        else:
            network, discriminator = _take_over(options.stage1, folder, config, images, options.device)
        adgan = train_adgan(config, images, network, **training)
        save_tensors(
            folder / "attention.safetensors",
            module_tensors("network", network) | module_tensors("discriminator", discriminator),
        )
        save_tensors(folder / "adgan.safetensors", module_tensors("adgan", adgan))
        return cls(network, discriminator, adgan)

    @classmethod
    def load(cls, config: PaperConfig, folder: Path, *, device: torch.device) -> Paper:
        """Load the networks of a finished run; raises CheckpointError on weights of another architecture."""
        network, discriminator = _load_attention(folder, config, device)
        adgan = outline(lambda: ADGAN(network.encoder, config.attention, config.size))
        load_modules(folder / "adgan.safetensors", adgan=adgan)
        return cls(network, discriminator, adgan.to(device).to(memory_format=torch.channels_last).eval())

    def score(self, images: Tensor) -> Scores:
        """Score uint8 images [n, 3, s, s]; see `attnad.score.score`."""
        return score(self.network, self.discriminator, self.adgan, images)


def stage1_hash(values: dict[str, Any]) -> str:
    """Eight hexadecimal digits that stand for all that decides stage 1: runs that share them can share it.

    `values` are a configuration's, as `to_dict` or a run's config.json gives them.
    """
    return short_hash({k: v for k, v in values.items() if k not in ("adgan", "image_score")})


def _take_over(
    stage1: Path, folder: Path, config: PaperConfig, images: Tensor, device: torch.device
) -> tuple[AttentionNetwork, Discriminator]:
    """Load stage 1 from another run, and begin the log with that run's, as if it had been trained here."""
    path = stage1 / "config.json"
    try:
        there = from_dict(PaperConfig, load_json(path))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; restore it or train again") from error
    same_stage2 = replace(there, adgan=config.adgan, image_score=config.image_score)
    if found := differences(to_dict(same_stage2), to_dict(config)):
        raise TrainingError(f"{stage1} has another stage 1 ({'; '.join(found)}); train it instead")
    if load_json(stage1 / "run.json").get("images") not in (None, fingerprint(images)):  # None: of an earlier version
        raise TrainingError(f"{stage1} was trained on other images than these; restore the data or move that run away")
    if not (folder / "adgan.state.safetensors").exists():
        write_log(folder / "log.csv", [line for line in read_log(stage1 / "log.csv") if line[0] == "attention"])
    return _load_attention(stage1, config, device)


def _load_attention(folder: Path, config: PaperConfig, device: torch.device) -> tuple[AttentionNetwork, Discriminator]:
    network = outline(lambda: AttentionNetwork(config.attention, pretrained=False))
    discriminator = outline(lambda: Discriminator(4, config.size, config.attention.width))
    load_modules(folder / "attention.safetensors", network=network, discriminator=discriminator)
    for module in (network, discriminator):
        module.to(device).to(memory_format=torch.channels_last).eval()
    return network, discriminator
