"""Unsupervised learning of the set of local maxima: recipe `ulslm`.

Normal images are taken for the local maxima of an unknown value, among the points that are allowed at all. An indicator
c learns what is allowed, a comparator h which of two near images has the higher value, and each gives the other its
examples: what is near a normal image is either not allowed or of lower value. Two generators look for what is hard:

    L_c = l(c(x), 1) + l(c(G_c(x)), -1)
    L_h = l(h(x, G_h(x)), -1) + l(h(G_h(x), x), 1)
    L_G = l(c(G(x)), 1) + l(h(x, G(x)), 1) + lambda |x - G(x)|,  for G_c and G_h alike
    m = |x - G_c(x)|

with l the logistic loss, l(a, 1) = softplus(-a), and h(x, x') high where x' has the higher value. Source: Wolf et al.
2019, "Unsupervised learning of the set of local maxima". See R1, R2 and R4 as well.

R37. Which network sees which generator's images is the original's as we understand its abstract; its losses' exact form
     and weights are not checked.
R38. c and h are the package's discriminator, h on both images at once; the generators are autoencoders.
R39. The original draws no map. Ours shows where G_c, which knows normal images alone, changes the image.
R40. The original judges by c. In runs as short as these c ends where it began, no better than a coin's toss at telling
     x from G_c(x), so the mean of m judges instead; "indicator" is -c(x).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from attnad.detectors.baselines.networks import decoder, encoder
from attnad.detectors.network import LatentConfig, NetworkDetector, Prediction, descend
from attnad.models import Discriminator


def signs_loss(high: Tensor, low: Tensor) -> Tensor:
    """l(high, 1) + l(low, -1), which L_c and L_h are: logits [n] twice to a scalar >= 0."""
    return softplus(-high).mean() + softplus(low).mean()


def generator_loss(allowed: Tensor, higher: Tensor, x: Tensor, near: Tensor, weight: float) -> Tensor:
    """L_G: c's and h's logits of what is drawn [n], images and what is drawn [n, 3, s, s], to a scalar >= 0."""
    return softplus(-allowed).mean() + softplus(-higher).mean() + weight * (x - near).abs().mean()


class ULSLM(NetworkDetector):
    """Recipe `ulslm`."""

    defaults: ClassVar = {"epochs": 12}
    image_scores = ("mean", "indicator", "top")  # R40; "indicator" is -c(x)
    terms = ("L_c", "L_h", "L_Gc", "L_Gh")
    beta1 = 0.5  # DCGAN's
    near_weight = 10.0  # lambda, how near the generators stay (R37)

    def __init__(self, config: LatentConfig):
        super().__init__(config)
        size, width, latent = config.size, config.width, config.latent
        self.indicator = Discriminator(3, size, width)
        self.comparator = Discriminator(6, size, width)
        self.generators = nn.ModuleDict(
            {name: nn.Sequential(encoder(size, width, latent), decoder(size, width, latent)) for name in ("c", "h")}
        )

    def parts(self) -> dict[str, nn.Module]:
        return {"c": self.indicator, "h": self.comparator, "gc": self.generators["c"], "gh": self.generators["h"]}

    def compare(self, x: Tensor, other: Tensor) -> Tensor:
        """h: logits [n] that the other image has the higher value."""
        return self.comparator(torch.cat([x, other], 1))

    def step(self, x: Tensor, optimizers: dict[str, torch.optim.Optimizer], generator: torch.Generator) -> Tensor:
        near = {name: network(x) for name, network in self.generators.items()}
        fixed = {name: drawn.detach() for name, drawn in near.items()}
        l_c = signs_loss(self.indicator(x), self.indicator(fixed["c"]))
        descend(l_c, optimizers["c"])
        l_h = signs_loss(self.compare(fixed["h"], x), self.compare(x, fixed["h"]))
        descend(l_h, optimizers["h"])
        losses = [l_c, l_h]
        for name, drawn in near.items():
            logits = self.indicator(drawn), self.compare(x, drawn)
            losses.append(generator_loss(*logits, x, drawn, self.near_weight))
            descend(losses[-1], optimizers[f"g{name}"])
        return torch.stack(losses).detach()

    def predict_maps(self, x: Tensor) -> Prediction:
        x_re = self.generators["c"](x)
        return Prediction((x - x_re).abs().mean(1), {"indicator": -self.indicator(x)}, x_re)
