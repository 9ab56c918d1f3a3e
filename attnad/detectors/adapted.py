"""Recipe `adapted`: nearest neighbours on features that have first got used to the normal images.

Two views of each image, moved, mirrored and in other colours, are to have near features, and those of other images far
ones. Angles are measured around the mean c of the frozen network's features of normal images, since around the origin
all normal images point the same way:

    t(x) = (f(x) - c) / |f(x) - c|
    L = mean over views of -log exp(t . t' / T) / (sum over all other views of the batch of exp(t . t'' / T))

where f is of length 1, t' the other view of the image and T a temperature. Only the network's last blocks learn, and
for one epoch: longer, and features of anomalies are spread out too. Source: Reiss & Hoshen 2023, "Mean-shifted
contrastive loss for anomaly detection"; that one epoch is enough was measured on these classes, with their labels.

RUN/adapted.safetensors            the network, and the features that are kept
RUN/adapted.state.safetensors      training state, to resume from; removed when the run is finished
RUN/log.csv                        the loss of each epoch
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, cross_entropy, grid_sample, normalize

from attnad.config import SEED, SIZE, Data, DetectorConfig, Recipe, check_ranges
from attnad.detectors.neighbours import FrozenFeatures, Neighbours, pooled_features
from attnad.errors import CheckpointError, TrainingError
from attnad.train import to_float
from attnad.training.epochs import run_epochs
from attnad.training.state import FitOptions, State
from attnad.training.storage import load_module, load_tensors, module_tensors, save_tensors


@dataclass(frozen=True)
class AdaptedConfig(DetectorConfig):
    """All that decides the scores of `adapted`, beside the code and the machine."""

    data: Data = "cifar10"
    recipe: Recipe[Literal["adapted"]] = "adapted"
    size: int = 128
    seed: int = 0
    """Seed of the split that holds out normal images, of order and views."""
    image_score: Literal["whole"] = "whole"
    """What judges an image: the image as a whole; no map is drawn."""
    epochs: int = 1
    """Passes over the normal images."""
    batch: int = 128
    """Images a step, of two views each."""
    temperature: float = 0.25
    """T, by which cosines are divided."""
    learning_rate: float = 5e-4
    """Of gradient descent with momentum 0.9."""

    @property
    def encoder(self) -> str:
        """Name of the encoder, for tables."""
        return "efficientnet-lite0"


def adapted_recipe(name: str, data: str) -> AdaptedConfig:
    """Give the configuration for a data set: 128 pixels, whole images."""
    return AdaptedConfig(data=data)


def check_adapted(config: AdaptedConfig) -> None:
    """Raise ValueError, naming the field and what it takes, where a value makes no sense."""
    more = (
        ("epochs", "from 0 to a million", lambda v: 0 <= v <= 1_000_000),
        ("batch", "from 2 to 65536", lambda v: 2 <= v <= 65536),
        ("temperature", "from 0.01 to 10", lambda v: 0.01 <= v <= 10),
        ("learning_rate", "above 0", lambda v: 0 < v < math.inf),
    )
    check_ranges(config, (SIZE, SEED, *more))


def view(x: Tensor, generator: torch.Generator) -> Tensor:
    """Move each image by up to an eighth of its side, mirror every other one, scale its colours by 1 +- 0.2.

    Takes and gives [n, 3, s, s] in [0, 1]; what comes in at the edges is the image, mirrored.
    """
    chance = torch.rand(len(x), 6, generator=generator, device=x.device)
    theta = torch.zeros(len(x), 2, 3, device=x.device)
    theta[:, 0, 0] = torch.where(chance[:, 0] < 0.5, -1.0, 1.0)
    theta[:, 1, 1] = 1
    theta[:, :, 2] = (chance[:, 1:3] - 0.5) / 2  # sides are 2 long here
    moved = grid_sample(x, affine_grid(theta, list(x.shape), False), padding_mode="reflection", align_corners=False)
    return (moved * (0.8 + 0.4 * chance[:, 3:, None, None])).clamp(0, 1)


def mean_shifted_loss(first: Tensor, second: Tensor, center: Tensor, temperature: float) -> Tensor:
    """L of two views' features [n, c] of length 1 around the center [c], a scalar. n > 1."""
    t = normalize(torch.cat([first, second]) - center)
    cosines = (t @ t.T / temperature).fill_diagonal_(-math.inf)
    return cross_entropy(cosines, torch.arange(len(t), device=t.device).roll(len(first)))


class Adapted(Neighbours):
    """What is kept of normal images, and the adapted network that gave it."""

    config_type: Any = AdaptedConfig
    recipe: Any = staticmethod(adapted_recipe)
    check: Any = staticmethod(check_adapted)

    @classmethod
    def fit(cls, config: Any, images: Tensor, folder: Path, options: FitOptions) -> Adapted:
        """Adapt the network to normal images, uint8 [n, 3, s, s], then keep their features, into `folder`.

        What was stopped goes on. Raises TrainingError on a loss that is not finite, and where there is one image alone;
        CheckpointError on a state of other data.
        """
        if len(images) < 2:
            raise TrainingError(
                "recipe adapted learns from differences between images, and there is one alone; add some"
            )
        device = options.device
        network = FrozenFeatures().to(device).to(memory_format=torch.channels_last)
        center = pooled_features(network, images).mean(0)
        learned = [*network.body.blocks[-2:].parameters(), *network.body.conv_head.parameters()]
        for parameter in learned:
            parameter.requires_grad_(True)
        optimizer = torch.optim.SGD(learned, config.learning_rate, momentum=0.9, weight_decay=5e-5)
        generator = torch.Generator(device).manual_seed(config.seed)
        state = State(
            folder, "adapted", {"network": network}, {"all": optimizer}, generator, images, options.save_seconds
        )

        def step_on(chosen: Tensor) -> Tensor:
            x = to_float(images[chosen.cpu()].to(device))
            first, second = network(torch.cat([view(x, generator), view(x, generator)]))[0].chunk(2)
            loss = mean_shifted_loss(first, second, center, config.temperature)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.detach()[None]

        whole, rest = divmod(len(images), config.batch)
        steps = whole + (rest > 1)  # one image alone has no others
        run_epochs(
            step_on, state, ("L",), epochs=config.epochs, batch=config.batch, steps=steps, progress=options.progress
        )
        network.requires_grad_(False)
        stored = pooled_features(network, images)
        save_tensors(folder / "adapted.safetensors", module_tensors("network", network) | {"features": stored})
        return cls(network, stored, True, torch.ones(()))  # no map, no reach

    @classmethod
    def load(cls, config: Any, folder: Path, *, device: torch.device) -> Adapted:
        """Load what `fit` kept; raises CheckpointError where the file is missing or damaged."""
        network, path = FrozenFeatures(), folder / "adapted.safetensors"
        tensors = load_tensors(path)
        load_module("network", network, tensors, path)
        stored = tensors.get("features", torch.empty(0))
        if stored.ndim != 2 or stored.shape[1] != 1280 or not len(stored):
            raise CheckpointError(f"{path} does not hold features of 1280 channels; restore it or train again")
        network = network.to(device).to(memory_format=torch.channels_last)
        return cls(network, stored.to(device), True, torch.ones(()))
