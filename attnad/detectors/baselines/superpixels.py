"""Superpixel masking and inpainting: recipe `superpixel`.

An image is cut into superpixels, pieces that follow its edges. A network learns, on normal images, to fill in
superpixels that are masked. Of an image to judge each superpixel is masked in turn and filled in from what is around
it; a defect is filled in as something normal, and so differs from what was there:

    L(x) = mean over masked pixels of |x - g(x (1 - M), M)|
    m = |x - g(x (1 - M), M)| on the pixels of M, for each M in turn, smoothed

Source: Li et al. 2020, "Superpixel masking and inpainting for self-supervised anomaly detection"; superpixels: SLIC
(Achanta et al. 2012), of scikit-image. See R1 to R3 as well.

R30. The original's loss and network are not checked; ours are the absolute error and a small U-Net.
R31. Superpixels are masked in groups, each of far ones, rather than one by one, which takes as many passes of the
     network as there are groups rather than superpixels.
R32. The absolute error is smoothed over 5 x 5 pixels; the original's measure of difference is not checked.
"""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

from attnad.detectors.network import NetworkConfig, NetworkDetector, Prediction


def masked_error(x: Tensor, filled: Tensor, mask: Tensor) -> Tensor:
    """L: images [n, 3, s, s] twice and a mask [n, 1, s, s], 1 = masked, to the mean over masked values."""
    return ((x - filled).abs() * mask).sum() / (x.shape[1] * mask.sum()).clamp(min=1)


def superpixels(x: Tensor, pieces: int) -> Tensor:
    """SLIC of images [n, 3, s, s] in [0, 1]: the superpixel of each pixel, [n, s, s], counted from 0."""
    from skimage.segmentation import slic  # here: its import is slow, and other recipes do without

    images = x.permute(0, 2, 3, 1).cpu().double().numpy()
    found = [slic(image, pieces, compactness=10, start_label=0) for image in images]
    return torch.from_numpy(np.stack(found)).to(x.device)


def group_masks(labels: Tensor, groups: int) -> Tensor:
    """Every superpixel in one of the groups: labels [n, s, s] to masks [groups, n, 1, s, s], 1 = masked.

    SLIC counts along rows, so those of one group, a whole number of groups apart, do not touch along a row.
    """
    return torch.stack([labels % groups == group for group in range(groups)])[:, :, None].float()


def _block(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())


class Superpixels(NetworkDetector):
    """Recipe `superpixel`."""

    config_type = NetworkConfig
    defaults: ClassVar = {"epochs": 10}
    pieces = 48  # about how many superpixels an image is cut into
    groups = 6  # superpixels are masked in so many groups (R31)

    def __init__(self, config: NetworkConfig):
        super().__init__(config)
        w = config.width
        widths = [w, 2 * w, 4 * w, 4 * w]
        self.down = nn.ModuleList(_block(a, b) for a, b in pairwise([4, *widths]))
        self.up = nn.ModuleList(_block(widths[i + 1] + widths[i], widths[i]) for i in (2, 1, 0))
        self.last = nn.Conv2d(w, 3, 1)

    def fill(self, x: Tensor, mask: Tensor) -> Tensor:
        """What the network puts in place of masked pixels: images [n, 3, s, s], masks [n, 1, s, s]."""
        levels = [self.down[0](torch.cat([x * (1 - mask), mask], 1))]
        for block in self.down[1:]:
            levels.append(block(avg_pool2d(levels[-1], 2)))
        f = levels.pop()
        for block in self.up:
            f = block(torch.cat([interpolate(f, scale_factor=2, mode="bilinear"), levels.pop()], 1))
        return torch.sigmoid(self.last(f))

    def losses(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        labels = superpixels(x, self.pieces)
        chance = torch.rand(len(x), int(labels.max()) + 1, generator=generator, device=x.device)
        chosen = (chance < 1 / self.groups).float()
        mask = chosen.gather(1, labels.flatten(1)).reshape(labels.shape)[:, None]
        return (masked_error(x, self.fill(x, mask), mask),)

    def predict_maps(self, x: Tensor) -> Prediction:
        masks = group_masks(superpixels(x, self.pieces), self.groups)
        x_re = sum(self.fill(x, mask) * mask for mask in masks)
        error = (x - x_re).abs().mean(1, keepdim=True)
        return Prediction(avg_pool2d(error, 5, 1, 2, count_include_pad=False)[:, 0], x_re=x_re)
