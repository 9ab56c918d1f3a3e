"""CIFAR-10 as class folders and as batches."""

from __future__ import annotations

import hashlib
import pickle
import shutil
import struct
import urllib.error
from pathlib import Path

import numpy as np
import pytest
from pictures import check_test_set, refused, save
from PIL import Image

from attnad import data
from attnad.data import load_test, load_train
from attnad.data.cifar10 import CIFAR10_CLASSES

pytestmark = pytest.mark.usefixtures("no_user_data")


# --- CIFAR-10 --------------------------------------------------------------------------------------------------------


@pytest.fixture
def cifar_folders(tmp_path) -> Path:
    for part in ("train", "test"):
        for i, name in enumerate(CIFAR10_CLASSES):
            for k in range(2):
                save(tmp_path / f"root/cifar10/{part}/{name}/{k:04d}.png", Image.new("RGB", (32, 32), (i, k, 99)))
    return tmp_path / "root"


@pytest.mark.parametrize("root", ["root", "root/cifar10"])
def test_cifar10_class_folders(cifar_folders, root):
    root = cifar_folders.parent / root
    with pytest.warns(UserWarning, match="2 training images of class cat, CIFAR-10 has 5,000"):
        train = load_train("cifar10", size=32, normal_class="cat", root=root)
    assert train.names == ("train/cat/0000.png", "train/cat/0001.png")
    assert train.images[0, :, 0, 0].tolist() == [3, 0, 99]
    with pytest.warns(UserWarning, match="20 test images instead of 10,000"):
        test = load_test("cifar10", size=32, normal_class="cat", root=root)
    check_test_set(test, 20, 32)
    assert int((~test.labels).sum()) == 2
    assert set(test.kinds) == {"good", *CIFAR10_CLASSES} - {"cat"}
    assert not test.has_mask.any()


def test_cifar10_needs_a_normal_class(cifar_folders):
    assert data.classes("cifar10") == CIFAR10_CLASSES
    for wanted in (None, "bear"):
        with refused("cifar10", "airplane, automobile, .*, truck"):
            load_train("cifar10", size=32, normal_class=wanted, root=cifar_folders)


def test_cifar10_class_folders_must_be_the_ten(cifar_folders):
    shutil.rmtree(cifar_folders / "cifar10/train/ship")
    with refused("cifar10/train", "ship"):
        load_train("cifar10", size=32, normal_class="cat", root=cifar_folders)


def test_cifar10_failed_download_says_what_to_put_where(tmp_path, monkeypatch):
    import torchvision.datasets.utils as utils

    def fail(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(utils, "download_url", fail)
    with refused("no network", "cifar-10-python.tar.gz", str(tmp_path / "data"), r"train/<class>"):
        load_train("cifar10", size=32, normal_class="cat", root=tmp_path / "data")


def python2_batch(images: np.ndarray, labels: list[int]) -> bytes:
    """A batch as CIFAR-10's authors wrote it: protocol 2 of Python 2, an array and byte strings, opcode by opcode."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    array = b"cnumpy.core.multiarray\n_reconstruct\n" + b"cnumpy\nndarray\n" + b"K\x00\x85" + text(b"b") + b"\x87R"
    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + text(b"|") + b"NNN" + number(-1) + number(-1) + b"K\x00tb"
    content = images.tobytes()
    shape = number(images.shape[0]) + number(images.shape[1]) + b"\x86"
    array += b"(K\x01" + shape + dtype + b"\x89" + b"T" + struct.pack("<i", len(content)) + content + b"tb"
    listed = b"](" + b"".join(number(label) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + listed + b"u."


@pytest.fixture
def cifar_batches(tmp_path, monkeypatch) -> Path:
    """Original batches with 10 images each, and the checksums that belong to them."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "root/cifar-10-batches-py"
    folder.mkdir(parents=True)
    lists = {}
    for part, names in (("train_list", [f"data_batch_{i}" for i in range(1, 6)]), ("test_list", ["test_batch"])):
        lists[part] = []
        for k, name in enumerate(names):
            images = np.random.default_rng(k).integers(0, 256, (10, 3072), dtype=np.uint8)
            images[:, 0] = np.arange(10)  # red of the first pixel
            content = python2_batch(images, list(range(10)))
            (folder / name).write_bytes(content)
            lists[part].append([name, hashlib.md5(content).hexdigest()])
        monkeypatch.setattr(CIFAR10, part, lists[part])
    return tmp_path / "root"


def test_cifar10_batches(cifar_batches):
    train = load_train("cifar10", size=32, normal_class="deer", root=cifar_batches)
    assert train.images.shape == (5, 3, 32, 32)
    assert train.names[1] == "data_batch_2/0004"
    expected = np.random.default_rng(1).integers(0, 256, (10, 3072), dtype=np.uint8)[4]
    expected[0] = 4
    np.testing.assert_array_equal(train.images[1].numpy(), expected.reshape(3, 32, 32))
    test = load_test("cifar10", size=64, normal_class="deer", root=cifar_batches)
    check_test_set(test, 10, 64)
    assert test.kinds == tuple("good" if name == "deer" else name for name in CIFAR10_CLASSES)


def test_cifar10_load_train_does_not_need_the_test_batch(cifar_batches):
    (cifar_batches / "cifar-10-batches-py/test_batch").unlink()
    load_train("cifar10", size=32, normal_class="deer", root=cifar_batches)
    with refused("test_batch", "delete"):
        load_test("cifar10", size=32, normal_class="deer", root=cifar_batches)


def test_cifar10_wrong_checksum(cifar_batches):
    path = cifar_batches / "cifar-10-batches-py/data_batch_3"
    path.write_bytes(path.read_bytes()[:-1])
    with refused("data_batch_3", "MD5", "delete"):
        load_train("cifar10", size=32, normal_class="deer", root=cifar_batches)


@pytest.mark.parametrize(
    "content",
    [
        # An array of objects whose addresses are these bytes; one that lies over an array; one of no memory of its own.
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01(K\x01tcnumpy\ndtype\n(U\x02O8tR"
        b"\x89]K\x07atb",
        b"cnumpy\nndarray\n((K\x01tcnumpy\ndtype\n(U\x01OtRU\x08AAAAAAAAtR",
        b"cnumpy\nndarray\n((K\x01tcnumpy\ndtype\n(U\x02u1tRtR",
        b"cnumpy\ndtype\n(U\x01OtR",
        b"cnumpy\ndtype\n(U\x02u1tR(K\x03U\x01|N(U\x01at}tb0cnumpy\ndtype\n(U\x02f8tR",
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01(K\x01tcnumpy\ndtype\n(U\x02u1tR"
        b"\x89cnumpy.core.multiarray\n_reconstruct\n(tRtb",
    ],
    ids=[
        "objects",
        "an array over bytes",
        "an array of nothing",
        "type of objects",
        "type of floats",
        "an array over another",
    ],
)
def test_cifar10_arrays_are_of_bytes_alone(content, cifar_batches, monkeypatch):
    """Whatever else NumPy can be asked for by a pickle could lie over memory that is none of the file's."""
    from torchvision.datasets import CIFAR10

    content = b"\x80\x02}(U\x06labels](K\x03eU\x04data" + content + b"u."
    (cifar_batches / "cifar-10-batches-py/test_batch").write_bytes(content)
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", hashlib.md5(content).hexdigest()]])
    with refused("test_batch", "(an array of .* is not allowed|'NoneType' object is not callable)"):
        load_test("cifar10", size=32, normal_class="deer", root=cifar_batches)


def test_cifar10_pickles_run_nothing(cifar_batches, monkeypatch, tmp_path):
    from torchvision.datasets import CIFAR10

    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "touched",)

    content = pickle.dumps(Evil())
    (cifar_batches / "cifar-10-batches-py/test_batch").write_bytes(content)
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", hashlib.md5(content).hexdigest()]])
    with refused("test_batch", "not allowed"):
        load_test("cifar10", size=32, normal_class="deer", root=cifar_batches)
    assert not (tmp_path / "touched").exists()
