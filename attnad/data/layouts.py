"""Data sets as folders: where they lie, which classes they have, and labelled test images with their masks."""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from attnad.data.images import in_parallel, read_images, read_mask
from attnad.errors import DataError

IGNORED_NAMES = {"thumbs.db", "desktop.ini", "__macosx"}
IGNORED_TEXTS = {"readme", "license", "licence", "copying"}  # alone, or with .txt or .md
LAYOUT = "train/good/*, test/good/*, test/<defect>/* and, optionally, ground_truth/<defect>/<stem>_mask.png"


@dataclass(frozen=True, eq=False)
class NormalSet:
    """Training data: normal images only.

    images: uint8 [n, 3, size, size], values 0..255.
    names: n file paths relative to the data set's folder, or names such as 'brick/train/0012'.
    """

    images: Tensor
    names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class TestSet:
    """Labelled images.

    images: uint8 [n, 3, size, size], values 0..255.
    labels: bool [n], True = anomalous.
    masks: bool [n, size, size], True = defect; all False where has_mask is False.
    has_mask: bool [n]; in a data set with masks, good images count as having an empty one.
    kinds: 'good', or the kind of anomaly; 'defect/scratch' is kind 'scratch' in group 'defect'.
    names: as in `NormalSet`.
    """

    __test__ = False  # a name that starts with 'Test' is no test: pytest must not collect it

    images: Tensor
    labels: Tensor
    masks: Tensor
    has_mask: Tensor
    kinds: tuple[str, ...]
    names: tuple[str, ...]


def data_root(root: Path | None) -> Path:
    return Path(root or os.environ.get("ATTNAD_DATA") or "~/.cache/attnad").expanduser()


def find_folder(data: str, root: Path | None) -> Path:
    """The folder that `data` names, seen from here or from the root."""
    try:
        given, base = Path(data).expanduser(), data_root(root)
        found = [path for path in dict.fromkeys((given, base / given)) if data and path.exists()]
        if len(found) == 2 and not found[0].samefile(found[1]):
            raise DataError(f"{data}: could be {found[0].absolute()} or {found[1]}; name one of them by its full path")
    except (OSError, RuntimeError) as error:  # a name too long, a home folder that does not exist
        raise DataError(f"{data!r}: {error}; name a data set ('textures', 'cifar10') or a folder") from error
    if not found:
        near = ["textures", "cifar10"]
        for parent in (given.parent, (base / given).parent):
            if os.path.isdir(parent) and os.access(parent, os.R_OK):
                near += [str(given.parent / path.name) for path in parent.iterdir() if os.path.isdir(path)]
        matches = dict.fromkeys(difflib.get_close_matches(str(data), near))
        hint = f"Did you mean {' or '.join(map(repr, matches))}? " if matches else ""
        raise DataError(
            f"{data!r}: no data set has that name, and there is no such folder here or in {base}. {hint}"
            "Name 'textures', 'cifar10' or a folder of images"
        )
    if not os.path.isdir(found[0]):
        raise DataError(f"{found[0]}: is a file; name the folder that holds the images")
    return found[0]


def folder_classes(folder: Path) -> tuple[str, ...]:
    """The training classes of a labelled folder, sorted; () for a folder of images. Looks at `train` only."""
    if os.path.isdir(folder / "train"):
        folders, files = entries(folder / "train")
        if files or not folders:
            what = f"holds {files[0].name}, which is in no class folder" if files else "holds no class folder"
            raise DataError(f"{folder / 'train'}: {what}; the images belong into train/good, or train/<class>")
        return tuple(path.name for path in folders)
    folders, _ = entries(folder)
    if folders:
        inner = [path for path in folders if os.path.isdir(path / "train")]
        remedy = (
            f"name one data set, such as {inner[0]}" if inner else f"put the images directly inside, or use {LAYOUT}"
        )
        raise DataError(f"{folder}: holds folders ({folders[0].name}) but no folder 'train'; {remedy}")
    return ()


def entries(folder: Path) -> tuple[list[Path], list[Path]]:
    """The folders and the files directly inside a folder, each sorted, without what is ignored."""
    try:
        paths = sorted(path for path in folder.iterdir() if not _ignored(path))
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror}); check the path and its permissions") from error
    folders, files = [p for p in paths if os.path.isdir(p)], [p for p in paths if os.path.isfile(p)]
    for path in set(paths).difference(folders, files):
        raise DataError(f"{path}: is neither a file nor a folder (a broken link, or no permission?); remove it")
    return folders, files


def _ignored(path: Path) -> bool:
    name = path.name.lower()
    return (
        name.startswith(".") or name in IGNORED_NAMES or name.removesuffix(".txt").removesuffix(".md") in IGNORED_TEXTS
    )


def files_of(folder: Path) -> list[Path]:
    """The files of a folder that must hold images and nothing else."""
    if not os.path.isdir(folder):
        raise DataError(f"{folder}: there is no such folder; it should hold images")
    folders, files = entries(folder)
    if folders:
        raise DataError(f"{folders[0]}: is a folder among images; move its images to {folder} or remove it")
    if not files:
        raise DataError(f"{folder}: is empty; it should hold images")
    return files


def expand(path: Path) -> Iterator[Path]:
    if os.path.isfile(path):
        yield path
        return
    if not os.path.isdir(path):
        raise DataError(f"{path}: there is no such file or folder; check the path and its permissions")
    folders, files = entries(path)
    if not folders and not files:
        raise DataError(f"{path}: is empty; it should hold images")
    for inner in sorted(folders + files):
        if inner.is_symlink() and os.path.isdir(inner):  # it may lead in a circle
            raise DataError(f"{inner}: is a link to a folder; name the folder that it leads to instead")
        yield from expand(inner)


def relative(paths: Sequence[Path], folder: Path) -> tuple[str, ...]:
    return tuple(path.relative_to(folder).as_posix() for path in paths)


def test_folders(folder: Path, normal: str, size: int, expected: int | None) -> TestSet:
    folders, files = entries(folder / "test")
    if files:
        raise DataError(f"{files[0]}: lies beside the folders of test/; move it into test/good or test/<defect>")
    names = [path.name for path in folders]
    if normal not in names or len(names) < 2:
        lack = "anomalous images (test/<defect>)" if normal in names else f"good images (test/{normal})"
        raise DataError(f"{folder / 'test'}: holds no {lack}; a test set needs good and anomalous ones")
    if "good" in names and normal != "good":
        raise DataError(
            f"{folder / 'test' / 'good'}: is not the normal class ({normal}); give it another name than good"
        )

    paths = [path for inner in folders for path in files_of(inner)]
    if expected and len(paths) != expected:
        warnings.warn(f"{folder}: {len(paths)} test images instead of {expected:,}", stacklevel=3)
    masked = os.path.isdir(folder / "ground_truth")
    mask_paths = _mask_paths(folder, paths, normal) if masked else [None] * len(paths)

    images, sizes = read_images(paths, size)
    masks = list(in_parallel(read_mask, mask_paths, sizes, [size] * len(paths)))
    for path, mask in zip(mask_paths, masks, strict=True):
        if path and path.parent.name == normal and mask.any():
            raise DataError(
                f"{path}: marks a defect in a good image; move the image to test/<defect> or empty the mask"
            )
    kinds = tuple("good" if path.parent.name == normal else path.parent.name for path in paths)
    return TestSet(
        images=images,
        labels=torch.tensor([kind != "good" for kind in kinds]),
        masks=torch.from_numpy(np.stack(masks)),
        has_mask=torch.full((len(paths),), masked),
        kinds=kinds,
        names=relative(paths, folder),
    )


def _mask_paths(folder: Path, paths: Sequence[Path], normal: str) -> list[Path | None]:
    """The mask of each test image, None for a good one that has none; every mask must have its image."""
    truth = folder / "ground_truth"
    folders, files = entries(truth)
    if files:
        raise DataError(f"{files[0]}: lies beside the folders of ground_truth/; move it to ground_truth/<defect>")
    masks = {(inner.name, path.stem): path for inner in folders for path in files_of(inner)}
    found: list[Path | None] = []
    for path in paths:
        kind, stem = path.parent.name, f"{path.stem}_mask"
        found.append(masks.pop((kind, stem), None))
        if found[-1] is None and kind != normal:
            raise DataError(f"{path}: has no mask {truth / kind / stem}.png; add it, or remove the folder ground_truth")
    for path in masks.values():
        image = folder / "test" / path.parent.name / f"{path.stem.removesuffix('_mask')}.*"
        raise DataError(f"{path}: is the mask of no image; there is no {image}. Add the image or remove the mask")
    return found
