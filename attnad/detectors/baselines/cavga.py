"""Convolutional adversarial VAE with guided attention: recipe `cavga`.

An adversarial VAE is also asked what its latent looks at. On normal images it should look at everything, and an
attention expansion loss teaches it to; what it then does not look at is not normal:

    A = sigmoid(sum over channels of alpha_k A_k),    alpha_k = mean over places of d(sum over i of z_i) / dA_k
    L_ae = mean over places of 1 - A
    L = w_r (|x - f(x)|^2 / 2 + KL(q(z|x) || N(0, 1))) + w_adv L_adv(x, f(x)) + w_ae L_ae,    m = 1 - A

with A_k the encoder's features and L_adv the game of a discriminator that tells x from f(x). Source: Venkataramanan et
al. 2020, "Attention guided anomaly localization in images", its unsupervised version. See R1 to R4 as well.

R23. No ReLU before the sigmoid, as Grad-CAM has it: with it, A is 1/2 or more, and all that is not looked at is tied.
R24. z is a vector; the original's keeps its places.
R25. The squared error and KL are divided by the number of pixel values. w_r = 1 and w_ae = 0.01 are the original's as
     we remember them (not checked), w_adv is ours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from attnad.detectors.baselines.attention import weighted
from attnad.detectors.baselines.networks import VAE, vae_loss
from attnad.detectors.network import LatentConfig, NetworkDetector, Prediction, descend
from attnad.losses import adversarial_loss, non_saturating_loss
from attnad.models import Discriminator

LEVEL = 3  # features after so many halvings


def expansion_loss(attention: Tensor) -> Tensor:
    """L_ae: attention before its sigmoid [n, h, w] to a scalar in (0, 1), the mean of 1 - A."""
    return torch.sigmoid(-attention).mean()


class CAVGA(NetworkDetector):
    """Recipe `cavga`."""

    image_scores = ("reconstruction", "top", "mean")  # the first is the mean of |x - f(x)|
    terms = ("L_D", "L_VAE", "L_adv", "L_ae")
    kl_weight = 0.1  # of the KL term (R22)
    adv_weight = 0.001  # w_adv (R25)
    expansion_weight = 0.01  # w_ae (R25)

    def __init__(self, config: LatentConfig):
        super().__init__(config)
        self.vae = VAE(config.size, config.width, config.latent)
        self.discriminator = Discriminator(3, config.size, config.width)

    def parts(self) -> dict[str, nn.Module]:
        return {"d": self.discriminator, "g": self.vae}

    def look(self, x: Tensor, *, keep: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Attention before its sigmoid [n, s / 8, s / 8], and the latent's mean and log-variance."""
        features = self.vae.encoder[:LEVEL](x)
        features = features if keep else features.detach().requires_grad_()
        mean, log_variance = self.vae.encoder[LEVEL:](features).chunk(2, 1)
        return weighted(mean.sum(1), features, keep=keep), mean, log_variance.clamp(-10, 10)

    def step(self, x: Tensor, optimizers: dict[str, torch.optim.Optimizer], generator: torch.Generator) -> Tensor:
        attention, mean, log_variance = self.look(x, keep=True)
        noise = torch.randn(mean.shape, generator=generator, device=x.device)
        x_re = self.vae.decoder(mean + noise * (0.5 * log_variance).exp())
        l_d = -adversarial_loss(self.discriminator(x), self.discriminator(x_re.detach()))
        descend(l_d, optimizers["d"])
        l_vae = vae_loss(x, x_re, mean, log_variance, self.kl_weight) / x[0].numel()
        l_adv, l_ae = non_saturating_loss(self.discriminator(x_re)), expansion_loss(attention)
        descend(l_vae + self.adv_weight * l_adv + self.expansion_weight * l_ae, optimizers["g"])
        return torch.stack([l_d, l_vae, l_adv, l_ae]).detach()

    @torch.enable_grad()
    def predict_maps(self, x: Tensor) -> Prediction:
        attention, mean, _ = self.look(x)
        m = interpolate(torch.sigmoid(-attention.detach())[:, None], size=x.shape[-2:], mode="bilinear")[:, 0]
        x_re = self.vae.decoder(mean.detach())
        return Prediction(m, {"reconstruction": (x - x_re).abs().mean((1, 2, 3))}, x_re)
