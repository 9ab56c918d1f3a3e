"""Reading images and masks from files: whatever Pillow reads, made upright, 8-bit RGB and square."""

from __future__ import annotations

import os
import stat
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import cache
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
    """Files -> uint8 [n, 3, size, size], and the original (width, height) of each.

    Raises one DataError that names every file which cannot be read.
    """
    images, sizes, errors = np.empty((len(paths), size, size, 3), dtype=np.uint8), [], []
    for i, found in enumerate(read_each(paths, size)):
        if isinstance(found, DataError):
            errors.append(found)
            continue
        images[i], original = found
        sizes.append(original)
    if errors:
        raise all_of(errors, len(paths))
    return to_tensor(images), tuple(sizes)


def read_each(paths: Sequence[Path], size: int) -> Iterator[tuple[np.ndarray, tuple[int, int]] | DataError]:
    """Each file in turn -> uint8 [size, size, 3] and its original (width, height), or why it cannot be read."""

    def read(path: Path) -> tuple[np.ndarray, tuple[int, int]] | DataError:
        try:
            return _open(path, convert)
        except DataError as error:
            return error

    def convert(image: Image.Image) -> tuple[np.ndarray, tuple[int, int]]:
        image = _to_rgb(image)
        return resized(image, size), image.size

    return in_parallel(read, paths)


def all_of(errors: Sequence[DataError], n: int) -> DataError:
    """One error for all that is wrong with some of n files, a line each."""
    if len(errors) == 1:
        return errors[0]
    lines = (f"  {line}" for error in errors for line in str(error).split("\n"))
    return DataError(f"{len(errors)} of {n} files cannot be used:", *lines)


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
# What is read: formats that Pillow decodes by itself. Others start a program (EPS, WMF), open what lies in them as any
# format (IPTC), or are larger inside than they say (ICO).
FORMATS = ("PNG", "JPEG", "MPO", "TIFF", "WEBP", "BMP", "GIF", "PPM", "TGA", "PCX", "JPEG2000", "AVIF", "SGI", "QOI")


@cache
def _formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]  # those that this Pillow was built with


def _open(path: Path, convert: Callable[[Image.Image], Any]) -> Any:
    """Open, check, turn upright and convert one image file; whatever goes wrong becomes a DataError with its name."""
    try:
        if path.suffix.lower() in RAW:  # Pillow takes some for TIFF, and gives the small preview in them
            raise DataError("is a camera's raw file; develop it and save it as JPEG, PNG or TIFF")
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would wait for its writer
            raise DataError("is no plain file; remove it")
        with Image.open(path, formats=_formats()) as image:
            pixels = image.width * image.height
            if pixels > MAX_PIXELS:  # known from the header: nothing is decoded yet
                raise DataError(f"has {image.width} x {image.height} pixels, more than 100 megapixels; make it smaller")
            # A camera's MPO is one photograph with previews or views beside it, its first picture is the photograph.
            if image.format != "MPO" and getattr(image, "is_animated", False):
                raise DataError("holds more than one picture; save the one you mean as a file of its own")
            with _LARGE if pixels > LARGE_PIXELS else nullcontext():
                ImageOps.exif_transpose(image, in_place=True)
                image.load()
                if image.width * image.height != pixels:
                    raise DataError("has other pixels than its header says; save it anew")
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
        raise DataError(f"{path}: {_what_it_is(path, error)}") from error


RAW = {  # names of cameras' raw files
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".erf", ".iiq", ".kdc", ".mrw", ".nef", ".nrw", ".orf", ".pef",
    ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
}  # fmt: skip
OTHERS = (  # where a file of another kind says what it is, and what it is
    (4, b"ftyphe", "HEIC, which Pillow cannot read; save it as JPEG or PNG"),
    (4, b"ftypmif1", "HEIC, which Pillow cannot read; save it as JPEG or PNG"),
    (4, b"ftypmsf1", "HEIC, which Pillow cannot read; save it as JPEG or PNG"),
    (4, b"ftyp", "a film; save its pictures as JPEG or PNG"),
    (8, b"AVI ", "a film; save its pictures as JPEG or PNG"),
    (0, b"\x1aE\xdf\xa3", "a film; save its pictures as JPEG or PNG"),
    (0, b"\x93NUMPY", "a NumPy array; save it as PNG or TIFF"),
    (0, b"PK\x03\x04", "a ZIP archive; unpack it, and put its images here"),
    (0, b"\x1f\x8b", "a gzip archive; unpack it, and put its images here"),
    (0, b"7z\xbc\xaf", "a 7-Zip archive; unpack it, and put its images here"),
    (0, b"Rar!", "a RAR archive; unpack it, and put its images here"),
    (0, b"%!PS", "EPS, which another program would have to draw; save it as PNG"),
    (0, b"\xc5\xd0\xd3\xc6", "EPS, which another program would have to draw; save it as PNG"),
    (0, b"\xd7\xcd\xc6\x9a", "WMF, which another program would have to draw; save it as PNG"),
    (40, b" EMF", "EMF, which another program would have to draw; save it as PNG"),
    (0, b"\0\0\1\0", "an icon; save its picture as PNG"),
    (0, b"8BPS", "a Photoshop file; save its picture as PNG or TIFF"),
    (0, b"%PDF", "a PDF; save its pictures as JPEG or PNG"),
    (0, b"<svg", "SVG, a drawing without pixels; save it as PNG"),
    (0, b"<?xml", "XML, no image; save what it shows as PNG, or remove it"),
    (128, b"DICM", "DICOM; save its picture as PNG or TIFF with 8 or 16 bits"),
)


def _what_it_is(path: Path, error: Exception) -> str:
    """What a file is that Pillow cannot read, and what to do about it."""
    try:
        with open(path, "rb") as file:
            head = file.read(132)
    except OSError:
        head = b"?"
    if not head:
        return "is empty (0 bytes); replace it or remove it"
    for start, mark, what in OTHERS:
        if head[start:].startswith(mark):
            return f"is {what}"
    return f"is no image that is read (JPEG, PNG, TIFF, WebP, ...), or damaged ({error}); replace it or remove it"


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise DataError("holds floating-point values, whose range is not known; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits; the mode 'I' has room for 32, Pillow uses it for 16-bit files too
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise DataError("holds values outside 0..65535; save it with 8 or 16 bits")
        rounded = (values.astype(np.int32) + 128) // 257  # no ties, 257 is odd
        image = Image.fromarray(rounded.astype(np.uint8))
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
