"""How photographs look as a whole, by which a batch tells that the camera or the light has moved.

`describe_normal` learns it of normal photographs, `measure` takes it of new ones as they are scored, and `compare` says
in words where more than half of a batch lie beyond what was learned. What training has covered raises no alarm, and a
few defects or odd photographs raise none: they are not more than half.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, conv2d

from attnad.augmentations import move

# What is measured, and how far beyond the training photographs it must lie at the least, for they may be all alike.
LEAST = {
    "brightness": 2.0,  # grey levels: the mean
    "red": 0.01, "green": 0.01, "blue": 0.01,  # a channel's mean, of the mean
    "across": 0.01, "along": 0.01,  # how much brighter the right half is than the left, and the lower, of the mean
    "sharpness": 0.05,  # the natural logarithm of the Laplacian's variance, of the variance
    "noise": 0.1,  # grey levels: the standard deviation of what changes from pixel to pixel in the smoother half
    "right": 0.003, "down": 0.003,  # of a side: where the part lies, against the mean photograph
    "turn": 1.0,  # degrees to the left, against the mean photograph
    "width": 0.5, "height": 0.5,  # pixels of the file, upright
}  # fmt: skip
NAMES = tuple(LEAST)
ALIKE = {"right": 0.1, "down": 0.1, "turn": 8.0}  # where poses spread more, parts lie in any, and it is not judged
TAIL = 0.05  # of the training photographs on either side are left out of the range: an odd one may be among them
WIDER, FEWER = 0.1, 4.0  # of a range, by which it is widened on both sides; and, over their number, for few photographs
MANY = 1000  # photographs that are described; of more, as many, evenly spaced
FEW = 10  # photographs, below which nothing is said of a batch and no pose is learned
SIDE, ANGLES = 64, tuple(range(-10, 11))  # pixels of the mean photograph; degrees that are tried
ALARM = 0.001  # the share of batches of which p-values raise a false alarm, at most


def describe_normal(images: Tensor, sizes: Sequence[tuple[int, int]] = ()) -> dict[str, Any]:
    """Facts about normal photographs for run.json: uint8 [n, 3, s, s], and (width, height) of their files, if known.

    "n" is their number; "ranges" has by name what `measure` gives of all but the least and the largest twentieth. Where
    parts lie alike, it has their poses too, and "mean" the mean photograph, grey, uint8 in base64. Poses are taken of
    each half of the photographs against the mean of the other, for one that is part of a mean lies as that does.
    """
    n, images = len(images), images[:: max(1, len(images) // MANY)]
    values = dict(zip(NAMES, torch.cat([_statistics(part) for part in images.split(16)]).T, strict=False))
    if sizes:
        values |= dict(zip(("width", "height"), torch.tensor(sizes).double().T, strict=True))
    mean = None
    if n >= FEW:
        small = torch.cat([_small(part) for part in images.split(64)])
        halves = (_poses(small[i::2], small[1 - i :: 2].mean(0)) for i in (0, 1))
        poses = dict(zip(ALIKE, torch.cat([*halves]).T, strict=True))
        alike = {name: each for name, each in poses.items() if np.ptp(_range(each)) <= ALIKE[name]}
        values |= alike
        mean = base64.b64encode(small.mean(0).round().byte().numpy().tobytes()).decode() if alike else None
    ranges = {name: _range(each) for name, each in values.items()}
    return {"n": n, "ranges": ranges, **({"mean": mean} if mean else {})}


def measure(images: Tensor, known: Mapping[str, Any]) -> Tensor:
    """What is known of photographs, uint8 [n, 3, s, s], as a row of `NAMES` each, but for the size: float [n, 11]."""
    poses = torch.zeros(len(images), len(ALIKE))
    if "mean" in known:
        mean = np.frombuffer(base64.b64decode(known["mean"]), np.uint8)
        side = math.isqrt(len(mean))
        poses = _poses(_small(images), torch.tensor(mean.reshape(side, side)).float())
    return torch.cat([_statistics(images), poses], dim=1)


def is_description(value: Any) -> bool:
    """Whether a value can be what `describe_normal` gave, and a file has kept."""
    try:
        for name, (low, high) in value["ranges"].items():
            if name not in NAMES or not -math.inf < float(low) <= float(high) < math.inf:
                return False
        side = len(base64.b64decode(value.get("mean", ""), validate=True)) ** 0.5
        return type(value["n"]) is int and value["n"] > 0 and side.is_integer() and side <= SIDE
    except (AttributeError, KeyError, TypeError, ValueError):
        return False


def compare(
    looks: Sequence[Sequence[float]], known: Mapping[str, Any], p_values: ArrayLike, m: int, *, defective: float
) -> dict[str, str]:
    """What has changed, a sentence each, by a name: nothing where the batch looks as what was learned, or has too few.

    looks are rows of `NAMES`, of n photographs. p_values are theirs, by m calibration scores: they tell that less than
    a share 1 - `defective` of the photographs look as good ones do.
    """
    n, far = len(looks), dict[str, _Far]()
    for name, (low, high) in known["ranges"].items() if n >= FEW else ():
        values = np.array([row[NAMES.index(name)] for row in looks], float)
        margin = max(LEAST[name], (WIDER + FEWER / known["n"]) * (high - low))
        count, up = max(((values > high + margin).sum(), True), ((values < low - margin).sum(), False))
        if 2 * count > n:
            middle = float(np.median(values))
            far[name] = _Far(f"{count} of {n}", up, middle - (low + high) / 2, abs(middle - (low + high) / 2) / margin)
    found = _sentences(far, known["ranges"], np.median(np.asarray(looks, float), axis=0) if far else ())
    if word := _odd(np.sort(np.asarray(p_values, float)), m, 1 - defective):
        found["odd"] = word
    return found


def _odd(rare: np.ndarray, m: int, good: float) -> str:
    """A sentence where less than a share `good` look as good photographs do, by their p-values [n] in order; or none.

    If so many were good, the best of all would have no smaller p-values than these, which are as the m of calibration.
    So a two-sample Kolmogorov-Smirnov test of the best, one-sided, raises false alarms at no more than its level,
    whatever the others are.
    """
    from scipy.stats import ks_2samp  # here: its import is slow

    if not m or len(rare) < FEW:
        return ""
    best, calibration = rare[-math.ceil(len(rare) * good) :], (np.arange(1, m + 1) + 0.5) / (m + 1)
    if ks_2samp(best, calibration, alternative="greater").pvalue > ALARM:
        return ""
    return (
        f"not even {good:.0%} of {len(rare)} look as good photographs do, by their p-values: if so many are not "
        "defective, something else has changed"
    )


class _Far(NamedTuple):
    """How many lie beyond a range, whether above it, and how far their median is from its middle: itself, by margin."""

    who: str
    up: bool
    by: float
    much: float


def _sentences(
    far: Mapping[str, _Far], ranges: Mapping[str, Sequence[float]], middle: Sequence[float]
) -> dict[str, str]:
    found, than = {}, "than nearly all photographs that were learned from"
    if at := far.get("brightness"):
        found["light"] = f"{at.who} are {'brighter' if at.up else 'darker'} {than}: is it the lamp?"
    if casts := {name: far[name] for name in ("red", "green", "blue") if name in far}:
        name, at = max(casts.items(), key=lambda each: each[1].much)
        word = f"{'more' if at.up else 'less'} {name}"
        found["colour"] = f"{at.who} are {word} {than}: is it the lamp, or the camera's white balance?"
    noise, sharp = far.get("noise"), far.get("sharpness")
    slopes = {name: far[name] for name in ("across", "along") if name in far}
    if slopes and not far.keys() & {"brightness", *ALIKE}:  # with which the halves change as well
        name, at = max(slopes.items(), key=lambda each: each[1].much)
        side = {"across": ("left", "right"), "along": ("upper edge", "lower edge")}[name][at.up]
        found["light"] = (
            f"{at.who} are lit more from the {side} {than}: has a lamp failed, or has it or the camera moved?"
        )
    if noise and noise.up:
        found["noise"] = f"{noise.who} have more noise {than}: is it the camera's exposure, or too little light?"
    elif sharp and not sharp.up:
        question = "is the lens clean and in focus, or were they saved at a lower quality?"
        found["sharpness"] = f"{sharp.who} are less sharp {than}: {question}"
    elif at := noise or sharp:
        word = "are sharper" if at is sharp else "have less noise"
        found["noise"] = f"{at.who} {word} {than}: were they taken, made smaller or saved in another way?"
    ways = [
        f"{abs(far[name].by):.1%} of the {side} further {forth if far[name].up else back}"
        for name, side, forth, back in (("right", "width", "right", "left"), ("down", "height", "down", "up"))
        if name in far
    ]
    if ways:
        who = far["right" if "right" in far else "down"].who
        found["shift"] = (
            f"{who} lie {' and '.join(ways)} than what was learned from: has the camera or the holder moved?"
        )
    if at := far.get("turn"):
        word = f"turned by {abs(at.by):.1f} degrees to the {'left' if at.up else 'right'}"
        found["turn"] = f"{at.who} are {word}: has the camera or the holder turned?"
    if at := far.get("width") or far.get("height"):
        then = [sum(ranges[name]) / 2 for name in ("width", "height")]
        sizes = [f"{w:.0f} x {h:.0f}" for w, h in (middle[-2:], then)]
        found["size"] = f"{at.who} have another size, {sizes[0]} pixels and not {sizes[1]}: were they cropped?"
    return found


def _range(values: Tensor) -> list[float]:
    return [float(each) for each in np.quantile(values.double().numpy(), (TAIL, 1 - TAIL))]


def _statistics(images: Tensor) -> Tensor:
    """The first eight of `NAMES`: uint8 [n, 3, s, s] -> float [n, 8]."""
    colours = images.float()
    grey = colours.mean(1, keepdim=True)
    mean = grey.mean((1, 2, 3))
    casts = (colours.mean((2, 3)) + 1) / (mean[:, None] + 1)  # 1: a black photograph has no cast
    laplacian = conv2d(grey, torch.tensor([[[[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]]]))
    sharpness = ((laplacian.var((1, 2, 3)) + 0.1) / (grey.var((1, 2, 3)) + 0.1)).log()
    halves = adaptive_avg_pool2d(grey, 2)[:, 0] / (mean[:, None, None] + 1)
    across, along = (halves[..., 1] - halves[..., 0]).mean(1), (halves[:, 1] - halves[:, 0]).mean(1)
    # Immerkaer 1996, "Fast noise variance estimation": a mask that edges and slopes pass little of. What is above the
    # median counts as the median, so that what edges do pass counts no more; of Gaussian noise that leaves 0.4996.
    mask = torch.tensor([[[[1.0, -2, 1], [-2, 4, -2], [1, -2, 1]]]])
    passed = conv2d(grey, mask).abs().flatten(1)
    noise = passed.minimum(passed.median(1, keepdim=True).values).mean(1) / (6 * 0.4996)
    return torch.stack([mean, *casts.T, across, along, sharpness, noise], dim=1)


def _small(images: Tensor) -> Tensor:
    """Grey, and no larger than `SIDE`: uint8 [n, 3, s, s] -> float [n, side, side]."""
    return adaptive_avg_pool2d(images.float().mean(1), min(SIDE, images.shape[-1]))


def _poses(small: Tensor, mean: Tensor) -> Tensor:
    """How photographs lie against their mean: float [n, s, s] and [s, s] -> [n, 3], as `ALIKE` names them.

    The mean is turned by each of `ANGLES`, and the highest peak of the correlation tells both. Between whitened
    spectra (phase correlation, Kuglin and Hines 1975), which noise moves, and plain ones, which are blunt, it takes the
    root of the amplitudes. Parabolas through the peak's neighbours give what is between places and between angles.
    """
    side, wanted = mean.shape[-1], _spectra(_turned(mean))
    return torch.cat([_pose(torch.fft.irfft2(_spectra(part)[:, None] * wanted.conj(), s=(side, side)))
                      for part in small.split(16)])  # fmt: skip


def _pose(found: Tensor) -> Tensor:
    """The pose at the highest peak of each image's correlations: [n, angles, s, s] -> [n, 3]."""
    n, angles, side, _ = found.shape
    heights, i = found.flatten(2).amax(2), torch.arange(n)
    best = heights.argmax(1)
    y, x = (at := found[i, best].flatten(1).argmax(1)) // side, at % side

    def height(down: int, right: int) -> Tensor:
        return found[i, best, (y + down) % side, (x + right) % side]

    across = x + _vertex(height(0, -1), height(0, 0), height(0, 1))
    along = y + _vertex(height(-1, 0), height(0, 0), height(1, 0))
    inner = best.clamp(1, angles - 2)
    between = _vertex(heights[i, inner - 1], heights[i, inner], heights[i, inner + 1])
    turn = torch.tensor(ANGLES)[best] + torch.where(inner == best, between, 0.0)
    shifts = ((torch.stack([across, along]) / side + 0.5) % 1) - 0.5  # more than half to the right is to the left
    return torch.cat([shifts, turn[None]]).T


def _vertex(before: Tensor, at: Tensor, after: Tensor) -> Tensor:
    """Where a parabola through three heights a step apart has its vertex: from -0.5 to 0.5, 0 where all are equal."""
    bend = before - 2 * at + after
    return torch.where(bend < 0, (before - after) / (2 * bend), 0.0).clamp(-0.5, 0.5)


def _turned(mean: Tensor) -> Tensor:
    """A photograph [s, s] turned to the left by each of `ANGLES`: [angles, s, s]."""
    n = len(ANGLES)
    return move(mean.expand(n, 1, -1, -1), torch.zeros(n, 2), torch.tensor(ANGLES))[:, 0]


def _spectra(images: Tensor) -> Tensor:
    """Spectra of photographs [n, s, s] that fade to their mean at the border, with the root of their amplitudes.

    All have the same energy, so that peaks of correlations with them compare.
    """
    side = images.shape[-1]
    line = torch.hann_window(side + 2, periodic=False)[1:-1]
    window = line[:, None] * line
    mean = (images * window).sum((1, 2), keepdim=True) / window.sum()
    spectra = torch.fft.rfft2((images - mean) * window)
    spectra = spectra / (spectra.abs().sqrt() + 1e-6)
    return spectra / (spectra.abs().square().sum((1, 2), keepdim=True).sqrt() + 1e-6)
