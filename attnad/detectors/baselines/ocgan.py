"""OCGAN: recipe `ocgan`.

A denoising autoencoder may give back anomalies too well, since parts of its latent space that no normal image uses may
stand for anything. So the latent is bounded, normal images are made to fill all of it, and whatever is drawn from it is
made to look normal; where drawings look least normal is sought, and trained on:

    L(En, De) = lambda |x - De(z)|^2 + L_latent + L_visual,    z = En(x + noise) in (-1, 1)^d
    L_latent: D_l tells uniform numbers u (real) from z (fake);    L_visual: D_v tells x (real) from De(u') (fake)
    u' = u moved down the gradient of C(De(u)), where C tells De(z) (1) from De(u) (0)
    m = (x - De(En(x)))^2

Source: Perera et al. 2019, "OCGAN: one-class novelty detection using GANs with constrained latent representations". See
R1 to R4 as well.

R33. An image is judged by the mean of m; that the original does so too is not checked.
R34. u takes a few steps of the sign of the gradient; the original's numbers are not checked.
R35. lambda is 10 in the original and noise has deviation 0.2, as we remember them (not checked). Squares are a mean
     over pixels here and pixels lie in [0, 1]; so weighed, normal images all came back as their mean, and ours are 1000
     and 0.05.
R36. C and D_v are two networks of one kind, the package's discriminator.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from attnad.detectors.baselines.networks import decoder, encoder
from attnad.detectors.network import LatentConfig, NetworkDetector, Prediction, descend
from attnad.losses import adversarial_loss, non_saturating_loss
from attnad.models import Discriminator


def ocgan_loss(x: Tensor, x_re: Tensor, latent_logits: Tensor, visual_logits: Tensor, weight: float) -> Tensor:
    """L of encoder and decoder: images [n, 3, s, s] twice, both discriminators' logits of fakes [n], to a scalar."""
    games = non_saturating_loss(latent_logits) + non_saturating_loss(visual_logits)
    return weight * (x - x_re).square().mean() + games


class OCGAN(NetworkDetector):
    """Recipe `ocgan`."""

    defaults: ClassVar = {"epochs": 12}
    image_scores = ("mean", "top")  # R33
    terms = ("L_D", "L_C", "L_G")
    beta1 = 0.5  # DCGAN's
    noise = 0.05  # deviation of the noise on images (R35)
    reconstruction_weight = 1000.0  # lambda (R35)
    mining = 3  # steps from u to u' (R34)

    def __init__(self, config: LatentConfig):
        super().__init__(config)
        self.coder = nn.ModuleDict({
            "encoder": nn.Sequential(encoder(config.size, config.width, config.latent), nn.Tanh()),
            "decoder": decoder(config.size, config.width, config.latent),
        })  # fmt: skip
        self.discriminators = nn.ModuleDict({
            "latent": nn.Sequential(nn.Linear(config.latent, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1), nn.Flatten(0)),
            "visual": Discriminator(3, config.size, config.width),
        })  # fmt: skip
        self.classifier = Discriminator(3, config.size, config.width)

    def parts(self) -> dict[str, nn.Module]:
        return {"d": self.discriminators, "c": self.classifier, "g": self.coder}

    def mined(self, u: Tensor) -> Tensor:
        """u': numbers [n, latent] in (-1, 1) whose drawings look less normal to the classifier."""
        for _ in range(self.mining):
            u = u.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.classifier(self.coder["decoder"](u)).sum(), u)
            u = (u - 0.1 * gradient.sign()).clamp(-1, 1)
        return u.detach()

    def step(self, x: Tensor, optimizers: dict[str, torch.optim.Optimizer], generator: torch.Generator) -> Tensor:
        encode, decode = self.coder["encoder"], self.coder["decoder"]
        d_latent, d_visual = self.discriminators["latent"], self.discriminators["visual"]
        noisy = x + self.noise * torch.randn(x.shape, generator=generator, device=x.device)
        z = encode(noisy)
        u = 2 * torch.rand(z.shape, generator=generator, device=x.device) - 1
        with torch.no_grad():
            drawn, x_re = decode(u), decode(z)
        l_c = -adversarial_loss(self.classifier(x_re), self.classifier(drawn))
        descend(l_c, optimizers["c"])
        drawn = decode(self.mined(u))
        l_d = -adversarial_loss(d_latent(u), d_latent(z.detach()))
        l_d = l_d - adversarial_loss(d_visual(x), d_visual(drawn.detach()))
        descend(l_d, optimizers["d"])
        l_g = ocgan_loss(x, decode(z), d_latent(z), d_visual(drawn), self.reconstruction_weight)
        descend(l_g, optimizers["g"])
        return torch.stack([l_d, l_c, l_g]).detach()

    def predict_maps(self, x: Tensor) -> Prediction:
        x_re = self.coder["decoder"](self.coder["encoder"](x))
        return Prediction((x - x_re).square().mean(1), x_re=x_re)
