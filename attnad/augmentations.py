"""Synthetic anomalies by hard augmentation (section 3.2.1, figure 3), and normal copies by soft augmentation (D35).

The functions that transform take their parameters as tensors, one row an image, so that each can be checked by
itself; `hard_augmentation`, `synthesize` and `soft_augmentation` draw the parameters from an explicit generator. All
are batched tensor operations on any device, and none but JPEG waits for it.

Images are float [n, 3, s, s] in [0, 1]; attention maps float [n, 1, s, s], 1 = normal.
"""

from __future__ import annotations

import io
import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from attnad.config import AugmentConfig, SoftConfig, TransformConfig


def _require_square(x: Tensor) -> None:
    if x.shape[-1] != x.shape[-2]:
        raise ValueError(f"images must be square, got {x.shape[-2]}x{x.shape[-1]}; resize first")


def rotate(x: Tensor, quarter_turns: Tensor) -> Tensor:
    """Rotate each image by its own number of counter-clockwise quarter turns.

    Takes square images [n, c, s, s] and integers [n], taken modulo 4; returns [n, c, s, s].
    Raises ValueError on images that are not square. Source: section 3.2.1, "rotation".
    """
    _require_square(x)
    turned = torch.stack([x, x.rot90(1, (2, 3)), x.rot90(2, (2, 3)), x.rot90(3, (2, 3))])  # [4, n, c, s, s]
    return turned[quarter_turns % 4, torch.arange(len(x), device=x.device)]


def permute_patches(x: Tensor, order: Tensor) -> Tensor:
    """Cut each image into a grid of patches and put them together in another order.

    Takes images [n, c, h, w] and `order` [n, g * g], each row a permutation of 0 ... g * g - 1 in reading order:
    patch i of the result is patch order[i] of the input. Returns [n, c, h, w].
    Raises ValueError where g does not divide the image's sides. Source: section 3.2.1, "perm".
    """
    n, c, h, w = x.shape
    grid = math.isqrt(order.shape[1])
    if grid * grid != order.shape[1] or h % grid or w % grid:
        raise ValueError(f"cannot cut {h}x{w} images into {order.shape[1]} equal patches; choose a grid that divides")
    patches = x.reshape(n, c, grid, h // grid, grid, w // grid).permute(0, 2, 4, 1, 3, 5)  # [n, g, g, c, h/g, w/g]
    patches = patches.reshape(n, grid * grid, c, h // grid, w // grid)
    patches = patches[torch.arange(n, device=x.device)[:, None], order]
    patches = patches.reshape(n, grid, grid, c, h // grid, w // grid).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(n, c, h, w)


def color_jitter(x: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    """Change brightness, contrast, saturation and hue of each image, in this order (D4).

    Takes images [n, 3, h, w] in [0, 1] and four tensors [n]: three factors >= 0 (1 = unchanged) and a hue shift in
    turns, -0.5 ... 0.5 (0 = unchanged). Returns [n, 3, h, w] in [0, 1]. Source: section 3.2.1, "color jitter"; each
    step as torchvision's `adjust_brightness`, `adjust_contrast`, `adjust_saturation`, `adjust_hue`.
    """
    brightness, contrast, saturation, hue = (p[:, None, None, None] for p in (brightness, contrast, saturation, hue))
    x = (brightness * x).clamp(0, 1)
    x = torch.lerp(_gray(x).mean((2, 3), keepdim=True), x, contrast).clamp(0, 1)
    x = torch.lerp(_gray(x), x, saturation).clamp(0, 1)
    return _shift_hue(x, hue)


def _gray(x: Tensor) -> Tensor:
    """Luma [n, 1, h, w] of ITU-R BT.601, with torchvision's rounding of the weights."""
    r, g, b = x.split(1, 1)
    return 0.2989 * r + 0.587 * g + 0.114 * b


def _shift_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue in HSV space; the hexagon's formulas, e.g. Foley et al., Computer Graphics, section 13.3."""
    value, low = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    chroma = value - low
    r, g, b = x.split(1, 1)
    safe = torch.where(chroma > 0, chroma, torch.ones_like(chroma))  # gray pixels have no hue: any will do
    sixths = torch.where(
        value == r, (g - b) / safe, torch.where(value == g, 2 + (b - r) / safe, 4 + (r - g) / safe)
    )  # [n, 1, h, w]
    sixths = sixths + 6 * turns
    k = torch.cat([5 + sixths, 3 + sixths, 1 + sixths], 1) % 6  # for red, green, blue
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)


def boxes_to_map(boxes: Tensor, size: int) -> Tensor:
    """Draw one rectangle an image into a map.

    Takes integer boxes [n, 4] as (top, left, bottom, right), the last two exclusive; returns a float map
    [n, 1, size, size], 1 inside and 0 outside.
    """
    line = torch.arange(size, device=boxes.device)
    top, left, bottom, right = boxes[:, :, None].unbind(1)
    rows, columns = (line >= top) & (line < bottom), (line >= left) & (line < right)  # [n, size] each
    return (rows[:, None, :, None] & columns[:, None, None, :]).float()


def _uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator, device=generator.device) * (high - low) + low


def random_boxes(n: int, size: int, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Draw rectangles of log-uniform area and aspect, placed uniformly inside the image (D2).

    Returns integer boxes [n, 4] on the generator's device, at least 1 pixel a side.
    """
    smallest, largest = config.box_area
    area = _uniform(n, math.log(smallest), math.log(largest), generator).exp()
    aspect = _uniform(n, -math.log(config.box_aspect), math.log(config.box_aspect), generator).exp()
    height = (size * (area * aspect).sqrt()).round().clamp(1, size)
    width = (size * (area / aspect).sqrt()).round().clamp(1, size)
    top = ((size - height + 1) * _uniform(n, 0, 1, generator)).floor()
    left = ((size - width + 1) * _uniform(n, 0, 1, generator)).floor()
    return torch.stack([top, left, top + height, left + width], 1).long()


def random_parts(n: int, region: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Draw rectangles as `random_boxes` does, each around a place of a region, which alone they cover.

    Takes a region [s, s], True = inside; returns float maps [n, 1, s, s], 1 on the drawn area, at most half the region.
    A thin region has little of a rectangle of that area, so it grows until it has as much.
    """
    places = region.nonzero().float()  # [m, 2]: row, column
    smallest, largest = config.box_area
    area = _uniform(n, math.log(smallest), math.log(largest), generator).exp() * region.numel()
    aspect = _uniform(n, -math.log(config.box_aspect), math.log(config.box_aspect), generator).exp()
    middle = torch.randint(len(places), (n,), generator=generator, device=generator.device)
    maps = torch.zeros(n, 1, *region.shape, device=generator.device)
    for i, pixels in enumerate(area.round().clamp(max=len(places) // 2).clamp(min=1).long().tolist()):
        rows, columns = (places - places[middle[i]]).abs().unbind(1)
        nearest = torch.maximum(rows / aspect[i].sqrt(), columns * aspect[i].sqrt()).argsort()[:pixels]
        maps[i, 0][tuple(places[nearest].long().T)] = 1
    return maps


def random_orders(n: int, patches: int, generator: torch.Generator) -> Tensor:
    """Draw permutations of 0 ... patches - 1, never the identity (it becomes a shift by one): a normal image is none.

    Returns integers [n, patches] on the generator's device.
    """
    order = torch.rand(n, patches, generator=generator, device=generator.device).argsort(1)
    identity = torch.arange(patches, device=order.device)
    return torch.where((order == identity).all(1, keepdim=True), identity.roll(1), order)


def hard_augmentation(x: Tensor, config: TransformConfig, generator: torch.Generator) -> Tensor:
    """x'_ano = jitter(perm(rotate(x))): a transformation strong enough to leave the normal distribution.

    Takes and returns images [n, 3, s, s] in [0, 1]; `generator` lives on the images' device. A step that `config`
    switches off is left out; the draws of the others stay the same. Source: section 3.2.1, figure 3.
    """
    n, device = len(x), x.device
    quarter_turns = torch.randint(1, 4, (n,), generator=generator, device=device)
    orders = [random_orders(n, g * g, generator) for g in config.grids]
    chosen = torch.randint(len(config.grids), (n,), generator=generator, device=device)
    brightness, contrast, saturation = (
        _uniform(n, 1 - r, 1 + r, generator) for r in (config.brightness, config.contrast, config.saturation)
    )
    hue = _uniform(n, -config.hue, config.hue, generator)
    if config.rotation:
        x = rotate(x, quarter_turns)
    if config.permutation:
        x = torch.stack([permute_patches(x, order) for order in orders])[chosen, torch.arange(n, device=device)]
    if config.jitter:
        x = color_jitter(x, brightness, contrast, saturation, hue)
    return x


def cut_and_fill(x: Tensor, filling: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """x''_ano and A''_ano: replace a rectangle of each image by the same region of another one.

    Takes images [n, 3, s, s], their fillings of the same shape (zeros, or x'_ano) and boxes [n, 4]; returns the
    images and their target maps [n, 1, s, s], 0 inside the rectangle and 1 outside.
    Raises ValueError on images that are not square. Source: section 3.2.1, after CutMix (Yun et al. 2019).
    """
    return _fill(x, filling, boxes_to_map(boxes, x.shape[-1]))


def _fill(x: Tensor, filling: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    _require_square(x)
    return torch.where(inside > 0, filling, x), 1 - inside


def synthesize(
    x: Tensor, config: AugmentConfig, generator: torch.Generator, *, region: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Make one synthetic anomaly x_ano and its target map A_ano of each normal image.

    Each image becomes x'_ano (the whole image transformed, map all 0) with probability `config.whole_share`, else
    x''_ano (a rectangle filled with zeros or with x'_ano, with equal chance).
    Takes images [n, 3, s, s] in [0, 1] on the generator's device, and bool [s, s] where rectangles are to lie in a
    region; returns ([n, 3, s, s], [n, 1, s, s]).
    Source: section 3.2.1; the mix is D3.
    """
    n = len(x)
    x1 = hard_augmentation(x, config, generator)
    if region is None:
        inside = boxes_to_map(random_boxes(n, x.shape[-1], config, generator), x.shape[-1])
    else:
        inside = random_parts(n, region, config, generator)
    zero_fill = _uniform(n, 0, 1, generator)[:, None, None, None] < 0.5
    x2, a2 = _fill(x, torch.where(zero_fill, torch.zeros_like(x1), x1), inside)
    whole = _uniform(n, 0, 1, generator)[:, None, None, None] < config.whole_share
    return torch.where(whole, x1, x2), torch.where(whole, torch.zeros_like(a2), a2)


def move(x: Tensor, shift: Tensor, degrees: Tensor) -> Tensor:
    """Turn each image counter-clockwise about its middle, then shift it; what comes in at the rim repeats the rim.

    Takes images [n, c, s, s], shifts [n, 2] to the right and down, as shares of the side, and turns [n] in degrees;
    returns [n, c, s, s], interpolated linearly.
    """
    angle = degrees.deg2rad()
    cos, sin = angle.cos(), angle.sin()
    back = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)  # where a pixel was before
    theta = torch.cat([back, -2 * back @ shift[:, :, None]], 2)  # the side runs from -1 to 1
    grid = affine_grid(theta, list(x.shape), align_corners=False)
    return grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def soft_augmentation(x: Tensor, config: SoftConfig, generator: torch.Generator) -> Tensor:
    """A normal image as another day's camera and lamp would show it: moved, relit, noisier, stored at lower quality.

    Takes and returns images [n, 3, s, s] in [0, 1], of 256 grey levels; `generator` lives on the images' device. Noise
    comes to one in two, JPEG to one in three. Source: D35.
    """
    n = len(x)
    shift = _uniform(2 * n, -config.shift, config.shift, generator).reshape(n, 2)
    x = move(x, shift, _uniform(n, -config.turn, config.turn, generator))
    light = _uniform(n, 1 - config.light, 1 + config.light, generator)[:, None]
    gain = _uniform(3 * n, 1 - config.gain, 1 + config.gain, generator).reshape(n, 3)
    x = x * (light * gain)[:, :, None, None]
    noise = _uniform(n, -config.noise, config.noise, generator).clamp(min=0) / 255
    x = x + noise[:, None, None, None] * torch.randn(x.shape, generator=generator, device=x.device)
    levels = (x * 255).round().clamp(0, 255).to(torch.uint8)
    stored, quality = _uniform(2 * n, 0, 1, generator).reshape(2, n).tolist()
    for i in range(n):
        if stored[i] < 1 / 3:
            levels[i] = as_jpeg(levels[i], round(config.jpeg + (95 - config.jpeg) * quality[i]))
    return levels.float() / 255


def as_jpeg(image: Tensor, quality: int) -> Tensor:
    """An image, uint8 [3, s, s], as it comes back from a JPEG file of a quality from 1 to 95; by Pillow, on the CPU."""
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).save(file, "JPEG", quality=quality)
    with Image.open(file, formats=["JPEG"]) as stored:
        return torch.from_numpy(np.array(stored)).permute(2, 0, 1)
