"""What the baselines share: configuration, training loop, scores. A baseline is a network, its losses and its maps.

So are recipes `map` and `dcgan` (`attnad.detectors`), which are no baselines of the paper's, but trained alike.

What holds for all of them, where the originals say otherwise or nothing:

R1. Networks, images and training are small, so that a run on the embedded textures takes a minute or so on two cores.
    The originals' architectures, patches and lengths of training are their own; see each file for what matters.
R2. Maps come out in [0, 1): m / (m + map_scale), where `map_scale` is what a twentieth of all pixels of normal training
    images lies above. The order of pixels, and so every AUROC, is that of m.
R3. Where the original judges no image as a whole, the mean of the highest hundredth of m does ("top"); the mean of all
    of m is there too ("mean").
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from attnad.config import SEED, SIZE, DetectorConfig, Range, check_ranges
from attnad.errors import TrainingError
from attnad.score import Scores
from attnad.train import seeded, to_float
from attnad.training.epochs import run_epochs
from attnad.training.state import FitOptions, State
from attnad.training.storage import load_modules, module_tensors, outline, save_tensors


@dataclass(frozen=True)
class NetworkConfig(DetectorConfig):
    """All that decides a baseline's scores, beside the code and the machine; each adds values of its own."""

    seed: int = 0
    """Seed of the split that holds out normal images, of weights, order and noise."""
    image_score: Literal["top", "mean"] = "top"
    """What judges an image: the mean of the highest hundredth of its map, or of all of it (R3)."""
    width: int = 16
    """Channels of the widest layers, those at half the images' side (R1)."""
    epochs: int = 20
    """Passes over the normal images (R1)."""
    batch: int = 16
    """Images a step (R1)."""
    learning_rate: float = 1e-3
    """Adam's (R1)."""

    @property
    def encoder(self) -> str:
        """Name of the encoder, for tables."""
        return "convolutions"


@dataclass(frozen=True)
class LatentConfig(NetworkConfig):
    """The same of a baseline that reduces an image to one vector."""

    image_score: Literal["top", "mean", "anogan", "reconstruction", "novelty", "indicator"] = "top"  # type: ignore[assignment]
    """What judges an image: the mean of the highest hundredth of its map, or of all of it (R3), or the recipe's own."""
    latent: int = 64
    """Numbers that an image is reduced to (R1)."""


_RANGES: tuple[Range, ...] = (
    SIZE,
    SEED,
    ("width", "from 2 to 128", lambda v: 2 <= v <= 128),
    ("epochs", "from 0 to a million", lambda v: 0 <= v <= 1_000_000),
    ("batch", "from 2 to 65536", lambda v: 2 <= v <= 65536),
    ("learning_rate", "above 0", lambda v: 0 < v < math.inf),
)
_LATENT: Range = ("latent", "from 1 to 1024", lambda v: 1 <= v <= 1024)


@dataclass(frozen=True)
class Prediction:
    """What a baseline makes of images: m >= 0 [n, s, s], further image scores [n], reconstructions [n, 3, s, s]."""

    maps: Tensor
    image: dict[str, Tensor] = field(default_factory=dict)
    x_re: Tensor | None = None


class NetworkDetector(nn.Module):
    """A detector (see `attnad.detectors`) that is one network; a baseline says what `losses` and `predict_maps` are.

    What decides its scores and nobody has had to change is a constant of its class.
    """

    config: Any  # the baseline's `config_type`
    map_scale: Tensor
    config_type: Any = LatentConfig
    ranges: tuple[Range, ...] = ()  # of the baseline's own values
    defaults: ClassVar[dict[str, Any]] = {}  # its recipe's values where the configuration has others
    image_scores: tuple[str, ...] = ("top", "mean")  # what may judge an image; its recipe's choice is the first
    terms: tuple[str, ...] = ("loss",)
    beta1 = 0.9  # Adam's first moment decay (R1)

    def __init__(self, config: NetworkConfig):
        super().__init__()
        self.config = config
        self.register_buffer("map_scale", torch.ones(()))

    def losses(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Give the terms for images [n, 3, s, s] in [0, 1]: first what is to fall, then parts of it worth logging."""
        raise NotImplementedError

    def predict_maps(self, x: Tensor) -> Prediction:
        """Judge images [n, 3, s, s] in [0, 1]."""
        raise NotImplementedError

    def begin(self, images: Tensor, options: FitOptions) -> None:
        """Take from normal images, uint8 [n, 3, s, s], what training needs to know beforehand."""

    def finish(self, images: Tensor) -> None:
        """Take from normal images what scoring needs to know: `map_scale`."""
        maps = torch.cat([self.predict_maps(to_float(part)).maps for part in images[:64].split(16)])
        self.map_scale.copy_(
            torch.quantile(maps.flatten().float().cpu()[:: maps.numel() // 10_000 + 1], 0.95).clamp(min=1e-6)
        )

    def parts(self) -> dict[str, nn.Module]:
        """What has an optimiser of its own."""
        return {"all": self}

    def pace(self, part: str, passed: float) -> float:
        """What a part's learning rate is multiplied by when a share of the training, from 0 to below 1, has passed."""
        return 1.0

    def step(self, x: Tensor, optimizers: dict[str, torch.optim.Optimizer], generator: torch.Generator) -> Tensor:
        """Train on images [n, 3, s, s] in [0, 1]; returns the losses before the step, in the order of `terms`."""
        losses = self.losses(x, generator)
        descend(losses[0], *optimizers.values())
        return torch.stack(losses).detach()

    @classmethod
    def recipe(cls, name: str, data: str) -> NetworkConfig:
        """Give the configuration for a data set: 32 pixels for cifar10, 64 for textures, 128 for others."""
        size = {"cifar10": 32, "textures": 64}.get(data, 128)
        return cls.config_type(data=data, recipe=name, size=size, image_score=cls.image_scores[0], **cls.defaults)

    @classmethod
    def check(cls, config: NetworkConfig) -> None:
        """Raise ValueError, naming the field and what it takes, where a value makes no sense."""
        latent = (_LATENT,) if isinstance(config, LatentConfig) else ()
        judge: Range = ("image_score", " or ".join(cls.image_scores), lambda v: v in cls.image_scores)
        check_ranges(config, (*_RANGES, judge, *latent, *cls.ranges))

    @classmethod
    def fit(cls, config: NetworkConfig, images: Tensor, folder: Path, options: FitOptions) -> NetworkDetector:
        """Train on normal images, uint8 [n, 3, s, s], into RUN/RECIPE.safetensors, or go on where it stopped.

        Raises TrainingError on values that make no sense and on a loss that is not finite, CheckpointError on a state
        of other data or another model.
        """
        try:
            cls.check(config)
        except ValueError as error:
            raise TrainingError(str(error)) from error
        with seeded(config.seed):
            model = cls(config)
        device = options.device
        model, images = model.to(device).to(memory_format=torch.channels_last).train(), images.to(device)
        model.begin(images, options)
        optimizers: dict[str, torch.optim.Optimizer] = {}
        for name, part in model.parts().items():
            learned = [p for p in part.parameters() if p.requires_grad]
            optimizers[name] = torch.optim.Adam(learned, config.learning_rate, (cls.beta1, 0.999))
        generator = torch.Generator(device).manual_seed(config.seed)
        state = State(folder, config.recipe, {"model": model}, optimizers, generator, images, options.save_seconds)

        def step_on(chosen: Tensor) -> Tensor:
            for name, optimizer in optimizers.items():
                optimizer.param_groups[0]["lr"] = config.learning_rate * model.pace(name, state.passed)
            return model.step(to_float(images[chosen]), optimizers, generator)

        steps = max(1, len(images) // config.batch)  # a last, smaller batch is left out of this epoch
        run_epochs(
            step_on, state, cls.terms,
            epochs=config.epochs, batch=config.batch, steps=steps, progress=options.progress,
        )  # fmt: skip
        model.eval().requires_grad_(False)
        model.finish(images)
        save_tensors(folder / f"{config.recipe}.safetensors", module_tensors("model", model))
        return model

    @classmethod
    def load(cls, config: NetworkConfig, folder: Path, *, device: torch.device) -> NetworkDetector:
        """Load what `fit` gave; raises CheckpointError where the file is missing, damaged or of another model."""
        model = outline(lambda: cls(config))
        load_modules(folder / f"{config.recipe}.safetensors", model=model)
        return model.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)

    def score(self, images: Tensor) -> Scores:
        """Score uint8 images [n, 3, s, s]: "top", "mean" and what the baseline adds; maps in [0, 1) (R2)."""
        columns: dict[str, list[Tensor]] = {}
        for part in images.split(32):
            predicted = self.predict_maps(to_float(part.to(self.map_scale.device)))
            flat = predicted.maps.flatten(1)
            top = flat.topk(max(1, flat.shape[1] // 100), 1).values.mean(1)
            found = {
                "top": top,
                "mean": flat.mean(1),
                **predicted.image,
                "maps": predicted.maps,
                "x_re": predicted.x_re,
            }
            for name, values in found.items():
                if values is not None:
                    columns.setdefault(name, []).append(values.detach().float().cpu())
        image = {name: torch.cat(values) for name, values in columns.items()}
        maps, x_re = image.pop("maps"), image.pop("x_re", None)
        return Scores(image, maps / (maps + self.map_scale.cpu()), x_re=x_re)


def descend(loss: Tensor, *optimizers: torch.optim.Optimizer) -> None:
    """One step down a loss by each optimiser's values."""
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
