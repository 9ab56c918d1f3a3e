"""Folders and what lies in them: where a data set is, which files it holds, and what is made of it."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from attnad.errors import DataError

IGNORED_NAMES = {"thumbs.db", "desktop.ini", "__macosx"}
IGNORED_TEXTS = {"readme", "license", "licence", "copying"}  # alone, or with .txt or .md


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
