"""How labelled data sets lie in their folders: a table of layouts, and what each gives for training and for testing."""

from __future__ import annotations

import csv
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import torch

from attnad.data.folders import TestSet, entries, files_of, relative
from attnad.data.images import in_parallel, read_images, read_mask
from attnad.errors import DataError, shown


@dataclass(frozen=True)
class Layout:
    """How a labelled data set lies in its folder; the other folders are below it."""

    name: str
    marks: tuple[str, ...]  # folders by which it is known
    train: str  # folder of normal images; {normal} is the class that is normal
    test: str  # folder of folders: good images, and one for each kind of defect
    truth: str  # folder of folders of masks, one for each kind of defect
    normal: str | None = None  # the good images' folder, where it has one name only

    @property
    def split(self) -> bool:
        """Whether the normal images for training and for testing lie in one folder."""
        return "{normal}" not in self.train

    def text(self) -> str:
        """The layout in a line."""
        good = self.normal or "good"
        parts = [self.train.format(normal=good)] + ([] if self.split else [f"{self.test}/{good}"])
        parts += [(Path(self.test) / "<defect>").as_posix()]
        masks = f"{self.truth}/<defect>/<stem>_mask.png"
        return f"{', '.join(f'{part}/*' for part in parts)} and, optionally, {masks}"


# From the most particular to the plainest: the first one whose marks are there is meant.
LAYOUTS = (
    Layout("MVTec AD 2", ("train", "test_public"), "train/{normal}", "test_public", "test_public/ground_truth"),
    Layout("MVTec AD, BTAD, MVTec LOCO", ("train",), "train/{normal}", "test", "ground_truth"),
    Layout("VisA", ("Data/Images/Normal",), "Data/Images/Normal", "Data/Images", "Data/Masks", "Normal"),
    Layout("good and bad", ("good", "bad"), "good", ".", "ground_truth", "good"),
)
LAYOUT = LAYOUTS[1].text()
TABLE = "split_csv/1cls.csv"  # VisA's, in the folder or beside it
EVERY = 10  # of normal images that lie in one folder, every tenth is for testing


def layout_of(folder: Path) -> Layout | None:
    """The layout of a labelled data set, None for other folders; looks at no test image."""
    return next((each for each in LAYOUTS if all(os.path.isdir(folder / mark) for mark in each.marks)), None)


def folder_classes(folder: Path) -> tuple[str, ...]:
    """The training classes of a labelled folder, sorted; () for a folder of images. Looks at no test image."""
    layout = layout_of(folder)
    if layout and layout.normal:
        return (layout.normal,)
    if layout:
        folders, files = entries(folder / "train")
        if files or not folders:
            what = f"holds {files[0].name}, which is in no class folder" if files else "holds no class folder"
            raise DataError(f"{folder / 'train'}: {what}; the images belong into train/good, or train/<class>")
        return tuple(path.name for path in folders)
    folders, _ = entries(folder)
    if folders:
        inner = [path for path in folders if layout_of(path)]
        if inner:
            remedy = f"name one data set, such as {inner[0]}"
        else:
            there = [*folders, *(inner for path in folders for inner in entries(path)[0])]
            near = nearest([path.relative_to(folder).as_posix() for path in there])
            remedy = f"put the images directly inside, or lay them out as {near.name} does: {near.text()}"
        raise DataError(f"{folder}: holds folders ({folders[0].name}) that are no layout we know; {remedy}")
    return ()


def nearest(there: Sequence[str]) -> Layout:
    """The layout whose folders are called most like those that are there."""

    def likeness(layout: Layout) -> float:
        good = layout.normal or "good"
        wanted = {layout.train.format(normal=good), (Path(layout.test) / good).as_posix(), layout.truth}
        close = [max(SequenceMatcher(None, one.lower(), name.lower()).ratio() for name in there) for one in wanted]
        return sum(close) / len(close)

    return max(LAYOUTS, key=likeness)


def train_paths(folder: Path, normal: str) -> list[Path]:
    """The normal training images of a labelled folder; those of a folder `validation` too, all of which are normal."""
    layout = layout_of(folder)
    assert layout, "only a labelled folder has a normal class"
    paths = files_of(folder / layout.train.format(normal=normal))
    if layout.split:
        return _split(folder, paths)[0]
    validation = folder / "validation"
    folders, files = entries(validation) if os.path.isdir(validation) else ([], [])
    known = folder_classes(folder)
    for path in files + [inner for inner in folders if inner.name not in known]:
        raise DataError(
            f"{path}: validation is trained on, so it holds folders called as those of train and nothing else; move "
            f"it to validation/{normal} if it is normal, to {layout.test}/<defect> if not"
        )
    return paths + [path for inner in folders if inner.name == normal for path in files_of(inner)]


def _split(folder: Path, paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Normal images of one folder for training and for testing: as VisA's table says, else every tenth is a test's."""
    whole = Path(os.path.abspath(folder))  # "." has neither a name nor a parent
    table = next((p for p in (whole / TABLE, whole.parent / TABLE) if p.is_file()), None)
    if table is None:
        if len(paths) < EVERY:
            raise DataError(
                f"{paths[0].parent}: holds {len(paths)} normal images, of which every tenth is kept for testing; "
                "give ten or more, or put those for testing apart (train/good, test/good)"
            )
        return [p for i, p in enumerate(paths, 1) if i % EVERY], list(paths[EVERY - 1 :: EVERY])
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:  # spreadsheets write a mark before the first name
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: cannot be read as a table ({error}); restore it or remove it") from error
    said: dict[str, set[str | None]] = {}
    for row in rows:
        if row.get("object") == whole.name and row.get("label") == "normal":
            said.setdefault(Path(row.get("image") or "").name, set()).add(row.get("split"))
    if unknown := [path for path in paths if said.get(path.name) not in ({"train"}, {"test"})]:
        raise DataError(
            f"{unknown[0]}: {table} does not say whether it is for training, or says both; correct the table or remove "
            "it"
        )
    train, test = ([path for path in paths if said[path.name] == {part}] for part in ("train", "test"))
    if not train or not test:
        raise DataError(
            f"{table}: keeps no normal image of {whole.name} for {'testing' if train else 'training'}; correct the "
            "table or remove it"
        )
    return train, test


def has_test_folders(folder: Path, normal: str) -> bool:
    """Whether a labelled folder has test images, good ones and others, by the names of its folders."""
    layout = layout_of(folder)
    if layout is None or not os.path.isdir(folder / layout.test):
        return False
    names = [path.name for path in _test_parts(folder, layout)[0]]
    return normal in names and len(names) > 1


def _test_parts(folder: Path, layout: Layout) -> tuple[list[Path], list[Path]]:
    """The folders of test images, and the files beside them."""
    folders, files = entries(folder / layout.test)
    return [path for path in folders if path not in (folder / layout.truth, folder / "split_csv")], files


def test_paths(folder: Path, normal: str) -> tuple[list[Path], list[list[Path]]]:
    """The test images of a labelled folder, and the masks of each: none where there are no masks."""
    layout = layout_of(folder)
    if layout is None or not os.path.isdir(folder / layout.test):
        raise DataError(f"{folder}: has no test images with labels; a test set is laid out as {LAYOUT}")
    test, truth = folder / layout.test, folder / layout.truth
    folders, files = _test_parts(folder, layout)
    if files and layout.test != ".":
        raise DataError(
            f"{files[0]}: lies beside the folders of {layout.test}/; move it into {layout.test}/good or "
            f"{layout.test}/<defect>"
        )
    names = [path.name for path in folders]
    if normal not in names or len(names) < 2:
        lack, inside = ("anomalous", "<defect>") if normal in names else ("good", normal)
        raise DataError(
            f"{test}: holds no {lack} images ({layout.test}/{inside}); a test set needs good and anomalous ones"
        )
    if "good" in names and normal != "good":
        raise DataError(f"{test / 'good'}: is not the normal class ({normal}); give it another name than good")

    paths = []
    for inner in folders:
        found = files_of(inner)
        paths += _split(folder, found)[1] if layout.split and inner.name == normal else found
    return paths, _mask_paths(test, truth, paths, normal) if os.path.isdir(truth) else [[] for _ in paths]


def test_folders(folder: Path, normal: str, size: int, expected: int | None) -> TestSet:
    paths, mask_paths = test_paths(folder, normal)
    if expected and len(paths) != expected:
        warnings.warn(f"{shown(folder)}: {len(paths)} test images instead of {expected:,}", stacklevel=3)
    images, sizes = read_images(paths, size)
    masks, soft = [], []
    for path, drawn, (mask, blurred) in zip(
        paths, mask_paths, in_parallel(read_mask, mask_paths, sizes, [size] * len(paths)), strict=True
    ):
        if path.parent.name == normal and mask.any():
            raise DataError(
                f"{drawn[0]}: marks a defect in a good image; move {shown(path)} to a defect's folder or empty the mask"
            )
        masks.append(mask)
        soft += blurred
    if soft:
        warnings.warn(
            f"{shown(soft[0])}: its border is soft, as JPEG or smoothing leaves it, so half of its largest value is "
            f"the limit between normal and defect; {len(soft)} of {sum(map(len, mask_paths))} masks are like this",
            stacklevel=3,
        )
    kinds = tuple("good" if path.parent.name == normal else path.parent.name for path in paths)
    return TestSet(
        images=images,
        labels=torch.tensor([kind != "good" for kind in kinds]),
        masks=torch.from_numpy(np.stack(masks)),
        has_mask=torch.full((len(paths),), any(mask_paths)),  # each defect has one, or none has
        kinds=kinds,
        names=relative(paths, folder),
    )


def _mask_paths(test: Path, truth: Path, paths: Sequence[Path], normal: str) -> list[list[Path]]:
    """The masks of each test image, none for a good one that has none; every mask must have its image.

    An image's mask is called as itself, with or without "_mask", or there are several in a folder called as itself.
    """
    folders, files = entries(truth)
    if files:
        raise DataError(f"{files[0]}: lies beside the folders of {truth.name}/; move it to {truth.name}/<defect>")
    masks: dict[tuple[str, str], list[list[Path]]] = {}
    for folder in folders:
        several, single = entries(folder)
        if not several and not single:
            raise DataError(f"{folder}: is empty; it should hold masks")
        for name, drawn in [(p.stem, [p]) for p in single] + [(p.name, files_of(p)) for p in several]:
            masks.setdefault((folder.name, name), []).append(drawn)
    found: list[list[Path]] = []
    for path in paths:
        kind, stem = path.parent.name, path.stem
        name = next((name for name in (f"{stem}_mask", stem) if (kind, name) in masks), stem)
        known = masks.pop((kind, name), [])
        if len(known) > 1:
            raise DataError(
                f"{known[1][0]}: is a second mask of {path}, beside {known[0][0]}; keep one, or put both into a "
                f"folder {truth / kind / stem}"
            )
        found.append(known[0] if known else [])
        if not known and kind != normal:
            raise DataError(
                f"{path}: has no mask {truth / kind / stem}_mask.png; add it, or remove the folder {truth.name}"
            )
    for kind, stem in masks:
        image = test / kind / f"{stem.removesuffix('_mask')}.*"
        raise DataError(
            f"{masks[kind, stem][0][0]}: is the mask of no image; there is no {image}. Add the image or remove the mask"
        )
    return found
