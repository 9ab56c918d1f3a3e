"""Stage 2 of recipe `discriminators`: what a frozen network sees at each place of an image, and a discriminator of it.

Features are whitened by one Gaussian a place (Defard et al. 2021, "PaDiM: a patch distribution modeling framework for
anomaly detection and localization"); a discriminator tells them from the same with noise (Liu et al. 2023, "SimpleNet:
a simple network for image anomaly detection and localization"). What is ours is D27 to D30 of the book's deviations.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, interpolate

from attnad.features.backbones import enlarged
from attnad.losses import adversarial_loss
from attnad.training.graph import capture
from attnad.training.storage import module_tensors, optimizer_tensors


class PatchFeatures(nn.Module):
    """Features of a frozen encoder by level: images [n, 3, s, s] in [0, 1] to a list of [n, c, h, w].

    The four levels are the encoder's, of strides 2, 4, 8 and 16; unless `smooth` is False they are averaged over
    3 x 3 neighbours, the last only where levels are joined. The finest is brought to the second's stride. Joined (not
    `per_level`), the last three become one level of the third's stride. Images smaller than `min_side` pixels are
    enlarged to that first, so that the coarse levels have places to tell apart. Levels of more than `channels` channels
    keep so many, drawn by `seed` (Defard et al. do the same).
    """

    def __init__(
        self,
        encoder: Any,  # a network with `pyramid`, and its `channels` and `strides`
        *,
        min_side: int = 128,
        per_level: bool = True,
        smooth: bool = True,
        channels: int = 176,
        seed: int = 0,
    ):
        super().__init__()
        self.encoder = encoder.eval().requires_grad_(False)
        self.min_side, self.per_level = min_side, per_level
        self.smooth = _smooth if smooth else lambda f: f
        widths = encoder.channels if per_level else [sum(encoder.channels[1:])]
        generator = torch.Generator().manual_seed(seed)
        drawn = [torch.randperm(width, generator=generator, device="cpu") for width in widths]
        kept = [order[:channels].sort().values for order in drawn]
        for level, chosen in enumerate(kept):
            self.register_buffer(f"kept{level}", chosen, persistent=False)
        self.widths = [len(chosen) for chosen in kept]
        _, *strides = encoder.strides
        self.strides = (strides[0], *strides) if per_level else (strides[1],)

    def train(self, mode: bool = True) -> PatchFeatures:
        return super().train(False)  # frozen: its batch statistics are ImageNet's

    @torch.no_grad()
    def forward(self, x: Tensor) -> list[Tensor]:
        fine, *levels = self.encoder.pyramid(enlarged(x, self.min_side))
        if self.per_level:
            fine = adaptive_avg_pool2d(self.smooth(fine), levels[0].shape[-1])
            levels = [fine, *map(self.smooth, levels[:-1]), levels[-1]]
        else:
            size = levels[1].shape[-1]
            down = adaptive_avg_pool2d(self.smooth(levels[0]), size)
            up = interpolate(self.smooth(levels[2]), size=(size, size), mode="bilinear")
            levels = [torch.cat([down, self.smooth(levels[1]), up], 1)]
        return [f.float()[:, getattr(self, f"kept{i}")] for i, f in enumerate(levels)]


def _smooth(f: Tensor) -> Tensor:
    return avg_pool2d(f, 3, 1, 1, count_include_pad=False)


class PatchGaussians(nn.Module):
    """A Gaussian for each place of one level: features [n, c, h, w] of `side` x `side` places to whitened ones.

    Whitened features of normal images have mean 0 and covariance 1 at each place.
    """

    mean: Tensor  # [side * side, 1, c]
    whitening: Tensor  # [side * side, c, c]

    def __init__(self, channels: int, side: int):
        super().__init__()
        self.side = side
        self.register_buffer("mean", torch.zeros(side * side, 1, channels))
        self.register_buffer("whitening", torch.eye(channels).repeat(side * side, 1, 1))  # features @ whitening

    def forward(self, f: Tensor) -> Tensor:
        """Whiten features [n, c, h, w]: the same shape."""
        n, c = f.shape[:2]
        places = f.flatten(2).permute(2, 0, 1).contiguous()  # [p, n, c]; matmul is many times slower without
        white = torch.matmul(places - self.mean, self.whitening)
        return white.permute(1, 2, 0).reshape(n, c, self.side, self.side)


def distance(white: Tensor) -> Tensor:
    """Root of the mean square of whitened features [n, c, h, w], the Mahalanobis distance: [n, 1, h, w] >= 0.

    Divided by the root of the channels' number, so that levels can be added: about 1 for normal images on each.
    """
    return white.square().mean(1, keepdim=True).sqrt()


class PatchDiscriminator(nn.Module):
    """A discriminator that tells normal from fake at each place of a level: whitened features [m, c] to logits [m].

    Real are whitened features of normal images, fake the same with normal noise of deviation `noise` added. Were the
    real ones Gaussian, the best discriminator would be the quadratic form that the discriminator starts as:
    log N(z; 0, 1) - log N(z; 0, 1 + noise^2) = b0 - a0 |z|^2, whose only variable is the Mahalanobis distance. The
    weights a of the channels and a small network, which starts as zero, learn what is not Gaussian.
    """

    def __init__(self, channels: int, noise: float, width: int):
        super().__init__()
        self.a0 = 0.5 * noise**2 / (1 + noise**2)
        self.b0 = 0.5 * channels * math.log(1 + noise**2)
        self.a = nn.Parameter(torch.full((channels,), self.a0))
        self.b = nn.Parameter(torch.tensor(self.b0))
        last = nn.Linear(width, 1)
        self.rest = nn.Sequential(nn.Linear(channels, width), nn.BatchNorm1d(width), nn.LeakyReLU(0.2), last)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, z: Tensor) -> Tensor:
        return self.b - (self.a * z.square()).sum(1) + self.rest(z)[:, 0]

    def distance(self, white: Tensor) -> Tensor:
        """The distance that would give these logits were all Gaussian: whitened [n, c, h, w] to [n, 1, h, w] >= 0.

        As the discriminator starts it is that of `distance`.
        """
        n, c, h, w = white.shape
        logits = self(white.permute(0, 2, 3, 1).reshape(-1, c)).reshape(n, 1, h, w)
        return ((self.b0 - logits) / (self.a0 * c)).clamp(min=0).sqrt()


def train_discriminator(
    discriminator: PatchDiscriminator,
    real: Tensor,
    noise: float,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    generator: torch.Generator,
    others: Tensor | None = None,
    share: float = 0.0,
) -> tuple[float, float]:
    """Train a discriminator on whitened features of normal images [m, c], on their device; it ends in evaluation mode.

    Of the fakes, a `share` from 0 to 1 is drawn from whitened features of `others` [k, c], if there are any (D33).
    Returns the loss, minus the value of eq. (1)'s game, on one batch set aside: as the discriminator starts, and
    trained. One that has become no better there than its start is put back to it, so that training makes none worse.
    """

    def choose() -> Tensor:
        return torch.randint(len(real), (batch,), generator=generator, device=real.device)

    def real_and_fake(chosen: Tensor) -> tuple[Tensor, Tensor]:
        z = real[chosen].float()
        fake = z + noise * torch.randn(z.shape, generator=generator, device=real.device)
        if others is not None and len(others):
            drawn = torch.randint(len(others), (round(share * batch),), generator=generator, device=real.device)
            fake = torch.cat([others[drawn].float(), fake[len(drawn) :]])
        return z, fake

    @torch.no_grad()
    def loss_aside() -> float:
        discriminator.eval()
        return -adversarial_loss(discriminator(aside[0]), discriminator(aside[1])).item()

    aside, start = real_and_fake(choose()), {name: value.clone() for name, value in discriminator.state_dict().items()}
    before = loss_aside()
    discriminator.train()
    cuda = real.is_cuda
    optimizer = torch.optim.AdamW(
        discriminator.parameters(), learning_rate, weight_decay=1e-5, fused=cuda or None, capturable=cuda
    )

    def step_on(chosen: Tensor) -> Tensor:
        logits = discriminator(torch.cat(real_and_fake(chosen)))
        loss = -adversarial_loss(*logits.chunk(2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    step_of = capture(
        step_on,
        generator,
        lambda: module_tensors("discriminator", discriminator) | optimizer_tensors("optimizer", optimizer),
    )
    for _ in range(steps):
        step_of(choose())
    after = loss_aside()
    if not after < before:
        discriminator.load_state_dict(start)
    return before, after


def fit_gaussians(batches: Iterable[list[Tensor]], *, shrink: float, ridge: float) -> list[PatchGaussians]:
    """Fit a Gaussian a place to each level of normal images' features, batch by batch: memory that knows no number.

    `shrink` and `ridge` as of `PlaceSums.gaussian`. Raises ValueError where there is no image.
    """
    sums: list[PlaceSums] = []
    for features in batches:
        sums = sums or [PlaceSums(f) for f in features]
        for level, f in zip(sums, features, strict=True):
            level.add(f)
    if not sums:
        raise ValueError("no normal image to fit; give one or more")
    return [level.gaussian(shrink, ridge) for level in sums]


class PlaceSums:
    """Sums over images of a level's features [n, c, h, w] and of their products, at each place.

    They are taken about an origin, the mean of the first images, for precision's sake. Those of some images can be
    taken away again, which leaves the others' (`without`).
    """

    def __init__(self, first: Tensor, origin: Tensor | None = None):
        _, c, h, w = first.shape
        self.side, self.n = h, 0
        self.origin = first.mean(0).flatten(1).T[:, None] if origin is None else origin  # [p, 1, c]
        self.sum = torch.zeros_like(self.origin)
        self.products = first.new_zeros(h * w, c, c)

    def add(self, f: Tensor) -> None:
        places = self._about_origin(f)
        self.n += len(f)
        self.sum += places.sum(1, keepdim=True)
        self.products.baddbmm_(places.mT, places)

    def without(self, f: Tensor) -> PlaceSums:
        """The sums over all images but these, which are among them."""
        places, others = self._about_origin(f), copy.copy(self)
        others.n = self.n - len(f)
        others.sum = self.sum - places.sum(1, keepdim=True)
        others.products = torch.baddbmm(self.products, places.mT, places, alpha=-1)
        return others

    def _about_origin(self, f: Tensor) -> Tensor:
        return f.flatten(2).permute(2, 0, 1).contiguous() - self.origin  # [p, n, c]

    def gaussian(self, shrink: float, ridge: float) -> PatchGaussians:
        """The Gaussian of each place.

        `shrink` in [0, 1] moves each place's covariance towards the mean of all places', and `ridge` > 0 is added to
        its diagonal in units of the channel's variance over all places and images: few images leave a covariance
        without inverse, and a channel that never varies must not decide everything.
        """
        mean, spread, lower = self._factors(shrink, ridge)
        eye = torch.eye(len(spread), device=lower.device).expand_as(lower)
        inverse = torch.linalg.solve_triangular(lower, eye, upper=False)  # z = inverse @ f
        places = PatchGaussians(len(spread), self.side)
        places.mean, places.whitening = mean, inverse.div_(spread).mT
        return places

    def distances(self, f: Tensor, shrink: float, ridge: float) -> Tensor:
        """What `distance` gives of features [n, c, h, w] by `gaussian`: [n, 1, h, w], with nothing inverted."""
        mean, spread, lower = self._factors(shrink, ridge)
        places = (f.flatten(2).permute(2, 1, 0) - mean.mT) / spread[:, None]  # [p, c, n]
        white = torch.linalg.solve_triangular(lower, places, upper=False)
        return white.square().mean(1).sqrt().T.reshape(len(f), 1, self.side, self.side)

    def _factors(self, shrink: float, ridge: float) -> tuple[Tensor, Tensor, Tensor]:
        """Mean of each place, spread of each channel, and Cholesky factor of each covariance in units of the spread."""
        offset = self.sum / self.n
        # Each covariance is c x c numbers a place: all is done in as few passes as can be, and in place.
        covariance = torch.baddbmm(self.products, offset.mT, offset, beta=1 / self.n, alpha=-1)
        mean = self.origin + offset
        overall = covariance.mean(0)
        between = (mean - mean.mean(0)).squeeze(1)
        spread = (overall.diagonal() + between.square().mean(0)).sqrt().clamp(min=1e-6)  # [c], over places and images
        scale = spread[:, None] * spread
        torch.addcmul(shrink * overall / scale, covariance, (1 - shrink) / scale, out=covariance)
        covariance.diagonal(dim1=1, dim2=2).add_(ridge)
        return mean, spread, torch.linalg.cholesky(covariance)
