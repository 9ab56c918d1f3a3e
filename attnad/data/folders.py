"""Folders and what lies in them: where a data set is, which files it holds, and what is made of it."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from attnad.errors import DataError, shown

IGNORED_NAMES = {  # what systems, network drives and picture programs leave among photographs
    "thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "#recycle", "@recycle", "#snapshot",
    "$recycle.bin", "system volume information", "lost+found", "picasa.ini",
}  # fmt: skip
IGNORED_TEXTS = {"readme", "license", "licence", "copying"}  # alone, or with .txt or .md


@dataclass(frozen=True, eq=False)
class NormalSet:
    """Training data: normal images only.

    images: uint8 [n, 3, size, size], values 0..255.
    names: n file paths relative to the data set's folder, or names such as 'brick/train/0012'.
    sizes: (width, height) of n files in pixels, upright; () where images are no files of their own.
    """

    images: Tensor
    names: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...] = ()


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
    folders, files, strays = _look(folder)
    if strays:
        raise DataError(*(f"{path}: {what}; remove it" for path, what in strays.items()))
    return folders, files


def _look(folder: Path) -> tuple[list[Path], list[Path], dict[Path, str]]:
    """Folders and files directly inside a folder, each sorted, and what is there that is neither, with a word on it."""
    try:
        paths = sorted(path for path in folder.iterdir() if not _ignored(path))
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror}); check the path and its permissions") from error
    folders, files = [p for p in paths if os.path.isdir(p)], [p for p in paths if os.path.isfile(p)]
    what = "is neither a file nor a folder (a broken link, a pipe, or no permission?)"
    return folders, files, dict.fromkeys(sorted({*paths} - {*folders, *files}), what)


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


def walk(folder: Path) -> tuple[list[Path], dict[Path, str]]:
    """The files of a folder at any depth, sorted, and what else is there, with a word on why it is passed over.

    A link to a folder is not followed, it may lead in a circle. Raises DataError where the folder cannot be listed.
    """
    folders, files, strays = _look(folder)
    while folders:
        inner = folders.pop()
        if inner.is_symlink():
            strays[inner] = "is a link to a folder; name the folder that it leads to instead"
            continue
        try:
            more, found, odd = _look(inner)
        except DataError as error:  # no permission, or gone since
            strays[inner] = str(error).removeprefix(f"{shown(inner)}: ")
            continue
        folders += more
        files += found
        strays |= odd
    return sorted(files), strays


def photographs_at(paths: Sequence[Path]) -> tuple[list[Path], dict[Path, str]]:
    """Files, and the files of folders at any depth, each of them once; and what else lies there, as `walk` says it.

    Raises DataError for a path that is not there, for an empty folder, and where there is no file at all.
    """
    found: dict[str, Path] = {}
    strays: dict[Path, str] = {}
    for path in paths:
        if os.path.isdir(path):
            files, odd = walk(path)
            if not files and not odd:
                raise DataError(f"{path}: is empty; it should hold images")
            strays |= odd
        elif os.path.isfile(path):
            files = [path]
        else:
            raise DataError(f"{path}: there is no such file or folder; check the path and its permissions")
        for file in files:  # the same one may be named twice, or lie in a folder that is named too
            found.setdefault(os.path.realpath(file), file)
    if not found and not strays:
        raise DataError("no image given: name at least one image file or a folder of images")
    return list(found.values()), strays


def relative(paths: Sequence[Path], folder: Path) -> tuple[str, ...]:
    return tuple(path.relative_to(folder).as_posix() for path in paths)
