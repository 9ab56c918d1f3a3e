"""What the widgets share: their JavaScript and style, and how images, maps and colours travel."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

COLORMAPS = ("cividis", "inferno", "gray")  # even steps in lightness, the first two readable by colour-blind eyes too


def module(name: str) -> str:
    """One ES module: what the widgets share, then the widget's own code (a module from a string cannot import)."""
    here = Path(__file__).parent
    return "\n".join((here / file).read_text(encoding="utf-8") for file in ("common.js", f"{name}.js"))


def style() -> str:
    """The style sheet of all widgets."""
    return (Path(__file__).parent / "explore.css").read_text(encoding="utf-8")


@cache
def palettes() -> bytes:
    """The colour maps, one after the other: 256 colours each, as R, G, B bytes."""
    import matplotlib  # here, since it writes a cache into the user's home as it loads

    return b"".join(matplotlib.colormaps[name](np.arange(256), bytes=True)[:, :3].tobytes() for name in COLORMAPS)


def pack_images(images: ArrayLike) -> tuple[bytes, dict[str, int]]:
    """Pack uint8 images [n, 3, h, w] pixel by pixel into bytes, with one channel where all three are equal.

    Returns the bytes and their shape. Raises ValueError on another shape or type, or where there is no image.
    """
    array = np.asarray(images)
    if array.ndim != 4 or array.shape[1] != 3 or array.dtype != np.uint8 or not array.size:
        raise ValueError(f"images are {array.dtype} {list(array.shape)}; give uint8 [n, 3, height, width], n >= 1")
    if (array == array[:, :1]).all():
        array = array[:, :1]
    n, channels, height, width = array.shape
    shape = {"n": n, "channels": channels, "height": height, "width": width}
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)).tobytes(), shape


def pack_unit(values: ArrayLike, what: str) -> np.ndarray:
    """Quantise floats in [0, 1] to uint8, v to round(255 v): off by 1/510 at most. Raises ValueError outside [0, 1]."""
    array = np.asarray(values, dtype=np.float32)
    if not ((array >= 0) & (array <= 1)).all():
        raise ValueError(f"{what} have values outside [0, 1] or NaN; give anomaly maps, as attnad.score does")
    return (array * 255).round().astype(np.uint8)
