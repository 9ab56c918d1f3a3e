"""Paint a defect on a normal image: map, scores and any reconstruction answer while the brush moves."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import traitlets
from torch import Tensor

from attnad.data import load_test
from attnad.run.export import ExportedRun
from attnad.run.run import Run
from attnad.widgets.front import COLORMAPS, Widget, coloured, module, pack_images, pack_unit, palettes, strip, style

# What is shown of the paper's detector, and how it is called; of others, the score that judges an image.
PAPER_SCORES = {"adgan": "ADGAN score", "attention": "Attention score"}


def _pixels(images: Tensor) -> bytes:
    """Float or uint8 images [n, 3, s, s] as bytes, pixel by pixel."""
    array = images.numpy() if images.dtype == torch.uint8 else pack_unit(images, "images")
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)).tobytes()


class PaintDefect(Widget):
    """Paint on normal images and watch what a run makes of it.

    run: a `Run`, which answers with PyTorch as long as there is a kernel; or an `ExportedRun`, which answers with
    onnxruntime. Where its file lies in the book's `_static/explore`, a page without a kernel answers with it too.
    images: uint8 [n, 3, s, s] to paint on, s the run's size; by default six good test images of the run's data, where
    there are such those that the run passes as normal, so that what is painted makes the difference.

    Raises ValueError where images do not fit, the run's detector gives no maps, or the run judges photographs in tiles;
    DataError where the run's data are not there.
    """

    _esm = module("paint")
    _css = style()

    index = traitlets.Int(0, min=0, help="which image is painted on").tag(sync=True)
    colormap = traitlets.Enum(COLORMAPS, COLORMAPS[0]).tag(sync=True)

    _facts = traitlets.Dict().tag(sync=True)
    _images = traitlets.Bytes().tag(sync=True)
    _maps = traitlets.Bytes().tag(sync=True)  # of the clean images, so that a page shows them before its model is there
    _reconstructions = traitlets.Bytes().tag(sync=True)  # empty where the detector makes none
    _palettes = traitlets.Bytes().tag(sync=True)

    def __init__(self, run: Run | ExportedRun, images: Tensor | None = None, **state):
        if isinstance(run, Run):
            run.check_whole()
        facts = run.facts if isinstance(run, ExportedRun) else {**run.facts, **vars(run.config)}
        size = facts["size"]
        if images is None:
            test = load_test(facts["data"], size=size, normal_class=facts["normal_class"] or None)
            good = test.images[~test.labels]
            passed = run.score(good).image[facts["image_score"]] <= facts["threshold"]
            images = torch.cat([good[passed], good[~passed]])[:6]
        pack_images(images)  # complains about another type or shape
        if images.shape[2:] != (size, size):
            raise ValueError(f"images are {list(images.shape)}; this run takes {size} x {size} pixels")
        self._run = run
        scores = run.score(images)
        if scores.maps is None:
            raise ValueError("this detector gives no maps; give a run whose detector does")
        judge = facts["image_score"]
        self._shown = PAPER_SCORES if "adgan" in scores.image else {judge: "Score"}
        super().__init__(
            _facts={
                "size": size,
                "threshold": facts["threshold"],
                "title": f"Paint a defect: recipe {facts['recipe']}",
                "judge": judge,
                "labels": list(self._shown.items()),
                "scores": torch.stack([scores.image[name] for name in self._shown], 1).tolist(),
                "file": run.path.name if isinstance(run, ExportedRun) else "",
                "sha256": run.sha256 if isinstance(run, ExportedRun) else "",
                "takes_bytes": isinstance(run, ExportedRun) and run.takes_bytes,
                "colormaps": list(COLORMAPS),
            },
            _images=_pixels(images), _maps=pack_unit(scores.maps, "maps").tobytes(),
            _reconstructions=b"" if scores.x_re is None else _pixels(scores.x_re), _palettes=palettes(), **state,
        )  # fmt: skip
        self.on_msg(self._answer)

    def _still(self) -> np.ndarray:
        size, i = self._facts["size"], min(self.index, len(self._facts["scores"]) - 1)
        image, *reconstruction = (
            np.frombuffer(packed, np.uint8).reshape(-1, size, size, 3)[i]
            for packed in (self._images, self._reconstructions)
            if packed
        )
        anomaly_map = np.frombuffer(self._maps, np.uint8).reshape(-1, size, size)[i]
        return strip([image, coloured(anomaly_map, self.colormap), *reconstruction], (size, size))

    def _answer(self, _: Any, content: dict, buffers: list) -> None:
        """Answer the front end: that there is a kernel, or what the run makes of an image."""
        if content.get("kind") != "image":
            self.send({"kind": "kernel"})
            return
        size = self._facts["size"]
        try:
            pixels = np.frombuffer(buffers[0], np.uint8).reshape(1, size, size, 3)
            scores = self._run.score(torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2).contiguous())
            answer = {"kind": "answer", "scores": [scores.image[name].item() for name in self._shown]}
            assert scores.maps is not None, "the first answer was checked for it"
            parts = [pack_unit(scores.maps, "maps").tobytes()]
            parts += [] if scores.x_re is None else [_pixels(scores.x_re)]
        except Exception as error:  # whatever it is, the reader should see it: a message of a kernel shows nowhere
            answer, parts = {"kind": "error", "text": f"{type(error).__name__}: {error}"}, []
        self.send({**answer, "id": content.get("id")}, parts)
