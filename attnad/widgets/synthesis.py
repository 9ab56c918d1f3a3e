"""Make one synthetic anomaly by hand: every parameter of the hard augmentation as a control, and what comes of it."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import torch
import traitlets
from numpy.typing import ArrayLike
from torch import Tensor

from attnad.augmentations import color_jitter, cut_and_fill, permute_patches, random_orders, rotate
from attnad.config import AugmentConfig
from attnad.widgets.front import COLORMAPS, Widget, coloured, module, pack_images, pack_unit, palettes, strip, style

_CONFIG = AugmentConfig()


def _factor(strength: float, middle: float, what: str) -> traitlets.Float:
    """A trait for a parameter of jitter: `middle` changes nothing, `strength` is how far it goes both ways."""
    return traitlets.Float(middle, min=middle - strength, max=middle + strength, help=what).tag(sync=True)


class Synthesis(Widget):
    """Set the parameters of the hard augmentation and see x, x', x'' and the target map; it needs no kernel.

    images: uint8 [n, 3, s, s], normal ones, s a multiple of 4.

    The traits below are the parameters; they can be read and set from Python at any time, and their ranges are those of
    `AugmentConfig`. At first x' = x. A new `grid` draws a new `order`, unless it is set together with one.
    Raises ValueError where images do not fit, TraitError on a value out of its range. Source: section 3.2.1, figure 3.
    """

    _esm = module("synthesis")
    _css = style()

    index = traitlets.Int(0, help="which image is x: its place in `images`").tag(sync=True)
    quarter_turns = traitlets.Int(0, min=0, max=3, help="counter-clockwise").tag(sync=True)
    grid = traitlets.Enum((1, *_CONFIG.grids), 1, help="patches a side; 1: nothing is permuted").tag(sync=True)
    order = traitlets.List(traitlets.Int(), [0], help="patch i of x' is patch order[i] of the turned x").tag(sync=True)
    brightness = _factor(_CONFIG.brightness, 1.0, "factor, 1 = unchanged")
    contrast = _factor(_CONFIG.contrast, 1.0, "factor, 1 = unchanged")
    saturation = _factor(_CONFIG.saturation, 1.0, "factor, 1 = unchanged")
    hue = _factor(_CONFIG.hue, 0.0, "shift in turns of the colour circle, 0 = unchanged")
    filling = traitlets.Enum(("x'", "zeros"), "x'", help="what replaces the rectangle of x in x''").tag(sync=True)
    box = traitlets.List(traitlets.Int(), help="top, left, bottom, right; the last two exclusive").tag(sync=True)
    outline = traitlets.Bool(True, help="whether the rectangle is outlined in x''").tag(sync=True)

    _facts = traitlets.Dict().tag(sync=True)
    _images = traitlets.Bytes().tag(sync=True)
    _palette = traitlets.Bytes().tag(sync=True)

    def __init__(self, images: ArrayLike, **state):
        packed, shape = pack_images(images)
        side = shape["height"]
        if side != shape["width"] or side % max(_CONFIG.grids):
            raise ValueError(
                f"images are {side} x {shape['width']}; give square ones, their side a multiple of {max(_CONFIG.grids)}"
            )
        state.setdefault("box", [side // 4, side // 4, side - side // 4, side - side // 4])
        facts = {"n": shape["n"], "channels": shape["channels"], "side": side, "config": asdict(_CONFIG)}
        super().__init__(_facts=facts, _images=packed, _palette=palettes()[:768], **state)

    def _made(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x, x', x'' [1, 3, s, s] and the target map [1, 1, s, s] of the parameters as they are."""
        side = self._facts["side"]
        images = np.frombuffer(self._images, np.uint8).reshape(self._facts["n"], side, side, -1)
        pixels = np.broadcast_to(images[self.index], (side, side, 3)).copy()
        x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
        x1 = permute_patches(rotate(x, torch.tensor([self.quarter_turns])), torch.tensor([self.order]))
        factors = (self.brightness, self.contrast, self.saturation, self.hue)
        x1 = color_jitter(x1, *(torch.tensor([factor]) for factor in factors))
        filling = x1 if self.filling == "x'" else torch.zeros_like(x)
        return x, x1, *cut_and_fill(x, filling, torch.tensor([self.box]))

    def _still(self) -> np.ndarray:
        *images, target = (pack_unit(made[0].permute(1, 2, 0), "images") for made in self._made())
        return strip([*images, coloured(255 - target[..., 0], COLORMAPS[0])], target.shape[:2])

    @traitlets.validate("index")
    def _index_exists(self, proposal: dict) -> int:
        if not 0 <= proposal["value"] < self._facts["n"]:
            raise traitlets.TraitError(f"there is no image {proposal['value']}; choose 0 to {self._facts['n'] - 1}")
        return proposal["value"]

    @traitlets.validate("brightness", "contrast", "saturation", "hue")
    def _is_a_number(self, proposal: dict) -> float:
        if math.isnan(proposal["value"]):
            raise traitlets.TraitError(f"{proposal['trait'].name} is NaN; give a number")
        return proposal["value"]

    @traitlets.validate("order")
    def _order_permutes(self, proposal: dict) -> list[int]:
        if sorted(proposal["value"]) != list(range(self.grid**2)):
            raise traitlets.TraitError(
                f"order {proposal['value']} does not fit the grid; for {self.grid} x {self.grid} patches give each of "
                f"0 to {self.grid**2 - 1} once"
            )
        return proposal["value"]

    @traitlets.validate("box")
    def _box_is_inside(self, proposal: dict) -> list[int]:
        box, side = proposal["value"], self._facts["side"]
        if len(box) != 4 or not (0 <= box[0] < box[2] <= side and 0 <= box[1] < box[3] <= side):
            raise traitlets.TraitError(
                f"box {box} is no rectangle inside the image; give top < bottom and left < right from 0 to {side}, as "
                "[top, left, bottom, right]"
            )
        return box

    @traitlets.observe("grid")
    def _new_order(self, _: dict) -> None:
        if len(self.order) != self.grid**2:
            self.order = random_orders(1, self.grid**2, torch.Generator().manual_seed(0))[0].tolist()
