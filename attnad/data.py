"""One-class data sets: what is normal for training, and labelled images for testing.

The argument `data` of `load_train`, `load_test` and `classes` names a data set. In this order it is

1. `"textures"`: crops of three photographs that ship inside scikit-image (see `attnad.textures`); nothing to download.
2. `"cifar10"`: below `root`, as class folders (`cifar10/train/<class>/*`, `cifar10/test/<class>/*`, or `root` itself
   laid out so), else as the original batches (`cifar-10-batches-py/`), else downloaded.
3. a folder, named by a path that is absolute, or relative to the current folder or to `root`:
   a. with a folder `train`: a labelled data set. `train/<class>/*` and `test/<class or defect>/*` hold images and, if
      there is a folder `ground_truth`, `ground_truth/<defect>/<stem>_mask.png` is the mask of an anomalous test image.
      With one training class (MVTec AD: `train/good`) it is the normal one; with several, `normal_class` says which.
   b. without: its images, all of them normal. They lie directly inside: a folder within it is refused, not searched,
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

import difflib
import hashlib
import http.client
import io
import os
import pickle
import shutil
import tarfile
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from attnad import textures

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MAX_PIXELS, LARGE_PIXELS = 100_000_000, 16_000_000
IGNORED_NAMES = {"thumbs.db", "desktop.ini", "__macosx"}
IGNORED_TEXTS = {"readme", "license", "licence", "copying"}  # alone, or with .txt or .md
LAYOUT = "train/good/*, test/good/*, test/<defect>/* and, optionally, ground_truth/<defect>/<stem>_mask.png"


class DataError(ValueError):
    """Data that cannot be used. The message names the file or value, what is wrong with it and what to do."""


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


class ImageBatch(NamedTuple):
    """images: uint8 [n, 3, size, size]; paths: the n files; sizes: their original (width, height), upright."""

    images: Tensor
    paths: tuple[Path, ...]
    sizes: tuple[tuple[int, int], ...]


# --- the four functions ----------------------------------------------------------------------------------------------


def load_train(data: str, *, size: int, normal_class: str | None = None, root: Path | None = None) -> NormalSet:
    """Load the normal training images of a data set (see the head of this module) at size x size pixels.

    Test images are neither opened nor listed. `normal_class` is needed where the data set has several classes, but for
    'textures', where it is 'brick' unless given. Raises DataError.
    """
    _check_size(size)
    normal = _normal_class(data, normal_class, root)
    if data == "textures":
        crops = textures.train_crops(normal, size)
        return NormalSet(_to_tensor(crops), tuple(f"{normal}/train/{i:04d}" for i in range(len(crops))))

    folder = _cifar10(root) if data == "cifar10" else _folder(data, root)
    if folder.name == _BATCHES:
        return _train_batches(folder, normal, size)
    paths = _files(folder / "train" / normal if normal else folder)
    if data == "cifar10" and len(paths) != 5_000:
        warnings.warn(f"{folder}: {len(paths)} training images of class {normal}, CIFAR-10 has 5,000", stacklevel=2)
    images, _ = _read_images(paths, size)
    return NormalSet(images, _relative(paths, folder))


def load_test(data: str, *, size: int, normal_class: str | None = None, root: Path | None = None) -> TestSet:
    """Load the labelled test images of a data set (see the head of this module) at size x size pixels.

    Masks are resized with nearest neighbour; any value above 0 is defect. All classes but the normal one are anomalous.
    Raises DataError, also where the test set lacks good or anomalous images, where an image and its mask differ in
    size, and where a folder `ground_truth` exists but a mask lacks its image or an anomalous image its mask.
    """
    _check_size(size)
    normal = _normal_class(data, normal_class, root)
    if data == "textures":
        return _test_textures(normal, size)

    folder = _cifar10(root) if data == "cifar10" else _folder(data, root)
    if folder.name == _BATCHES:
        return _test_batches(folder, normal, size)
    if normal is None or not os.path.isdir(folder / "test"):
        raise DataError(f"{folder}: has no test images with labels; a test set is laid out as {LAYOUT}")
    return _test_folders(folder, normal, size, expected=10_000 if data == "cifar10" else None)


def load_images(paths: Sequence[Path], *, size: int) -> ImageBatch:
    """Load any images, without labels, at size x size pixels.

    `paths` holds files, and folders that stand for all images inside them at any depth, sorted. Raises DataError.
    """
    _check_size(size)
    files = tuple(file for path in paths for file in _expand(Path(path)))
    if not files:
        raise DataError("no image given: name at least one image file or a folder of images")
    images, sizes = _read_images(files, size)
    return ImageBatch(images, files, sizes)


def classes(data: str, root: Path | None = None) -> tuple[str, ...]:
    """The names that `normal_class` can take, sorted; () for a folder of images without classes. Raises DataError."""
    if data == "textures":
        return textures.TEXTURES
    return CIFAR10_CLASSES if data == "cifar10" else _folder_classes(_folder(data, root))


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


# --- which data set, which class -------------------------------------------------------------------------------------


def _check_size(size: int) -> None:
    if not isinstance(size, int) or isinstance(size, bool) or size < 32 or size % 16:
        raise DataError(f"size {size!r}: must be a whole number of pixels, 32 or more and a multiple of 16, such as 64")


def _root(root: Path | None) -> Path:
    return Path(root or os.environ.get("ATTNAD_DATA") or "~/.cache/attnad").expanduser()


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


def _folder(data: str, root: Path | None) -> Path:
    """The folder that `data` names, seen from here or from the root."""
    try:
        given, base = Path(data).expanduser(), _root(root)
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


def _folder_classes(folder: Path) -> tuple[str, ...]:
    """The training classes of a labelled folder, sorted; () for a folder of images. Looks at `train` only."""
    if folder.name == _BATCHES:
        return CIFAR10_CLASSES
    if os.path.isdir(folder / "train"):
        folders, files = _entries(folder / "train")
        if files or not folders:
            what = f"holds {files[0].name}, which is in no class folder" if files else "holds no class folder"
            raise DataError(f"{folder / 'train'}: {what}; the images belong into train/good, or train/<class>")
        return tuple(path.name for path in folders)
    folders, _ = _entries(folder)
    if folders:
        inner = [path for path in folders if os.path.isdir(path / "train")]
        remedy = (
            f"name one data set, such as {inner[0]}" if inner else f"put the images directly inside, or use {LAYOUT}"
        )
        raise DataError(f"{folder}: holds folders ({folders[0].name}) but no folder 'train'; {remedy}")
    return ()


# --- listing files ---------------------------------------------------------------------------------------------------


def _entries(folder: Path) -> tuple[list[Path], list[Path]]:
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


def _files(folder: Path) -> list[Path]:
    """The files of a folder that must hold images and nothing else."""
    if not os.path.isdir(folder):
        raise DataError(f"{folder}: there is no such folder; it should hold images")
    folders, files = _entries(folder)
    if folders:
        raise DataError(f"{folders[0]}: is a folder among images; move its images to {folder} or remove it")
    if not files:
        raise DataError(f"{folder}: is empty; it should hold images")
    return files


def _expand(path: Path) -> Iterator[Path]:
    if os.path.isfile(path):
        yield path
        return
    if not os.path.isdir(path):
        raise DataError(f"{path}: there is no such file or folder; check the path and its permissions")
    folders, files = _entries(path)
    if not folders and not files:
        raise DataError(f"{path}: is empty; it should hold images")
    for inner in sorted(folders + files):
        if inner.is_symlink() and os.path.isdir(inner):  # it may lead in a circle
            raise DataError(f"{inner}: is a link to a folder; name the folder that it leads to instead")
        yield from _expand(inner)


def _relative(paths: Sequence[Path], folder: Path) -> tuple[str, ...]:
    return tuple(path.relative_to(folder).as_posix() for path in paths)


# --- reading images --------------------------------------------------------------------------------------------------


def _read_images(paths: Sequence[Path], size: int) -> tuple[Tensor, tuple[tuple[int, int], ...]]:
    """Files -> uint8 [n, 3, size, size], and the original (width, height) of each."""
    images, sizes = np.empty((len(paths), size, size, 3), dtype=np.uint8), []

    def convert(image: Image.Image) -> tuple[np.ndarray, tuple[int, int]]:
        image = _to_rgb(image)
        return _resized(image, size), image.size

    for i, (pixels, original) in enumerate(_parallel(lambda path: _open(path, convert), paths)):
        images[i] = pixels
        sizes.append(original)
    return _to_tensor(images), tuple(sizes)


def _resized(image: Image.Image, size: int) -> np.ndarray:
    """RGB image -> uint8 [size, size, 3]. Pillow's filters widen as they shrink an image: that is the antialiasing."""
    return np.asarray(image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BICUBIC))


def _to_tensor(images: np.ndarray) -> Tensor:
    """uint8 [n, height, width, 3] -> uint8 [n, 3, height, width]."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def _parallel(function: Callable[..., Any], *items: Sequence[Any]) -> Iterator[Any]:
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


def _read_mask(path: Path | None, original: tuple[int, int], size: int) -> np.ndarray:
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


# --- labelled folders ------------------------------------------------------------------------------------------------


def _test_folders(folder: Path, normal: str, size: int, expected: int | None) -> TestSet:
    folders, files = _entries(folder / "test")
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

    paths = [path for inner in folders for path in _files(inner)]
    if expected and len(paths) != expected:
        warnings.warn(f"{folder}: {len(paths)} test images instead of {expected:,}", stacklevel=3)
    masked = os.path.isdir(folder / "ground_truth")
    mask_paths = _mask_paths(folder, paths, normal) if masked else [None] * len(paths)

    images, sizes = _read_images(paths, size)
    masks = list(_parallel(_read_mask, mask_paths, sizes, [size] * len(paths)))
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
        names=_relative(paths, folder),
    )


def _mask_paths(folder: Path, paths: Sequence[Path], normal: str) -> list[Path | None]:
    """The mask of each test image, None for a good one that has none; every mask must have its image."""
    truth = folder / "ground_truth"
    folders, files = _entries(truth)
    if files:
        raise DataError(f"{files[0]}: lies beside the folders of ground_truth/; move it to ground_truth/<defect>")
    masks = {(inner.name, path.stem): path for inner in folders for path in _files(inner)}
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


# --- textures --------------------------------------------------------------------------------------------------------


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
        images=_to_tensor(images),
        labels=torch.tensor([kind != "good" for kind in kinds]),
        masks=torch.from_numpy(masks),
        has_mask=torch.tensor([not kind.startswith("other/") for kind in kinds]),
        kinds=tuple(kinds),
        names=tuple(f"{normal}/test/{kind}/{i:04d}" for i, kind in enumerate(kinds)),
    )


# --- CIFAR-10 --------------------------------------------------------------------------------------------------------

_BATCHES = "cifar-10-batches-py"


def _cifar10(root: Path | None) -> Path:
    """The folder of class folders, or of the original batches, which are downloaded where there is neither."""
    base = _root(root)
    at_root = os.path.isdir(base / "train" / CIFAR10_CLASSES[0])  # else the root holds something else
    for folder in (base / "cifar10", base) if at_root else (base / "cifar10",):
        if os.path.isdir(folder / "train"):
            names = _folder_classes(folder)
            if names != CIFAR10_CLASSES:
                wrong = ", ".join(sorted(set(names) ^ set(CIFAR10_CLASSES)))
                raise DataError(f"{folder / 'train'}: does not hold CIFAR-10's ten classes ({wrong}); unpack it again")
            return folder
    for folder in (base / "cifar10" / _BATCHES, base / _BATCHES):
        if os.path.isdir(folder):
            return folder
    _download_cifar10(base)
    return base / _BATCHES


def _download_cifar10(base: Path) -> None:
    """Fetch the archive, unless it is there, check its MD5 and take out the batches, all of them or none.

    Only files of the batches' names are written, whatever else the archive holds and wherever that wants to lie.
    """
    from torchvision.datasets import CIFAR10, utils  # here: its import is slow, and rarely needed

    unpacked = base / f".{_BATCHES}.writing"
    try:
        utils.download_url(CIFAR10.url, base, filename=CIFAR10.filename, md5=CIFAR10.tgz_md5)
        shutil.rmtree(unpacked, ignore_errors=True)  # of a process that was killed
        unpacked.mkdir()
        with tarfile.open(base / CIFAR10.filename, "r:gz") as archive:
            wanted, total = {f"{_BATCHES}/{name}" for name, _ in CIFAR10.train_list + CIFAR10.test_list}, 0
            for member in archive:
                if (total := total + member.size) > 300_000_000:  # the real one's are 186 MB
                    raise tarfile.TarError("it unpacks to more than 300 MB")
                if member.isreg() and member.name in wanted:
                    wanted.remove(member.name)
                    (unpacked / Path(member.name).name).write_bytes(archive.extractfile(member).read())
        if wanted:
            raise tarfile.TarError(f"it holds no {min(wanted)}")
        unpacked.rename(base / _BATCHES)
    except (OSError, RuntimeError, EOFError, http.client.HTTPException, tarfile.TarError, zlib.error) as error:
        shutil.rmtree(unpacked, ignore_errors=True)
        raise DataError(
            f"cifar10: not found in {base}, and the download or its unpacking failed ({error}). "
            f"Put {CIFAR10.filename} from {CIFAR10.url} (MD5 {CIFAR10.tgz_md5}) into {base} and call again, or "
            f"class folders into {base / 'cifar10'}: train/<class>/*.png and test/<class>/*.png"
        ) from error


class _ArrayUnpickler(pickle.Unpickler):
    """Builds numpy arrays, lists, dictionaries and strings, and refuses everything else a pickle could run."""

    def find_class(self, module: str, name: str) -> Any:
        match (module, name):
            case ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct"):
                return np.empty(0).__reduce__()[0]  # wherever this version of numpy keeps it
            case ("numpy", "ndarray"):
                return np.ndarray
            case ("numpy", "dtype"):
                return np.dtype
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")


def _read_batches(folder: Path, part: str, size: int, wanted: int | None) -> tuple[Tensor, list[int], list[str]]:
    """Images uint8 [n, 3, size, size], class numbers and names; only class `wanted`, unless None."""
    from torchvision.datasets import CIFAR10

    pixels, numbers, names = [], [], []
    for name, md5 in CIFAR10.train_list if part == "train" else CIFAR10.test_list:
        path = folder / name
        remedy = f"delete {folder} and call again to unpack or download it"
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
            raise DataError(f"{path}: is not CIFAR-10's (its MD5 is not {md5}); {remedy}")
        try:
            batch = _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
            for i, number in enumerate(batch["labels"]):
                if wanted is None or number == wanted:
                    pixels.append(batch["data"][i].reshape(3, 32, 32).transpose(1, 2, 0))
                    numbers.append(number)
                    names.append(f"{name}/{i:04d}")
        except Exception as error:  # what it is was checked: only a file that somebody made can come here
            raise DataError(f"{path}: {error}; {remedy}") from error
    resized = list(_parallel(lambda image: _resized(Image.fromarray(image), size), np.ascontiguousarray(pixels)))
    return _to_tensor(np.stack(resized)), numbers, names


def _train_batches(folder: Path, normal: str, size: int) -> NormalSet:
    images, _, names = _read_batches(folder, "train", size, wanted=CIFAR10_CLASSES.index(normal))
    return NormalSet(images, tuple(names))


def _test_batches(folder: Path, normal: str, size: int) -> TestSet:
    images, numbers, names = _read_batches(folder, "test", size, wanted=None)
    kinds = tuple("good" if CIFAR10_CLASSES[k] == normal else CIFAR10_CLASSES[k] for k in numbers)
    n = len(kinds)
    return TestSet(
        images=images,
        labels=torch.tensor([kind != "good" for kind in kinds]),
        masks=torch.zeros((n, size, size), dtype=torch.bool),
        has_mask=torch.zeros(n, dtype=torch.bool),
        kinds=kinds,
        names=tuple(names),
    )
