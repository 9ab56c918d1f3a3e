"""What the widgets share: their JavaScript and style, how images, maps and colours travel, and a still picture."""

from __future__ import annotations

import base64
import io
from functools import cache
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
from IPython.display import display
from numpy.typing import ArrayLike
from PIL import Image

COLORMAPS = ("inferno", "cividis", "gray")  # even steps in lightness, the first two readable by colour-blind eyes too


class Widget(anywidget.AnyWidget):
    """A widget with a still picture of itself, for where no widget is shown: GitHub, print, a page without scripts."""

    def _still(self) -> np.ndarray:
        """The picture: uint8 [height, width, 3]."""
        raise NotImplementedError

    if not hasattr(anywidget.AnyWidget, "_repr_mimebundle_"):  # ipywidgets 7, which Colab has

        def _ipython_display_(self, **kwargs: Any) -> None:
            display(self._repr_mimebundle_(), raw=True)
            self._handle_displayed(**kwargs)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        if hasattr(super(), "_repr_mimebundle_"):
            shown: Any = super()._repr_mimebundle_(**kwargs)
        else:
            view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
            shown = {"application/vnd.jupyter.widget-view+json": view}
        picture, file = Image.fromarray(self._still()), io.BytesIO()
        if picture.width < 500:
            picture = picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.NEAREST)
        picture.save(file, "PNG", optimize=True)
        still = {"text/plain": type(self).__name__, "image/png": base64.b64encode(file.getvalue()).decode()}
        return ({**shown[0], **still}, *shown[1:]) if isinstance(shown, tuple) else {**(shown or {}), **still}


def strip(pictures: list[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Pictures uint8 [h, w, 1 or 3] side by side with white between them: uint8 [h, width, 3]."""
    gap = np.full((size[0], 4, 3), 255, np.uint8)
    parts = [part for picture in pictures for part in (np.broadcast_to(picture, (*size, 3)), gap)]
    return np.concatenate(parts[:-1], 1)


def coloured(values: np.ndarray, colormap: str) -> np.ndarray:
    """A map's bytes [h, w] in a colour map: uint8 [h, w, 3]."""
    return np.frombuffer(palettes(), np.uint8).reshape(-1, 256, 3)[COLORMAPS.index(colormap)][values]


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
