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

Images are of `attnad.data.images.FORMATS`, one picture per file, at most 100 megapixels. They are
turned upright (EXIF), laid on white where transparent, converted to 8-bit RGB (16-bit values are divided by 257, never
clipped or stretched) and resized to a square with antialiasing. The aspect is not kept, so that no defect is cut off.
Images are read several at a time, large ones (above 16 megapixels) one after the other, which bounds memory.

Nothing is skipped silently. Ignored are only hidden files, what systems and network drives leave among photographs
(`attnad.data.folders.IGNORED_NAMES`) and texts called readme, license, licence or copying. Any other file that is no
readable image is an error, and every error is a `DataError` that names the file or value, what is wrong with it and
what to do; where several files cannot be read, it names all of them.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from attnad.config import SIZE
from attnad.data import textures
from attnad.data.cifar10 import BATCHES, CIFAR10_CLASSES, find_cifar10, test_batches, train_batches
from attnad.data.folders import NormalSet, TestSet, data_root, files_of, find_folder, photographs_at, relative
from attnad.data.images import all_of, read_images, to_tensor
from attnad.data.layouts import folder_classes, has_test_folders, test_folders, test_paths, train_paths
from attnad.errors import DataError, shown

__all__ = [
    "ImageBatch", "NormalSet", "TestSet", "classes", "load_images", "load_test", "load_train", "near_copies",
    "split_normal",
]  # fmt: skip


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
    normal, folder = _place(data, normal_class, root)
    if folder is None:
        crops = textures.train_crops(normal, size)
        return NormalSet(to_tensor(crops), tuple(f"{normal}/train/{i:04d}" for i in range(len(crops))))
    if folder.name == BATCHES:
        return train_batches(folder, normal, size)
    paths = _train_files(folder, normal)
    if data == "cifar10" and len(paths) != 5_000:
        warnings.warn(
            f"{shown(folder)}: {len(paths)} training images of class {normal}, CIFAR-10 has 5,000", stacklevel=2
        )
    images, sizes = read_images(paths, size)
    return NormalSet(images, relative(paths, folder), sizes)


def normal_files(data: str, normal_class: str | None = None, root: Path | None = None) -> list[Path]:
    """The files that `load_train` reads: [] for the embedded textures. Raises DataError."""
    normal, folder = _place(data, normal_class, root)
    if folder is None:
        return []
    return sorted(folder.glob("data_batch_*")) if folder.name == BATCHES else _train_files(folder, normal)


def files_sum(files: Sequence[Path]) -> str:
    """SHA-256 over files, their names and those of their folders. Raises DataError where one is not there."""
    found = hashlib.sha256()
    for path in files:
        try:
            content = hashlib.sha256()
            with open(path, "rb") as file:
                while part := file.read(2**20):  # it may be larger than the memory
                    content.update(part)
            found.update(os.fsencode(f"{path.parent.name}/{path.name} {content.hexdigest()} "))
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); restore it") from error
    return found.hexdigest()


def lies_here(data: str, root: Path | None = None) -> bool:
    """Whether a data set is one of ours or lies below the current folder or `root`, which is what most people mean.

    Nothing outside is looked at, for somebody else may have given the name.
    """
    if data in ("textures", "cifar10"):
        return True
    try:
        given, base, here = Path(data).expanduser(), data_root(root).absolute(), Path.cwd()
    except RuntimeError:  # of a person who is not known here
        return False
    if ".." in given.parts:
        return False
    found = here / given
    if (base / given).is_relative_to(base) and (given.is_absolute() or not found.exists()):
        return True  # what is linked there, its owner has linked
    return found.is_relative_to(here) and found.resolve().is_relative_to(here.resolve())


def _train_files(folder: Path, normal: str) -> list[Path]:
    return train_paths(folder, normal) if normal else files_of(folder)


def load_test(data: str, *, size: int, normal_class: str | None = None, root: Path | None = None) -> TestSet:
    """Load the labelled test images of a data set (see the head of this module) at size x size pixels.

    Masks are resized with nearest neighbour; `attnad.data.images.defect_of` says what their values mean, and a soft
    border is told by a warning. All classes but the normal one are anomalous.
    Raises DataError, also where the test set lacks good or anomalous images, where an image and its mask differ in
    size, and where there are masks but one lacks its image or an anomalous image its mask.
    """
    _check_size(size)
    normal, folder = _place(data, normal_class, root)
    if folder is None:
        return _test_textures(normal, size)
    if folder.name == BATCHES:
        return test_batches(folder, normal, size)
    return test_folders(folder, normal, size, expected=10_000 if data == "cifar10" else None)


def labelled_files(data: str, normal_class: str | None = None, root: Path | None = None) -> list[Path]:
    """The files that `load_test` reads, images and masks: [] for the embedded textures. Raises DataError."""
    normal, folder = _place(data, normal_class, root)
    if folder is None:
        return []
    if folder.name == BATCHES:
        return [folder / "test_batch"]
    images, masks = test_paths(folder, normal)
    return images + [mask for each in masks for mask in each]


def load_images(paths: Sequence[Path], *, size: int) -> ImageBatch:
    """Load any images, without labels, at size x size pixels.

    `paths` holds files, and folders that stand for all images inside them at any depth, sorted; an image that is named
    twice is there once. Raises one DataError for all that cannot be read.
    """
    _check_size(size)
    files, strays = photographs_at([Path(path) for path in paths])
    errors = [DataError(f"{path}: {what}") for path, what in strays.items()]
    try:
        images, sizes = read_images(files, size)
    except DataError as error:
        errors.append(error)
    if errors:
        raise all_of(errors, len(files) + len(strays))
    return ImageBatch(images, tuple(files), sizes)


def classes(data: str, root: Path | None = None) -> tuple[str, ...]:
    """The names that `normal_class` can take; () for a folder of images without classes. Raises DataError."""
    if data == "textures":
        return (*textures.TEXTURES, *textures.CHOSEN_ON)
    if data == "cifar10":
        return CIFAR10_CLASSES
    folder = find_folder(data, root)
    return CIFAR10_CLASSES if folder.name == BATCHES else folder_classes(folder)


def has_test(data: str, normal_class: str | None = None, root: Path | None = None) -> bool:
    """Whether a data set has folders of good and of anomalous test images; looks at no image. Raises DataError."""
    if data in ("textures", "cifar10"):
        return True
    folder, normal = find_folder(data, root), _normal_class(data, normal_class, root)
    return folder.name == BATCHES or has_test_folders(folder, normal)


NEAR, FAR = 1.5, 0.25  # grey levels of 255 at 32 x 32 pixels; share of the usual difference between two images


def near_copies(images: Tensor) -> Tensor:
    """Groups of images that are nearly the same: uint8 [n, 3, s, s] -> int64 [n], equal numbers in a group.

    Two are copies where, shrunk to 32 x 32 pixels, they differ by no more than `NEAR` grey levels (root mean square)
    and by no more than `FAR` of what two images differ by as a rule: a photograph saved again as JPEG, or the next
    frame of a film of something at rest. Copies of copies are copies. s is a multiple of 32.
    """
    from scipy.sparse import coo_array  # here: their imports are slow
    from scipy.sparse.csgraph import connected_components

    n = len(images)
    if n < 2:
        return torch.zeros(n, dtype=torch.int64)
    small = torch.cat([adaptive_avg_pool2d(part.float(), 32).flatten(1) for part in images.split(64)])
    usual = (small - small.roll(n // 2, 0)).square().mean(1).sqrt().median().item()
    # A little above 0, so that exact copies are found among images that are all alike.
    reach = max(1e-3, min(NEAR, FAR * usual)) * small.shape[1] ** 0.5
    small = small.double() - small.mean(0)  # their products lose digits otherwise
    rows = [(torch.cdist(part, small) <= reach).nonzero() for part in small.split(512)]
    near = torch.cat([each + torch.tensor([512 * i, 0]) for i, each in enumerate(rows)])
    graph = coo_array((np.ones(len(near), dtype=bool), tuple(near.T.numpy())), shape=(n, n))
    return torch.from_numpy(connected_components(graph, directed=False)[1]).long()


def split_normal(
    images: Tensor, *, fraction: float = 0.1, seed: int, groups: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Set some normal images apart, for the threshold: images [n, ...] -> (fit, held_out), each in the order given.

    held_out holds `fraction` (0..1) of them, rounded, at least one and never all. The same seed gives the same split,
    by a generator of its own. `groups` [n], as `near_copies` gives them, keep copies on one side: of a group that is
    held out, the first image stands for all, and the others are left out.
    Raises DataError for fewer than two images, for less than three groups, or a fraction outside 0..1.
    """
    n = len(images)
    if n < 2 or not 0 < fraction < 1:
        raise DataError(f"cannot hold out a fraction {fraction} of {n} images: needs 0 < fraction < 1 and two images")
    groups = torch.arange(n) if groups is None else groups
    different = len(groups.unique())
    if different < min(n, 3):
        raise DataError(f"of {n} images only {different} are not copies of another; give 3 or more different ones")
    wanted = min(max(1, round(n * fraction)), n - 1)
    held, first = torch.zeros(n, dtype=torch.bool), torch.zeros(n, dtype=torch.bool)
    for i in torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist():
        copies = groups == groups[i]
        if copies.sum() > 1 and (held | copies).sum() > n // 2:
            continue  # a group that is most of the images stays to be learned from
        held |= copies
        first[copies.nonzero()[0]] = True
        if held.sum() >= wanted:
            break
    return images[~held], images[first]


def _check_size(size: int) -> None:
    _, takes, fits = SIZE
    if type(size) is not int or not fits(size):  # a bool is none
        raise DataError(f"size {size!r}: must be a whole number of pixels, {takes}, such as 64")


def _place(data: str, normal_class: str | None, root: Path | None) -> tuple[str, Path | None]:
    """The normal class, and the folder of a data set: None for the embedded textures."""
    normal = _normal_class(data, normal_class, root)
    if data == "textures":
        return normal, None
    return normal, find_cifar10(root) if data == "cifar10" else find_folder(data, root)


def _normal_class(data: str, wanted: str | None, root: Path | None) -> str:
    """The normal class: the one wanted, or the only one there is; "" for a folder without classes."""
    choice = classes(data, root)
    if wanted is None and data == "textures":
        return "brick"
    if wanted is None and len(choice) <= 1:
        return choice[0] if choice else ""
    if wanted not in choice:
        what = "no normal class is named" if wanted is None else f"has no class {wanted!r} that could be the normal one"
        name = "--normal-class (normal_class in Python)"
        remedy = f"give {name}: {', '.join(choice)}" if choice else f"leave {name} out"
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
