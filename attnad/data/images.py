"""Reading images and masks from files: whatever Pillow reads, made upright, 8-bit RGB and square."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from scipy import ndimage
from torch import Tensor

from attnad.errors import DataError

MAX_PIXELS, LARGE_PIXELS = 100_000_000, 16_000_000


def read_images(paths: Sequence[Path], size: int) -> tuple[Tensor, tuple[tuple[int, int], ...]]:
    """Files -> uint8 [n, 3, size, size], and the original (width, height) of each."""
    images, sizes = np.empty((len(paths), size, size, 3), dtype=np.uint8), []

    def convert(image: Image.Image) -> tuple[np.ndarray, tuple[int, int]]:
        image = _to_rgb(image)
        return resized(image, size), image.size

    for i, (pixels, original) in enumerate(in_parallel(lambda path: _open(path, convert), paths)):
        images[i] = pixels
        sizes.append(original)
    return to_tensor(images), tuple(sizes)


def read_pixels(path: Path) -> np.ndarray:
    """File -> uint8 [height, width, 3] at its own size."""
    return _open(path, lambda image: np.array(_to_rgb(image)))


def resized(image: Image.Image, size: int) -> np.ndarray:
    """RGB image -> uint8 [size, size, 3]. Pillow's filters widen as they shrink an image: that is the antialiasing.

    One that is shrunk six times or more is first shrunk by means of blocks, in half the time. Values then differ by at
    most 5 of 255, even in noise.
    """
    if image.size == (size, size):
        return np.asarray(image)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, reducing_gap=3.0))


def to_tensor(images: np.ndarray) -> Tensor:
    """uint8 [n, height, width, 3] -> uint8 [n, 3, height, width]."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def in_parallel(function: Callable[..., Any], *items: Sequence[Any]) -> Iterator[Any]:
    """Like map, with threads (Pillow decodes outside Python's lock), in order, and without Pillow's warnings."""
    with warnings.catch_warnings(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("ignore")  # what is wrong with a file is an error here, and the rest is of no use
        yield from pool.map(function, *items)


_LARGE = threading.Lock()


def _open(path: Path, convert: Callable[[Image.Image], Any]) -> Any:
    """Open, check, turn upright and convert one image file; whatever goes wrong becomes a DataError with its name."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:  # known from the header: nothing is decoded yet
                raise DataError(f"has {image.width} x {image.height} pixels, more than 100 megapixels; make it smaller")
            if image.format in ("EPS", "WMF"):
                raise DataError(f"is {image.format}, which another program would have to draw; save it as PNG")
            # A camera's MPO is one photograph with previews or views beside it, its first picture is the photograph.
            if image.format != "MPO" and getattr(image, "is_animated", False):
                raise DataError("holds more than one picture; save the one you mean as a file of its own")
            with _LARGE if image.width * image.height > LARGE_PIXELS else nullcontext():
                ImageOps.exif_transpose(image, in_place=True)
                return convert(image)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: has more than 100 megapixels; make it smaller") from error
    except MemoryError as error:
        raise DataError(f"{path}: needs more memory than there is; make it smaller") from error
    except PermissionError as error:
        raise DataError(f"{path}: cannot be read (permission denied); change its permissions") from error
    except Exception as error:  # Pillow's decoders raise nearly every kind of error on a damaged file
        if not path.is_file():
            raise DataError(f"{path}: is no longer there; restore it and run the same command again") from error
        empty = path.stat().st_size == 0
        what = "is empty (0 bytes)" if empty else f"is no image that Pillow can read, or damaged ({error})"
        raise DataError(f"{path}: {what}; replace it or remove it") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise DataError("holds floating-point values, whose range is not known; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits; the mode 'I' has room for 32, Pillow uses it for 16-bit files too
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise DataError("holds values outside 0..65535; save it with 8 or 16 bits")
        image = Image.fromarray(
            ((values.astype(np.int32) + 128) // 257).astype(np.uint8)
        )  # rounded; no ties, 257 is odd
    if image.has_transparency_data:
        image = image if image.mode == "RGBA" else image.convert("RGBA")  # no copy of a large image without need
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


SMALL, FEW = 32, 16  # kinds of defects are numbered by no more than FEW values; up to SMALL they are not asked for more
EDGE = 8  # pixels from a defect's border that values in between may be away, as JPEG's blocks and smoothing leave them


def _values(image: Image.Image) -> np.ndarray:
    """Any mode -> [height, width], the largest value over the colour channels; transparency does not count."""
    if image.mode[0] not in "1LIF":
        image = image.convert("RGB")
    elif image.mode in ("LA", "La"):
        image = image.getchannel("L")
    values = np.asarray(image)
    return values.max(axis=2) if values.ndim == 3 else values.astype(np.uint8) if values.dtype == bool else values


def defect_of(values: np.ndarray) -> tuple[np.ndarray, bool]:
    """Which pixels of a mask [height, width] are defect, and whether its border is soft.

    Two values are a mask, and so are a few that number kinds of defects: all above 0 is defect. Where values lie near 0
    and near the largest, but for a narrow border (smoothing, JPEG), half of the largest is the limit. Raises DataError
    where values lie all over the range (a map of scores, a photograph), and where one is no finite number.
    """
    if not np.isfinite(values).all():
        raise DataError("holds values that are no numbers; save a mask with 0 for normal, 255 for defect")
    different = np.unique(values)
    few = len(different) <= FEW
    largest = float(different[-1])
    if len(different) <= 2 or (few and different[0] >= 0 and largest <= SMALL):
        return values > 0, False
    inside = values > largest / 2
    grown, shrunk = (f(inside, iterations=EDGE) for f in (ndimage.binary_dilation, ndimage.binary_erosion))
    between = (values > 0.2 * largest) & (values < 0.8 * largest)
    if between.mean() < 0.25 and not (between & ~(grown & ~shrunk)).any():
        return inside, True
    if few:
        return values > 0, False
    raise DataError("its values lie all over the range, so it is no mask; save one with 0 for normal, 255 for defect")


def read_mask(paths: Sequence[Path], original: tuple[int, int], size: int) -> tuple[np.ndarray, list[Path]]:
    """The masks of one image, joined: bool [size, size], all False without any; and those whose border is soft."""
    joined, soft = np.zeros((size, size), dtype=bool), list[Path]()
    for path in paths:
        if path.suffix.lower() in (".jpg", ".jpeg"):
            raise DataError(f"{path}: JPEG blurs a mask's values; save the mask as PNG")
        defect, is_soft = _open(path, lambda image: defect_of(_values(image)))
        mask = Image.fromarray(defect.astype(np.uint8) * 255)
        if mask.size != original:
            ours, theirs = ("{} x {}".format(*pair) for pair in (mask.size, original))
            raise DataError(f"{path}: the mask has {ours} pixels and its image {theirs}; save both at the same size")
        joined |= np.asarray(mask.resize((size, size), Image.Resampling.NEAREST)) > 0
        soft += [path] if is_soft else []
    return joined, soft
