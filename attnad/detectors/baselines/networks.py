"""The baselines' networks: convolutions down to one vector of numbers an image, and back (Radford et al. 2016's way).

R4. All of them are built of these blocks, with batch normalisation, in place of the originals' own.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn


def widths(size: int, width: int) -> list[int]:
    """Channels at half the side, a quarter and so on, while it is even and above 4: `width` up to 8 * width."""
    found: list[int] = []
    while size > 4 and size % 2 == 0:
        found.append(width * 2 ** min(len(found), 3))
        size //= 2
    return found


def encoder(size: int, width: int, latent: int, in_channels: int = 3) -> nn.Sequential:
    """Blocks that each halve the side, then one convolution over all that is left: [n, c, s, s] to [n, latent].

    `encoder(...)[:k]` gives the features at stride 2**k.
    """
    channels = [in_channels, *widths(size, width)]
    blocks: list[nn.Module] = [
        nn.Sequential(nn.Conv2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.LeakyReLU(0.2))
        for before, after in pairwise(channels)
    ]
    side = size >> len(blocks)
    return nn.Sequential(*blocks, nn.Sequential(nn.Conv2d(channels[-1], latent, side), nn.Flatten()))


def decoder(size: int, width: int, latent: int) -> nn.Sequential:
    """The way back: [n, latent] to images [n, 3, s, s] in [0, 1]."""
    channels = [*reversed(widths(size, width)), 3]
    side = size >> (len(channels) - 1)
    layers: list[nn.Module] = [
        nn.Unflatten(1, (latent, 1, 1)), nn.ConvTranspose2d(latent, channels[0], side, bias=False),
        nn.BatchNorm2d(channels[0]), nn.ReLU(),
    ]  # fmt: skip
    for before, after in pairwise(channels[:-1]):
        layers += [nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.ConvTranspose2d(channels[-2], 3, 4, 2, 1), nn.Sigmoid())


class VAE(nn.Module):
    """A variational autoencoder (Kingma & Welling 2014): images to their Gaussian's mean and log-variance, and back."""

    def __init__(self, size: int, width: int, latent: int):
        super().__init__()
        self.encoder, self.decoder = encoder(size, width, 2 * latent), decoder(size, width, latent)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, each [n, latent], of images [n, 3, s, s]."""
        mean, log_variance = self.encoder(x).chunk(2, 1)
        return mean, log_variance.clamp(-10, 10)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction [n, 3, s, s], mean and log-variance; from the mean where there is no generator of noise."""
        mean, log_variance = self.encode(x)
        z = mean
        if generator is not None:
            noise = torch.randn(mean.shape, generator=generator, device=mean.device)
            z = mean + noise * (0.5 * log_variance).exp()
        return self.decoder(z), mean, log_variance


def vae_loss(x: Tensor, x_re: Tensor, mean: Tensor, log_variance: Tensor, kl_weight: float) -> Tensor:
    """Sum over pixels of (x - x_re)^2 / 2 + kl_weight * KL(q(z|x) || N(0, 1)), the mean over images.

    Takes images and reconstructions [n, 3, s, s], and the latents' means and log-variances [n, latent].
    Source: Kingma & Welling 2014.
    """
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
    return 0.5 * (x - x_re).square().flatten(1).sum(1).mean() + kl_weight * divergence
