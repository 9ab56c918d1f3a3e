"""Registration: each photograph of a part is turned and shifted until the part lies as it does in all others (D38).

A part may lie in any pose, and a camera may be bumped; a Gaussian a place needs every place of the part at the same
place of the image. The pose is the one in which a small grey version of the photograph correlates best with the mean
of the normal ones (normalised cross-correlation, Lewis 1995, "Fast normalized cross-correlation"), over all angles and
small shifts. The mean is found by laying photographs on each other again and again (Miller, Matsakis & Viola 2000,
"Learning from one example through shared densities on transforms").
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, affine_grid, conv2d, grid_sample, pad

SIDE, REACH, ANGLES = 64, 8, 90  # of the small version, its farthest shift either way, and steps of four degrees
SAMPLE = 48  # photographs that the mean of any number is made of
FIRST, ROUNDS = 4, 3  # photographs that are tried as the first mean, and how often it is made anew
ALIKE = 0.8  # mean correlation of registered photographs from which on they show one part
LEVEL = math.radians(0.5)  # a smaller turn is none, and the shift then one of whole pixels: nothing is resampled
BETTER = 0.5  # a photograph is moved where that leaves less than this share of what is not explained as it lies


class Registration(nn.Module):
    """Images [n, 3, s, s] in [0, 1] to the pose of each, and to the same images in the pose of all.

    A pose is the affine map [2, 3] from places of the registered image to those of the photograph, both from -1 to 1 as
    of `torch.nn.functional.affine_grid`. Until `fit` finds photographs alike, none is moved.
    """

    templates: Tensor  # [ANGLES, 1, SIDE, SIDE]: the mean of normal images turned, of mean 0 and length 1 in a disc
    alike: Tensor  # bool []: whether registered photographs are alike, so that others are registered too

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("templates", torch.zeros(ANGLES, 1, SIDE, SIDE))
        self.register_buffer("alike", torch.tensor(False))

    @torch.no_grad()
    def fit(self, small: Tensor) -> None:
        """Find the mean pose of small versions [n, 1, SIDE, SIDE] of normal images, and whether they are alike.

        `SAMPLE` images are enough.
        """
        found = []
        for first in small[:: math.ceil(len(small) / FIRST)]:
            self.templates.copy_(_turned(first))
            found.append((self._best(small)[0].mean(), self.templates.clone()))
        self.templates.copy_(max(found, key=lambda pair: pair[0])[1])
        for _ in range(ROUNDS):
            self.templates.copy_(_turned(_moved(small, self._best(small)[1]).mean(0)))
        self.alike.copy_(self._best(small)[0].mean() >= ALIKE)

    def pose(self, small: Tensor) -> Tensor:
        """The poses [n, 2, 3] of small versions [n, 1, SIDE, SIDE]; where they fit about as well unmoved, that."""
        best, poses, unmoved = self._best(small)
        stays = ~self.alike | (1 - best > BETTER * (1 - unmoved))
        still = torch.eye(2, 3, device=small.device).expand_as(poses)
        return torch.where(stays[:, None, None], still, poses)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The images in the pose of all [n, 3, s, s], and the poses that they had [n, 2, 3]."""
        poses = _whole_pixels(self.pose(shrunken(x)), x.shape[-1])
        return _where_moved(poses, _moved(x, poses, "bicubic").clamp(0, 1), x), poses

    def _best(self, small: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The highest correlation [n], the pose that has it [n, 2, 3], and the correlation unmoved [n]."""
        found = torch.cat([_correlation(part, self.templates) for part in small.split(16)])
        n, angles, shifts, _ = found.shape
        flat = found.flatten(1)
        at = flat.argmax(1)
        best = flat.gather(1, at[:, None])[:, 0]
        angle, row, column = at // shifts**2, at // shifts % shifts, at % shifts

        def between(step: tuple[int, int, int]) -> Tensor:
            """How far from the best step the peak of the parabola through it and its neighbours lies."""

            def beside(sign: int) -> Tensor:
                a = (angle + sign * step[0]) % angles
                r, c = ((v + sign * d).clamp(0, shifts - 1) for v, d in ((row, step[1]), (column, step[2])))
                return flat.gather(1, ((a * shifts + r) * shifts + c)[:, None])[:, 0]

            before, after = beside(-1), beside(1)
            return (0.5 * (before - after) / (before - 2 * best + after).clamp(max=-1e-6)).clamp(-0.5, 0.5)

        turned = (angle + between((1, 0, 0))) * (2 * math.pi / angles)
        down = (row - REACH + between((0, 1, 0))) * (2 / SIDE)
        right = (column - REACH + between((0, 0, 1))) * (2 / SIDE)
        cos, sin = turned.cos(), turned.sin()
        poses = torch.stack([cos, sin, right, -sin, cos, down], 1).reshape(n, 2, 3)
        return best, poses, found[:, 0, REACH, REACH]


def _whole_pixels(poses: Tensor, side: int) -> Tensor:
    """Poses as they are, but those without a turn: these shift images of `side` by whole pixels."""
    shift = (poses[:, :, 2:] * (side / 2)).round() / (side / 2)
    level = torch.cat([torch.eye(2, device=poses.device).expand(len(poses), 2, 2), shift], 2)
    turns = (poses[:, 0, 1].abs() > math.sin(LEVEL)) | (poses[:, 0, 0] < 0)
    return torch.where(turns[:, None, None], poses, level)


def shrunken(x: Tensor) -> Tensor:
    """Small grey versions of images [n, 3, s, s]: [n, 1, SIDE, SIDE]."""
    return adaptive_avg_pool2d(x.mean(1, keepdim=True), SIDE)


def as_photographed(maps: Tensor, poses: Tensor) -> Tensor:
    """Maps [n, 1, s, s] of registered images, as the photographs lie that had these poses [n, 2, 3]."""
    turned, shifted = poses[:, :, :2].mT, poses[:, :, 2:]
    return _where_moved(poses, _moved(maps, torch.cat([turned, -turned @ shifted], 2)), maps)


def _moved(x: Tensor, poses: Tensor, mode: str = "bilinear") -> Tensor:
    grid = affine_grid(poses, [len(x), 1, *x.shape[-2:]], align_corners=False)
    return grid_sample(x, grid, mode=mode, padding_mode="border", align_corners=False)


def _where_moved(poses: Tensor, moved: Tensor, unmoved: Tensor) -> Tensor:
    """What stays is not computed anew, and so stays to the last bit."""
    still = torch.eye(2, 3, device=poses.device)
    return torch.where((poses == still).all(2).all(1)[:, None, None, None], unmoved, moved)


def _disc(like: Tensor) -> Tensor:
    """1 inside the circle that turning leaves in the image, 0 outside: [1, 1, SIDE, SIDE]."""
    at = torch.linspace(-1, 1, SIDE, device=like.device).square()
    return (at[:, None] + at <= 1).float()[None, None]


def _turned(mean: Tensor) -> Tensor:
    """An image [1, SIDE, SIDE] at all angles, of mean 0 and length 1 in the disc: [ANGLES, 1, SIDE, SIDE]."""
    angles = torch.arange(ANGLES, device=mean.device) * (2 * math.pi / ANGLES)
    cos, sin, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    poses = torch.stack([cos, -sin, zero, sin, cos, zero], 1).reshape(-1, 2, 3)
    disc = _disc(mean)
    turned = _moved(mean.expand(ANGLES, 1, SIDE, SIDE), poses)
    turned = (turned - (turned * disc).sum((2, 3), keepdim=True) / disc.sum()) * disc
    return turned / turned.square().sum((2, 3), keepdim=True).sqrt().clamp(min=1e-6)


def _correlation(small: Tensor, templates: Tensor) -> Tensor:
    """Normalised cross-correlation of images [n, 1, SIDE, SIDE], by shift: [n, ANGLES, 2 REACH + 1, 2 REACH + 1]."""
    disc = _disc(small)
    small = pad(small - small.mean((2, 3), keepdim=True), [REACH] * 4, mode="replicate")
    mean, square = conv2d(small, disc / disc.sum()), conv2d(small.square(), disc)
    power = (square - disc.sum() * mean.square()).clamp(min=1e-6)
    return conv2d(small, templates) / power.sqrt()
