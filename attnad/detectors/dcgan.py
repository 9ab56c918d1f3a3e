"""The GAN of table 1: recipe `dcgan`, a DCGAN with an encoder, on images (section 4.2.1; D25).

Before the paper builds its two stages, it asks whether hard augmentation helps a discriminator at all: of a GAN on
images, without features and attention. The discriminator's fakes are what the generator makes of normal images, and
x'_ano, images changed by the steps of `augment` that are on; with `real_anomalies`, images of other classes too.

    L_D = -E log D(x) - mean over the K groups of fakes of E log(1 - D(x_k)),    L_G = L_adv + reconstruction_weight L_R
    score = -logit of the moving average of D (D18),    m = |x - G(x)|

RUN/dcgan.safetensors              generator, discriminator and its moving average
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from attnad.augmentations import synthesize
from attnad.config import AUGMENT_RANGES, AugmentConfig, Recipe, check_grids
from attnad.data import classes, load_train
from attnad.detectors.network import NetworkConfig, NetworkDetector, Prediction, descend
from attnad.errors import TrainingError
from attnad.losses import adversarial_loss, non_saturating_loss, reconstruction_nll
from attnad.models import Discriminator, ResNet18, decoder
from attnad.train import MovingAverage, to_float
from attnad.training.state import FitOptions


@dataclass(frozen=True)
class DCGANConfig(NetworkConfig):
    """All that decides the scores of `dcgan`, beside the code and the machine."""

    recipe: Recipe[Literal["dcgan"]] = "dcgan"
    image_score: Literal["discriminator", "top", "mean"] = "discriminator"  # type: ignore[assignment]
    """What judges an image: minus the discriminator's logit, or its map (R3)."""
    epochs: int = 4
    """Passes over the normal images (D21)."""
    batch: int = 32
    """Images a step (D21)."""
    learning_rate: float = 5e-4
    """Adam's (D21)."""
    reconstruction_weight: float = 1.0
    """Weight of the generator's reconstruction beside its adversarial loss (D15)."""
    ema: float = 0.9
    """Decay, a step, of the moving average of the discriminator's weights that scores (D18)."""
    real_anomalies: int = 0
    """Show the discriminator so many training images of the other classes as fakes too: table 1's "semi" (D26)."""
    augment: AugmentConfig = field(default_factory=lambda: AugmentConfig(whole_share=1.0))

    @property
    def encoder(self) -> str:
        """Name of the encoder, for tables."""
        return "resnet18"


class DCGAN(NetworkDetector):
    """Recipe `dcgan`: no baseline of the paper's, but trained as they are (`attnad.detectors.baselines`)."""

    config_type = DCGANConfig
    terms = ("L_D", "L_adv", "L_R")
    image_scores = ("discriminator", "top", "mean")
    beta1 = 0.5  # DCGAN's
    ranges = (
        ("reconstruction_weight", "0 or more", lambda v: 0 <= v < math.inf),
        ("ema", "from 0 to 1", lambda v: 0 <= v <= 1),
        ("real_anomalies", "from 0 to a million", lambda v: 0 <= v <= 1_000_000),
        *AUGMENT_RANGES,
    )
    anomalies: Tensor | None = None  # of other classes, uint8 [real_anomalies, 3, s, s]

    def __init__(self, config: DCGANConfig):
        super().__init__(config)
        encoder = ResNet18(config.width)
        self.generator = nn.Sequential(
            encoder, decoder(encoder.out_channels, config.width), nn.Conv2d(config.width // 2, 3, 1), nn.Sigmoid()
        )
        self.discriminator = Discriminator(3, config.size, config.width)
        self.average = MovingAverage(self.discriminator, config.ema)

    @classmethod
    def check(cls, config: NetworkConfig) -> None:
        super().check(config)
        check_grids(config)

    def parts(self) -> dict[str, nn.Module]:
        return {"d": self.discriminator, "g": self.generator}

    def begin(self, images: Tensor, options: FitOptions) -> None:
        """Draw training images of the other classes, where the discriminator is to see some.

        Raises TrainingError where the data set has no other classes.
        """
        config = self.config
        if not config.real_anomalies:
            return
        others = [name for name in classes(config.data, options.data_root) if name != config.normal_class]
        if config.normal_class is None or not others:
            raise TrainingError(f"{config.data}: real anomalies need a data set of several classes and a normal one")
        found = [load_train(config.data, size=config.size, normal_class=n, root=options.data_root) for n in others]
        every = torch.cat([each.images for each in found])
        chosen = torch.randperm(len(every), generator=torch.Generator().manual_seed(config.seed))
        self.anomalies = every[chosen[: config.real_anomalies]].to(images.device)

    def fakes(self, x: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Groups of fakes beside the generator's, each [n, 3, s, s] in [0, 1], for images [n, 3, s, s] there."""
        augment, groups = self.config.augment, []
        if augment.rotation or augment.permutation or augment.jitter:
            groups.append(synthesize(x, augment, generator)[0])
        if self.anomalies is not None:
            drawn = torch.randint(len(self.anomalies), (len(x),), generator=generator, device=x.device)
            groups.append(to_float(self.anomalies[drawn]))
        return groups

    def step(self, x: Tensor, optimizers: dict[str, torch.optim.Optimizer], generator: torch.Generator) -> Tensor:
        fakes = self.fakes(x, generator)
        x_re = self.generator(x)
        real, *fake = self.discriminator(torch.cat([x, x_re.detach(), *fakes])).split(len(x))
        l_d = -torch.stack([adversarial_loss(real, each) for each in fake]).mean()
        descend(l_d, optimizers["d"])
        self.average.update_parameters(self.discriminator)

        self.discriminator.requires_grad_(False)
        l_adv, l_r = non_saturating_loss(self.discriminator(x_re)), reconstruction_nll(x, x_re)
        self.discriminator.requires_grad_(True)
        descend(l_adv + self.config.reconstruction_weight * l_r, optimizers["g"])
        return torch.stack([l_d, l_adv, l_r]).detach()

    def predict_maps(self, x: Tensor) -> Prediction:
        x_re = self.generator(x)
        return Prediction((x - x_re).abs().mean(1), {"discriminator": -self.average(x)}, x_re)
