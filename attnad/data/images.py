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
    """RGB image -> uint8 [size, size, 3]. Pillow's filters widen as they shrink an image: that is the antialiasing."""
    return np.asarray(image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BICUBIC))


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


def _to_mask(image: Image.Image) -> Image.Image:
    """Any mode -> 'L' with 0 or 255: above 0 in any colour channel is defect, transparency does not count."""
    if image.mode[0] not in "1LIF":
        image = image.convert("RGB")
    elif image.mode in ("LA", "La"):
        image = image.getchannel("L")
    values = np.asarray(image)
    defect = (values > 0).any(axis=2) if values.ndim == 3 else values > 0
    return Image.fromarray(defect.astype(np.uint8) * 255)


def read_mask(path: Path | None, original: tuple[int, int], size: int) -> np.ndarray:
    """bool [size, size]; all False without a path."""
    if path is None:
        return np.zeros((size, size), dtype=bool)
    if path.suffix.lower() in (".jpg", ".jpeg"):
        raise DataError(f"{path}: JPEG blurs a mask's values; save the mask as PNG")
    mask = _open(path, _to_mask)
    if mask.size != original:
        ours, theirs = ("{} x {}".format(*pair) for pair in (mask.size, original))
        raise DataError(f"{path}: the mask has {ours} pixels and its image {theirs}; save both at the same size")
    return np.asarray(mask.resize((size, size), Image.Resampling.NEAREST)) > 0
