"""Latent space autoregression: recipe `lsa`.

An autoencoder's latent is bounded and cut into bins, and a second network says how likely each number of it is, given
those before it. Normal images should be both given back well and expected; an image is anomalous where it is either
badly remembered or a surprise:

    L(x) = |x - f(x)|^2 - lambda log q(z),    log q(z) = sum over i of log q(z_i | z_1, ..., z_(i-1))
    NS(x) = normalised |x - f(x)|^2 + normalised -log q(z),    m = (x - f(x))^2

with z = sigmoid(encoder(x)) and q(z_i | ...) a distribution over bins, from fully connected layers masked to see
earlier numbers alone. Source: Abati et al. 2019, "Latent space autoregression for novelty detection". See R1, R2 and R4
as well.

R26. Both terms are divided by the number of pixel values.
R27. Both parts of NS are normalised by mean and deviation over normal training images (the original's way is by the
     smallest and largest of held-out ones, not checked).
R28. The original draws no map; the reconstruction's squared error is ours.
R29. The masked layers have 8 channels a number, and 100 bins (the original's 100; its layers are not checked).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, leaky_relu, linear

from attnad.detectors.baselines.networks import decoder, encoder
from attnad.detectors.network import LatentConfig, NetworkDetector, Prediction
from attnad.train import to_float


class Masked(nn.Linear):
    """A fully connected layer of d numbers with channels: number i sees those before it, with `itself` i too."""

    def __init__(self, d: int, before: int, after: int, *, itself: bool):
        super().__init__(d * before, d * after)
        self.shape = d, after, d, before
        mask = torch.ones(d, d, device="cpu").tril(0 if itself else -1)
        self.register_buffer("mask", mask[:, None, :, None], persistent=False)  # the same for all channels

    def forward(self, z: Tensor) -> Tensor:
        return linear(z, (self.weight.view(self.shape) * self.mask).view_as(self.weight), self.bias)


class Autoregression(nn.Module):
    """Numbers [n, d] to the logits of each one's bin, given the numbers before it: [n, bins, d]."""

    def __init__(self, d: int, bins: int, channels: int = 8):
        super().__init__()
        self.layers = nn.ModuleList([
            Masked(d, 1, channels, itself=False),
            Masked(d, channels, channels, itself=True),
            Masked(d, channels, bins, itself=True),
        ])  # fmt: skip
        self.shape = d, bins

    def forward(self, z: Tensor) -> Tensor:
        first, second, last = self.layers
        hidden = leaky_relu(first(z))
        hidden = hidden + leaky_relu(second(hidden))
        return last(hidden).unflatten(1, self.shape).transpose(1, 2)


def surprise(z: Tensor, logits: Tensor) -> Tensor:
    """-log q(z) of each image: z [n, d] in [0, 1] and the logits of its bins [n, bins, d] to [n]."""
    bins = logits.shape[1]
    return cross_entropy(logits, (z * bins).long().clamp(max=bins - 1), reduction="none").sum(1)


class LSA(NetworkDetector):
    """Recipe `lsa`."""

    defaults: ClassVar = {"latent": 32}
    image_scores = ("novelty", "top", "mean")  # the first is NS
    terms = ("loss", "L_rec", "L_llk")
    bins = 100  # that each number falls into (R29)
    surprise_weight = 1.0  # lambda, of -log q(z)

    def __init__(self, config: LatentConfig):
        super().__init__(config)
        self.encoder = encoder(config.size, config.width, config.latent)
        self.decoder = decoder(config.size, config.width, config.latent)
        self.autoregression = Autoregression(config.latent, self.bins)
        self.register_buffer("usual", torch.zeros(2))  # means of both parts of NS
        self.register_buffer("spread", torch.ones(2))  # and deviations

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction, its squared error and -log q(z), each [n]."""
        z = torch.sigmoid(self.encoder(x))
        x_re = self.decoder(z)
        return x_re, (x - x_re).square().flatten(1).sum(1), surprise(z, self.autoregression(z))

    def losses(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        _, error, unlikely = self(x)
        l_rec, l_llk = error.mean() / x[0].numel(), unlikely.mean() / x[0].numel()
        return l_rec + self.surprise_weight * l_llk, l_rec, l_llk

    def finish(self, images: Tensor) -> None:
        parts = torch.cat([torch.stack(self(to_float(part))[1:], 1) for part in images.split(64)])
        self.usual.copy_(parts.mean(0))
        self.spread.copy_(parts.std(0).clamp(min=1e-6))
        super().finish(images)

    def predict_maps(self, x: Tensor) -> Prediction:
        x_re, *parts = self(x)
        novelty = ((torch.stack(parts, 1) - self.usual) / self.spread).sum(1)
        image = {"novelty": novelty, "reconstruction": parts[0], "surprise": parts[1]}
        return Prediction((x - x_re).square().mean(1), image, x_re)
