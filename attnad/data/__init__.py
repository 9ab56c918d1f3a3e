"""One-class data sets: what is normal for training, and labelled images for testing.

The argument `data` of `load_train`, `load_test` and `classes` names a data set. In this order it is

1. `"textures"`: crops of three photographs that ship inside scikit-image (see `textures`); nothing to download.
2. `"cifar10"`: below `root`, as class folders (`cifar10/train/<class>/*`, `cifar10/test/<class>/*`, or `root` itself
   laid out so), else as the original batches (`cifar-10-batches-py/`), else downloaded.
3. a folder, named by a path that is absolute, or relative to the current folder or to `root`:
   a. laid out as one of `attnad.data.layouts.LAYOUTS` (book/data.md has their trees): a labelled data set, such as
      MVTec AD's `train/good/*`, `test/<good or defect>/*` and `ground_truth/<defect>/<stem>_mask.png`. With one
      training class it is the normal one; with several, `normal_class` says which.
   b. else: its images, all of them normal. They lie directly inside: a folder within it is refused, not searched,
      because in a folder of several data sets that would mix test images into the training data.

To use a folder that is called `textures` or `cifar10`, write `./textures`. `root` is the argument, else the environment
variable `ATTNAD_DATA`, else `~/.cache/attnad`.

Images are whatever Pillow reads without another program's help, one picture per file, at most 100 megapixels. They are
turned upright (EXIF), laid on white where transparent, converted to 8-bit RGB (16-bit values are divided by 257, never
clipped or stretched) and resized to a square with antialiasing. The aspect is not kept, so that no defect is cut off.
Images are read several at a time, large ones (above 16 megapixels) one after the other, which bounds memory.

Nothing is skipped silently. Ignored are only hidden files, `Thumbs.db`, `desktop.ini`, `__MACOSX` and texts called
readme, license, licence or copying. Any other file that is no readable image is an error, and every error is a
`DataError` that names the file or value, what is wrong with it and what to do.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from attnad.config import SIZE
from attnad.data import textures
from attnad.data.cifar10 import BATCHES, CIFAR10_CLASSES, find_cifar10, test_batches, train_batches
from attnad.data.folders import NormalSet, TestSet, expand, files_of, find_folder, relative
from attnad.data.images import read_images, to_tensor
from attnad.data.layouts import LAYOUT, folder_classes, layout_of, test_folders, train_paths
from attnad.errors import DataError

__all__ = ["ImageBatch", "NormalSet", "TestSet", "classes", "load_images", "load_test", "load_train", "split_normal"]


class ImageBatch(NamedTuple):
    """images: uint8 [n, 3, size, size]; paths: the n files; sizes: their original (width, height), upright."""

    images: Tensor
    paths: tuple[Path, ...]
    sizes: tuple[tuple[int, int], ...]


def load_train(data: str, *, size: int, normal_class: str | None = None, root: Path | None = None) -> NormalSet:
    """Load the normal training images of a data set (see the head of this module) at size x size pixels.

    Test images are neither opened nor listed. `normal_class` is needed where the data set has several classes, but for
    'textures', where it is 'brick' unless given. Raises DataError.
    """
    _check_size(size)
    normal = _normal_class(data, normal_class, root)
    if data == "textures":
        assert normal, "textures always have a normal class"
        crops = textures.train_crops(normal, size)
        return NormalSet(to_tensor(crops), tuple(f"{normal}/train/{i:04d}" for i in range(len(crops))))

    folder = find_cifar10(root) if data == "cifar10" else find_folder(data, root)
    if folder.name == BATCHES:
        assert normal, "one of CIFAR-10's classes is normal"
        return train_batches(folder, normal, size)
    paths = train_paths(folder, normal) if normal else files_of(folder)
    if data == "cifar10" and len(paths) != 5_000:
        warnings.warn(f"{folder}: {len(paths)} training images of class {normal}, CIFAR-10 has 5,000", stacklevel=2)
    images, _ = read_images(paths, size)
    return NormalSet(images, relative(paths, folder))


def load_test(data: str, *, size: int, normal_class: str | None = None, root: Path | None = None) -> TestSet:
    """Load the labelled test images of a data set (see the head of this module) at size x size pixels.

    Masks are resized with nearest neighbour; `attnad.data.images.defect_of` says what their values mean, and a soft
    border is told by a warning. All classes but the normal one are anomalous.
    Raises DataError, also where the test set lacks good or anomalous images, where an image and its mask differ in
    size, and where there are masks but one lacks its image or an anomalous image its mask.
    """
    _check_size(size)
    normal = _normal_class(data, normal_class, root)
    if data == "textures":
        assert normal, "textures always have a normal class"
        return _test_textures(normal, size)

    folder = find_cifar10(root) if data == "cifar10" else find_folder(data, root)
    if folder.name == BATCHES:
        assert normal, "one of CIFAR-10's classes is normal"
        return test_batches(folder, normal, size)
    layout = layout_of(folder)
    if normal is None or layout is None or not os.path.isdir(folder / layout.test):
        raise DataError(f"{folder}: has no test images with labels; a test set is laid out as {LAYOUT}")
    return test_folders(folder, normal, size, expected=10_000 if data == "cifar10" else None)


def load_images(paths: Sequence[Path], *, size: int) -> ImageBatch:
    """Load any images, without labels, at size x size pixels.

    `paths` holds files, and folders that stand for all images inside them at any depth, sorted. Raises DataError.
    """
    _check_size(size)
    files = tuple(file for path in paths for file in expand(Path(path)))
    if not files:
        raise DataError("no image given: name at least one image file or a folder of images")
    images, sizes = read_images(files, size)
    return ImageBatch(images, files, sizes)


def classes(data: str, root: Path | None = None) -> tuple[str, ...]:
    """The names that `normal_class` can take; () for a folder of images without classes. Raises DataError."""
    if data == "textures":
        return (*textures.TEXTURES, *textures.CHOSEN_ON)
    if data == "cifar10":
        return CIFAR10_CLASSES
    folder = find_folder(data, root)
    return CIFAR10_CLASSES if folder.name == BATCHES else folder_classes(folder)


def split_normal(images: Tensor, *, fraction: float = 0.1, seed: int) -> tuple[Tensor, Tensor]:
    """Set some normal images apart, for the threshold: images [n, ...] -> (fit, held_out), each in the order given.

    held_out holds `fraction` (0..1) of them, rounded, at least one and never all. The same seed gives the same split,
    by a generator of its own. Raises DataError for fewer than two images or a fraction outside 0..1.
    """
    n = len(images)
    if n < 2 or not 0 < fraction < 1:
        raise DataError(
            f"cannot hold out a fraction {fraction} of {n} images: needs 0 < fraction < 1, two images or more"
        )
    held = torch.zeros(n, dtype=torch.bool)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    held[order[: min(max(1, round(n * fraction)), n - 1)]] = True
    return images[~held], images[held]


def _check_size(size: int) -> None:
    _, takes, fits = SIZE
    if type(size) is not int or not fits(size):  # a bool is none
        raise DataError(f"size {size!r}: must be a whole number of pixels, {takes}, such as 64")


def _normal_class(data: str, wanted: str | None, root: Path | None) -> str | None:
    """The normal class: the one wanted, or the only one there is; None for a folder without classes."""
    choice = classes(data, root)
    if wanted is None and data == "textures":
        return "brick"
    if wanted is None and len(choice) <= 1:
        return choice[0] if choice else None
    if wanted not in choice:
        what = "no normal class is named" if wanted is None else f"has no class {wanted!r} that could be the normal one"
        remedy = f"choose normal_class among {', '.join(choice)}" if choice else "leave normal_class out"
        raise DataError(f"{data}: {what}; {remedy}")
    return wanted


def _test_textures(normal: str, size: int) -> TestSet:
    good, _, _ = textures.held_out_crops(normal, size)
    painted, painted_masks, defects = textures.defects(normal, size)
    others = {texture: textures.held_out_crops(texture, size)[2] for texture in textures.TEXTURES if texture != normal}

    images = np.concatenate([good, painted, *others.values()])
    masks = np.zeros(images.shape[:3], dtype=bool)
    masks[len(good) : len(good) + len(painted)] = painted_masks
    kinds = ["good"] * len(good) + [f"defect/{kind}" for kind in defects]
    kinds += [f"other/{texture}" for texture, crops in others.items() for _ in crops]
    return TestSet(
        images=to_tensor(images),
        labels=torch.tensor([kind != "good" for kind in kinds]),
        masks=torch.from_numpy(masks),
        has_mask=torch.tensor([not kind.startswith("other/") for kind in kinds]),
        kinds=tuple(kinds),
        names=tuple(f"{normal}/test/{kind}/{i:04d}" for i, kind in enumerate(kinds)),
    )
