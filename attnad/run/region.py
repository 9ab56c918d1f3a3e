"""A region of the photographs that alone is judged; what lies outside counts as normal.

A detector learns from whole images and knows nothing of a region: `attnad.run.run` applies it to the scores of any
detector, for the threshold as for new images. That is possible where the image score is made of the map. It is then
made anew of the map's values inside, in the units of the map, 0 to 1. Other image scores judge whole images, and are
refused.

RUN/region.png                     the mask, as it was given
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor

from attnad.data import load_images
from attnad.data.images import read_mask
from attnad.errors import CheckpointError, DataError, TrainingError, shown
from attnad.score import Scores, at_extents
from attnad.training.storage import PICTURE_BYTES, read_file, write_atomically

# Image scores that are made of the map alone: how each is made of its values [n, pixels].
FROM_MAP = {
    # As recipe strong's, but the mean of the three extents: what is normal of each is known of whole images.
    "extent": lambda values: torch.stack(at_extents(values)).mean(0),
    "attention": lambda values: values.mean(1),
    "top": lambda values: values.topk(max(1, values.shape[1] // 100), 1).values.mean(1),
    "peak": lambda values: values.amax(1),
    "patch": lambda values: values.amax(1),
}


@dataclass(frozen=True, eq=False)
class Region:
    """mask: bool [s, s], True = judged. size: (width, height) of the picture it was drawn on. sha256: of its file."""

    mask: Tensor
    size: tuple[int, int]
    sha256: str

    def facts(self) -> dict[str, Any]:
        """What run.json keeps of it: its share of the image is from 0 to 1."""
        return {"sha256": self.sha256, "size": list(self.size), "share": round(self.mask.float().mean().item(), 4)}

    def inside(self, scores: Scores) -> Scores:
        """The same scores, decided by the region alone: maps are 0 outside, and only image scores of maps are left."""
        assert scores.maps is not None, "its image score is made of a map: see `check_region`"
        values = scores.maps[:, self.mask]
        image = {name: FROM_MAP[name](values) for name in scores.image if name in FROM_MAP}
        maps, *parts = (each.where(self.mask, 0) for each in (scores.maps, *scores.parts.values()))
        return Scores(image, maps, dict(zip(scores.parts, parts, strict=True)), scores.x_re)

    def check(self, path: Path, size: tuple[int, int]) -> None:
        """Raise DataError on an image whose (width, height) is of another shape than the region's picture."""
        (width, height), (w, h) = size, self.size
        if abs(width * h - height * w) > 0.02 * max(width * h, height * w):
            raise DataError(
                f"{path}: has {width} x {height} pixels, and the run's region was drawn on {w} x {h}; crop it to "
                "the same shape, or train without a region"
            )


def read_region(path: Path, size: int) -> Region:
    """Read a mask at the run's size, its values as `defect_of` says; it is resized as images are. Raises DataError."""
    [original] = load_images([path], size=size).sizes
    values, soft = read_mask([path], original, size)
    if soft:
        warnings.warn(f"{shown(path)}: its border is soft, so half of its largest value is the limit", stacklevel=2)
    mask = torch.from_numpy(values)
    if not mask.any():
        raise DataError(f"{path}: marks nothing; paint white what is to be judged, and the rest black")
    return Region(mask, original, _sum(path))


def _sum(path: Path) -> str:
    return hashlib.sha256(read_file(path, PICTURE_BYTES)).hexdigest()


def check_region(config: Any) -> None:
    """Raise TrainingError, naming the remedy, where a configuration's image score is not made of its map."""
    if config.image_score not in FROM_MAP:
        choice = [name for name in get_args(get_type_hints(type(config))["image_score"]) if name in FROM_MAP]
        raise TrainingError(
            f"image score {config.image_score!r} judges whole images, whatever their map, so it has no region; "
            f"choose --image-score {' or '.join(choice)}, or leave the region out"
        )


def claim_region(given: Path | None, folder: Path, size: int, *, begun: bool) -> Region | None:
    """Put the region that is given into a run's folder; where training has begun there, check that it is the same."""
    path = folder / "region.png"
    region = None if given is None else read_region(given, size)
    if begun:
        there = _sum(path) if path.exists() else None
        if there != (region and region.sha256):
            raise TrainingError(f"{folder} holds a run with another region, or without one; choose another --out")
    elif given is None:
        path.unlink(missing_ok=True)
    else:
        write_atomically(path, read_file(given, PICTURE_BYTES))
    return region


def load_region(folder: Path, facts: dict[str, Any], size: int) -> Region | None:
    """The region that a finished run was made with; raises CheckpointError where the file is missing or another."""
    path, known = folder / "region.png", facts.get("region")
    if known is None and not path.exists():
        return None
    try:
        region = read_region(path, size)
    except (DataError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); restore it or train again") from error
    if known != region.facts():
        raise CheckpointError(f"{path} is not the region that the run was made with; restore it or train again")
    return region
