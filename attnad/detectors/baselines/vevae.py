"""A visually explained VAE: recipe `vevae`.

A variational autoencoder knows normal images by their latents. Each latent of an image is asked which places of the
encoder's features it comes from, and the mean of the answers is the map:

    L(x) = sum over pixels of (x - f(x))^2 / 2 + KL(q(z|x) || N(0, 1))
    m = mean over i of ReLU(sum over channels of alpha_ik A_k),    alpha_ik = mean over places of du_i / dA_k

with A the encoder's features and u_i the i-th latent less that of normal images. Source: Liu et al. 2020, "Towards
visually explaining variational autoencoders"; Grad-CAM: Selvaraju et al. 2017. See R1 to R4 as well.

R20. The original draws u from the difference of two Gaussians, that of the image and that of normal images. Ours is the
     difference of their means; the normal ones' is a constant, so the map does not depend on it. How far u is from 0,
     in deviations of normal images, gives an image score of its own ("latent").
R21. A has stride 4, which is fine enough for small images; the original's layer is not checked.
R22. The KL term has a weight of its own, since it outweighs the pixels of small images (the original's is 1).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from attnad.detectors.baselines.attention import weighted
from attnad.detectors.baselines.networks import VAE, vae_loss
from attnad.detectors.network import LatentConfig, NetworkDetector, Prediction
from attnad.train import to_float

LEVEL = 2  # features after so many halvings


class VEVAE(NetworkDetector):
    """Recipe `vevae`."""

    kl_weight = 0.1  # of the KL term (R22)

    def __init__(self, config: LatentConfig):
        super().__init__(config)
        self.vae = VAE(config.size, config.width, config.latent)
        self.register_buffer("usual", torch.zeros(config.latent))
        self.register_buffer("spread", torch.ones(config.latent))

    def losses(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        return (vae_loss(x, *self.vae(x, generator), self.kl_weight),)

    def finish(self, images: Tensor) -> None:
        means = torch.cat([self.vae.encode(to_float(part))[0] for part in images.split(64)])
        self.usual.copy_(means.mean(0))
        self.spread.copy_(means.std(0).clamp(min=1e-6))
        super().finish(images)

    @torch.enable_grad()
    def predict_maps(self, x: Tensor) -> Prediction:
        features = self.vae.encoder[:LEVEL](x).detach().requires_grad_()
        mean = self.vae.encoder[LEVEL:](features).chunk(2, 1)[0]
        u = mean - self.usual
        m = torch.stack([weighted(each, features).relu() for each in u.T]).mean(0).detach()
        m = interpolate(m[:, None], size=x.shape[-2:], mode="bilinear")[:, 0]
        far = (u / self.spread).square().mean(1)
        return Prediction(m, {"latent": far.detach()}, self.vae.decoder(mean.detach()))
