"""AnoGAN: recipe `anogan`.

A GAN learns to draw normal images from noise. For an image to judge, the noise is sought, by gradient descent, whose
drawing comes nearest: near in pixels, and near in what the discriminator sees. Where even the best drawing differs, the
image is not normal:

    L_R(z) = sum over pixels of |x - G(z)|,    L_D(z) = sum over features of |f(x) - f(G(z))|
    L(z) = (1 - lambda) L_R(z) + lambda L_D(z),    m = |x - G(z)| at the last z

with f the discriminator's features before its last layer; L at the last z judges the image. Source: Schlegl et al.
2017, "Unsupervised anomaly detection with generative adversarial networks to guide marker discovery". See R1, R2 and
R4 as well.

R17. L_R and L_D are means, not sums, so that lambda = 0.1 weighs the same at every size.
R18. The search takes fewer steps than the original's 500, by Adam, and starts at z = 0 for every image, not at random,
     so that an image's score does not depend on the draw.
R19. z is normal, not uniform, and the discriminator is the package's, with spectral normalisation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attnad.detectors.baselines.networks import decoder
from attnad.detectors.network import LatentConfig, NetworkDetector, Prediction, descend
from attnad.losses import adversarial_loss, non_saturating_loss
from attnad.models import Discriminator


@dataclass(frozen=True)
class AnoGANConfig(LatentConfig):
    """All that decides the scores of `anogan`."""

    search: int = 100
    """Steps of the search for an image's z (R18)."""


def search_loss(x: Tensor, x_re: Tensor, f: Tensor, f_re: Tensor, feature_weight: float) -> Tensor:
    """L of each image: images [n, 3, s, s] and features [n, c, h, w], each twice, to [n] (R17)."""
    residual, features = ((a - b).abs().flatten(1).mean(1) for a, b in ((x, x_re), (f, f_re)))
    return (1 - feature_weight) * residual + feature_weight * features


class AnoGAN(NetworkDetector):
    """Recipe `anogan`."""

    config_type = AnoGANConfig
    image_scores = ("anogan", "top", "mean")  # the first is L at the last z
    terms = ("L_D", "L_G")
    ranges = (("search", "from 0 to 100000", lambda v: 0 <= v <= 100_000),)
    beta1 = 0.5  # DCGAN's
    search_rate = 0.1  # Adam's in the search for z (R18)
    feature_weight = 0.1  # lambda, the share of what the discriminator sees

    def __init__(self, config: AnoGANConfig):
        super().__init__(config)
        self.generator = decoder(config.size, config.width, config.latent)
        self.discriminator = Discriminator(3, config.size, config.width)

    def parts(self) -> dict[str, nn.Module]:
        return {"d": self.discriminator, "g": self.generator}

    def step(self, x: Tensor, optimizers: dict[str, torch.optim.Optimizer], generator: torch.Generator) -> Tensor:
        z = torch.randn(len(x), self.config.latent, generator=generator, device=x.device)
        drawn = self.generator(z)
        l_d = -adversarial_loss(self.discriminator(x), self.discriminator(drawn.detach()))
        descend(l_d, optimizers["d"])
        l_g = non_saturating_loss(self.discriminator(drawn))
        descend(l_g, optimizers["g"])
        return torch.stack([l_d, l_g]).detach()

    @torch.enable_grad()
    def predict_maps(self, x: Tensor) -> Prediction:
        features = self.discriminator.layers[:-1]
        f = features(x).detach()
        z = torch.zeros(len(x), self.config.latent, device=x.device, requires_grad=True)
        optimizer = torch.optim.Adam([z], self.search_rate)
        for _ in range(self.config.search):
            x_re = self.generator(z)
            descend(search_loss(x, x_re, f, features(x_re), self.feature_weight).sum(), optimizer)
        with torch.no_grad():
            x_re = self.generator(z)
            loss = search_loss(x, x_re, f, features(x_re), self.feature_weight)
        return Prediction((x - x_re).abs().mean(1), {"anogan": loss}, x_re)
