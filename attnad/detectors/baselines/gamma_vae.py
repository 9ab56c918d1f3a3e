"""A VAE, and a walk from the image to the nearest one that it finds normal: recipe `gamma-vae`.

A variational autoencoder with a learned deviation gamma models normal images. Its reconstruction is blurred all over,
so it is not compared with the image: the image itself is moved down an energy, until the VAE can give it back, at a
price for every pixel that changes. Where it had to change is the defect:

    L(x) = sum over pixels of ((x - f(x))^2 / (2 gamma^2) + log gamma) + KL(q(z|x) || N(0, 1))
    E(x_t) = sum over pixels of (x_t - f(x_t))^2 + lambda |x_t - x_0|
    x_(t+1) = x_t - alpha (x_t - f(x_t))^2 * grad E(x_t),    m = |x_T - x_0|

where f(x) decodes the mean of q(z|x), and the factor before the gradient keeps pixels that are given back well where
they are. Source: Dehaene et al. 2020, "Iterative energy-based projection on a normal data manifold for anomaly
localization"; gamma: Dai & Wipf 2019, "Diagnosing and enhancing VAE models". See R1 to R4 as well.

R10. L is divided by the number of pixel values, which is the same minimum at another step size.
R11. The walk takes a fixed number of steps. The original stops where the energy is that of normal images, and takes
     more steps (its numbers are not checked).
R12. lambda is the original's as we remember it (not checked); alpha is ours, for pixels in [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attnad.detectors.baselines.networks import VAE
from attnad.detectors.network import LatentConfig, NetworkDetector, Prediction


def negative_elbo(x: Tensor, x_re: Tensor, mean: Tensor, log_variance: Tensor, log_gamma: Tensor) -> Tensor:
    """L per pixel value, without the constant log(2 pi) / 2: the mean over images [n, 3, s, s].

    Takes the latent's mean and log-variance [n, latent] and log gamma []. Source: Dai & Wipf 2019.
    """
    likelihood = 0.5 * ((x - x_re) / log_gamma.exp()).square().mean() + log_gamma
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
    return likelihood + divergence / x[0].numel()


def energy(x: Tensor, x_re: Tensor, x_0: Tensor, sparsity: float) -> Tensor:
    """E of each image: [n, 3, s, s] three times to [n]."""
    return ((x - x_re).square() + sparsity * (x - x_0).abs()).flatten(1).sum(1)


class GammaVAE(NetworkDetector):
    """Recipe `gamma-vae`."""

    walk = 30  # steps of the walk to a normal image (R11)
    stride = 1.0  # alpha, the walk's step size (R12)
    sparsity = 0.05  # lambda, the price of a changed pixel (R12)

    def __init__(self, config: LatentConfig):
        super().__init__(config)
        self.vae = VAE(config.size, config.width, config.latent)
        self.log_gamma = nn.Parameter(torch.tensor(-2.3))  # gamma = 0.1, a tenth of the range of grey values

    def losses(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        return (negative_elbo(x, *self.vae(x, generator), self.log_gamma),)

    @torch.enable_grad()
    def predict_maps(self, x: Tensor) -> Prediction:
        at = x
        for _ in range(self.walk):
            at = at.detach().requires_grad_()
            x_re = self.vae(at)[0]
            (gradient,) = torch.autograd.grad(energy(at, x_re, x, self.sparsity).sum(), at)
            at = (at - self.stride * (at - x_re).square() * gradient).clamp(0, 1)
        at = at.detach()
        return Prediction((at - x).abs().mean(1), x_re=at)
