"""Photographs in overlapping tiles of their own resolution, for defects that would be lost in a shrunk photograph."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from attnad.data.images import all_of, read_pixels, resized, to_tensor
from attnad.errors import DataError, SettingError


@dataclass(frozen=True)
class Tiles:
    """Square tiles of `tile` pixels of the photograph, whose neighbours share `overlap` pixels or more."""

    tile: int
    overlap: int

    def check(self) -> None:
        """Raise SettingError where the values make no sense."""
        if self.tile < 32:
            raise SettingError(f"--tile {self.tile}: give 32 pixels or more")
        if not 0 <= self.overlap <= self.tile // 2:
            raise SettingError(f"--overlap {self.overlap}: give pixels from 0 to half a tile, {self.tile // 2}")

    def starts(self, length: int) -> list[int]:
        """Where tiles begin along a side of so many pixels: evenly spaced, the first and the last at its ends."""
        n = math.ceil((length - self.overlap) / (self.tile - self.overlap))
        return [round(i * (length - self.tile) / max(1, n - 1)) for i in range(n)]

    def rows(self, pixels: np.ndarray, side: int) -> Iterator[tuple[int, list[int], Tensor]]:
        """Cut a photograph, uint8 [height, width, 3], a row of tiles at a time.

        Gives where the row begins, where its tiles begin, and the tiles at the run's size: uint8 [k, 3, side, side].
        """
        lefts = self.starts(pixels.shape[1])
        for top in self.starts(pixels.shape[0]):
            tiles = (pixels[top : top + self.tile, left : left + self.tile] for left in lefts)
            yield top, lefts, to_tensor(np.stack([resized(Image.fromarray(tile), side) for tile in tiles]))

    def score(
        self, pixels: np.ndarray, side: int, score: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> tuple[float, Tensor]:
        """Judge a photograph by its tiles; `score` gives image scores [k] and maps [k, side, side] of tiles.

        Returns the largest of the tiles' scores, and one map [height, width]: in the overlaps the tiles' maps fade into
        each other. Besides the map, no more than a row of tiles is in memory.
        """
        weights = self._weights()
        joined, scores = torch.zeros(pixels.shape[:2]), []
        for top, lefts, tiles in self.rows(pixels, side):
            found, maps = score(tiles)
            scores.append(found.max().item())
            for left, one in zip(lefts, maps, strict=True):
                large = interpolate(one[None, None], size=self.tile, mode="bilinear", antialias=True)[0, 0]
                joined[top : top + self.tile, left : left + self.tile] += weights[:, None] * weights * large
        rows, columns = (self._sum(length, weights) for length in pixels.shape[:2])
        return max(scores), joined.div_(rows[:, None]).div_(columns).clamp_(0, 1)

    def _weights(self) -> Tensor:
        """Of a tile's pixels along a side: they rise over the overlap, and are 1 in between."""
        place = torch.arange(self.tile) + 0.5
        return (torch.minimum(place, self.tile - place) / max(self.overlap, 0.5)).clamp(max=1)

    def _sum(self, length: int, weights: Tensor) -> Tensor:
        total = torch.zeros(length)
        for start in self.starts(length):
            total[start : start + self.tile] += weights
        return total

    def read(self, path: Path) -> np.ndarray:
        """Read a photograph whole: uint8 [height, width, 3]. Raises DataError, also where it is smaller than a tile."""
        pixels = read_pixels(path)
        height, width = pixels.shape[:2]
        if min(height, width) < self.tile:
            raise DataError(
                f"{path}: has {width} x {height} pixels, less than a tile of {self.tile}; train with a smaller --tile"
            )
        return pixels

    def load(self, paths: Sequence[Path], side: int) -> Tensor:
        """All tiles of photographs, one after the other: uint8 [n, 3, side, side].

        Raises one DataError that names every photograph which cannot be used.
        """
        parts, errors = list[Tensor](), list[DataError]()
        for path in paths:
            try:
                parts += [tiles for _, _, tiles in self.rows(self.read(path), side)]
            except DataError as error:
                errors.append(error)
        if errors:
            raise all_of(errors, len(paths))
        return torch.cat(parts)
