"""CIFAR-10: class folders, or the original batches, which are downloaded where there is neither."""

from __future__ import annotations

import hashlib
import http.client
import io
import os
import pickle
import shutil
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from attnad.data.folders import NormalSet, TestSet, data_root
from attnad.data.images import in_parallel, resized, to_tensor
from attnad.data.layouts import folder_classes
from attnad.errors import DataError

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

BATCHES = "cifar-10-batches-py"


def find_cifar10(root: Path | None) -> Path:
    """The folder of class folders, or of the original batches, which are downloaded where there is neither."""
    base = data_root(root)
    at_root = os.path.isdir(base / "train" / CIFAR10_CLASSES[0])  # else the root holds something else
    for folder in (base / "cifar10", base) if at_root else (base / "cifar10",):
        if os.path.isdir(folder / "train"):
            names = folder_classes(folder)
            if names != CIFAR10_CLASSES:
                wrong = ", ".join(sorted(set(names) ^ set(CIFAR10_CLASSES)))
                raise DataError(f"{folder / 'train'}: does not hold CIFAR-10's ten classes ({wrong}); unpack it again")
            return folder
    for folder in (base / "cifar10" / BATCHES, base / BATCHES):
        if os.path.isdir(folder):
            return folder
    _download_cifar10(base)
    return base / BATCHES


def _download_cifar10(base: Path) -> None:
    """Fetch the archive, unless it is there, check its MD5 and take out the batches, all of them or none.

    Only files of the batches' names are written, whatever else the archive holds and wherever that wants to lie.
    """
    from torchvision.datasets import CIFAR10, utils  # here: its import is slow, and rarely needed

    unpacked = base / f".{BATCHES}.writing"
    try:
        utils.download_url(CIFAR10.url, base, filename=CIFAR10.filename, md5=CIFAR10.tgz_md5)
        shutil.rmtree(unpacked, ignore_errors=True)  # of a process that was killed
        unpacked.mkdir()
        with tarfile.open(base / CIFAR10.filename, "r:gz") as archive:
            wanted, total = {f"{BATCHES}/{name}" for name, _ in CIFAR10.train_list + CIFAR10.test_list}, 0
            for member in archive:
                if (total := total + member.size) > 300_000_000:  # the real one's are 186 MB
                    raise tarfile.TarError("it unpacks to more than 300 MB")
                if member.isreg() and member.name in wanted:
                    wanted.remove(member.name)
                    content = archive.extractfile(member)
                    assert content, "a plain file has content"
                    (unpacked / Path(member.name).name).write_bytes(content.read())
        if wanted:
            raise tarfile.TarError(f"it holds no {min(wanted)}")
        unpacked.rename(base / BATCHES)
    except (OSError, RuntimeError, EOFError, http.client.HTTPException, tarfile.TarError, zlib.error) as error:
        shutil.rmtree(unpacked, ignore_errors=True)
        raise DataError(
            f"cifar10: not found in {base}, and the download or its unpacking failed ({error}). "
            f"Put {CIFAR10.filename} from {CIFAR10.url} (MD5 {CIFAR10.tgz_md5}) into {base} and call again, or "
            f"class folders into {base / 'cifar10'}: train/<class>/*.png and test/<class>/*.png"
        ) from error


class _Bytes:
    """An array of bytes, the only kind in the batches. NumPy's own could be made to lie over any memory."""

    def __init__(self, *_: Any):
        self.values = np.empty(0, np.uint8)

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, by_columns, content = state
        content = content.encode("latin1") if isinstance(content, str) else content  # a string of Python 2
        if not isinstance(kind, _ByteType) or not isinstance(content, bytes):
            raise pickle.UnpicklingError("an array of anything but bytes is not allowed")
        self.values = np.frombuffer(content, np.uint8).reshape(shape, order="F" if by_columns else "C")


class _ByteType:
    """The type of such an array."""

    def __init__(self, name: str, *_: Any):
        if name != "u1":
            raise pickle.UnpicklingError(f"an array of {name} is not allowed")

    def __setstate__(self, state: tuple) -> None:
        """Byte order and the like: bytes have none."""


class _ArrayUnpickler(pickle.Unpickler):
    """Builds arrays of bytes, lists, dictionaries and strings, and refuses everything else a pickle could run."""

    def find_class(self, module: str, name: str) -> Any:
        match (module, name):
            case ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct"):
                return _Bytes
            case ("numpy", "ndarray"):
                return None  # what `_reconstruct` is asked to make, and nothing that can be called
            case ("numpy", "dtype"):
                return _ByteType
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
                    pixels.append(batch["data"].values[i].reshape(3, 32, 32).transpose(1, 2, 0))
                    numbers.append(number)
                    names.append(f"{name}/{i:04d}")
        except Exception as error:  # what it is was checked: only a file that somebody made can come here
            raise DataError(f"{path}: {error}; {remedy}") from error
    images = list(
        in_parallel(
            lambda image: resized(Image.fromarray(image), size), [np.ascontiguousarray(image) for image in pixels]
        )
    )
    return to_tensor(np.stack(images)), numbers, names


def train_batches(folder: Path, normal: str, size: int) -> NormalSet:
    images, _, names = _read_batches(folder, "train", size, wanted=CIFAR10_CLASSES.index(normal))
    return NormalSet(images, tuple(names))


def test_batches(folder: Path, normal: str, size: int) -> TestSet:
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
