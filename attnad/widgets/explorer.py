"""A gallery of scored images; the one that is chosen is shown large, with its map and what a threshold makes of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import traitlets
from numpy.typing import ArrayLike

from attnad.widgets.front import COLORMAPS, Widget, coloured, module, pack_images, pack_unit, palettes, strip, style


class AttentionExplorer(Widget):
    """Explore n images and their anomaly maps; everything works without a kernel too.

    images: uint8 [n, 3, h, w].
    maps: float [n, h, w] in [0, 1], higher = more anomalous, as `attnad.score.Scores.maps`. Or [k, n, h, w], maps of k
    moments of a training, or of k detectors; then a slider leads from the first to the last.
    steps: k names of these moments or detectors, such as "epoch 3".
    masks: bool [n, h, w], True = defect; or a sequence of n masks with None where none is known.
    scores: n finite numbers, higher = more anomalous; by default the mean of each map (of the last step).
    names: n names or kinds; by default numbers.

    Maps travel as bytes, so a value is off by 1/510 at most; a pixel is flagged when its byte is above 255 * threshold.
    The traits below are the reader's choices; they can be read and set from Python at any time.
    Raises ValueError, naming the argument, where shapes, lengths or values do not fit.
    """

    _esm = module("explorer")
    _css = style()

    index = traitlets.Int(0, help="which image is shown: its place in `images`").tag(sync=True)
    step = traitlets.Int(0, help="which step's maps are shown; at first the last").tag(sync=True)
    threshold = traitlets.Float(0.5, min=0, max=1, help="pixels above it are flagged").tag(sync=True)
    opacity = traitlets.Float(0.5, min=0, max=1, help="of the map over the image").tag(sync=True)
    view = traitlets.Enum(("overlay", "side by side", "swipe"), "overlay").tag(sync=True)
    colormap = traitlets.Enum(COLORMAPS, COLORMAPS[0]).tag(sync=True)
    sort = traitlets.Enum(("score", "name"), "score", help="highest score first, or by name").tag(sync=True)

    _facts = traitlets.Dict().tag(sync=True)
    _images = traitlets.Bytes().tag(sync=True)
    _maps = traitlets.Bytes().tag(sync=True)
    _masks = traitlets.Bytes().tag(sync=True)  # a bit a pixel
    _palettes = traitlets.Bytes().tag(sync=True)

    def __init__(
        self,
        images: ArrayLike,
        maps: ArrayLike,
        masks: Iterable[ArrayLike | None] | None = None,
        scores: Sequence[float] | None = None,
        names: Sequence[str] | None = None,
        steps: Sequence[str] | None = None,
        **state,
    ):
        packed, shape = pack_images(images)
        n, size = shape["n"], (shape["height"], shape["width"])
        quantised = pack_unit(maps, "maps")
        steps = [""] if steps is None else [str(step) for step in steps]
        several = quantised if quantised.ndim == 4 else quantised[None]
        if several.shape != (len(steps), n, *size):
            moments = f" at each of the {len(steps)} steps" if steps != [""] else ""
            raise ValueError(f"maps are {list(quantised.shape)}; give one for each image{moments}, {[n, *size]}")

        masks = [None] * n if masks is None else list(masks)
        names = [str(i) for i in range(n)] if names is None else [str(name) for name in names]
        scores = several[-1].mean((1, 2)) / 255 if scores is None else scores
        scores = [float(score) for score in scores]
        for what, values in (("masks", masks), ("scores", scores), ("names", names)):
            if len(values) != n:
                raise ValueError(f"there are {n} images and {len(values)} {what}; give one of each per image")
        if not np.isfinite(scores).all():
            raise ValueError("scores have NaN or an infinite value; give finite numbers")
        bits = [np.zeros(size, bool) if mask is None else np.asarray(mask).astype(bool) for mask in masks]
        if wrong := [mask.shape for mask in bits if mask.shape != size]:
            raise ValueError(f"a mask is {list(wrong[0])}; give masks of the images' size, {list(size)}")

        facts = {
            **shape,
            "known": [mask is not None for mask in masks],
            "scores": scores,
            "names": names,
            "steps": steps,
        }
        super().__init__(
            _facts={**facts, "colormaps": list(COLORMAPS)}, _images=packed, _maps=quantised.tobytes(),
            _masks=np.packbits(np.stack(bits), bitorder="little").tobytes(), _palettes=palettes(),
            **{"step": len(steps) - 1} | state,
        )  # fmt: skip

    def _still(self) -> np.ndarray:
        n, *size, channels = (self._facts[name] for name in ("n", "height", "width", "channels"))
        images = np.frombuffer(self._images, np.uint8).reshape(n, *size, channels)
        maps = np.frombuffer(self._maps, np.uint8).reshape(-1, n, *size)
        return strip([images[self.index], coloured(maps[self.step, self.index], self.colormap)], tuple(size))

    @traitlets.validate("index", "step")
    def _exists(self, proposal: dict) -> int:
        what, those = {"index": ("image", "names"), "step": ("step", "steps")}[proposal["trait"].name]
        there = self._facts.get(those)  # None: the facts may come after it
        if there is not None and not 0 <= proposal["value"] < len(there):
            raise traitlets.TraitError(f"there is no {what} {proposal['value']}; choose 0 to {len(there) - 1}")
        return proposal["value"]
