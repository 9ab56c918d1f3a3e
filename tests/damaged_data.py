"""Images, masks and archives, damaged in many ways: each is read rightly or refused by name."""

from __future__ import annotations

import hashlib
import io
import pickle
import shutil
import tarfile
import urllib.error
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults import EDITS, REFUSED, generated, mutated, refused, write_bricks
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import CIFAR10, utils

from attnad.data import load_images, load_test, load_train, textures
from attnad.data.cifar10 import BATCHES as BATCHES_FOLDER
from attnad.errors import DataError


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def samples() -> dict[str, bytes]:
    """Real files of many kinds: palette, 16 bits, CMYK, alpha, turned by EXIF, animated, one pixel, a huge head."""
    image = Image.fromarray(textures.train_crops("brick", 64)[0])
    grey, palette, cmyk = image.convert("L"), image.quantize(16), image.convert("CMYK")
    wide = Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64) * 16)
    turned = Image.Exif()
    turned[0x0112] = 6
    frames = {"save_all": True, "append_images": [image.rotate(90), image.rotate(180)]}
    picture, bitmap = encoded(image, "PNG"), encoded(image, "BMP")
    head = b"IHDR" + (30_000).to_bytes(4, "big") * 2 + b"\x08\2\0\0\0"
    huge = picture[:12] + head + zlib.crc32(head).to_bytes(4, "big") + picture[33:]
    return {
        "rgb.png": picture, "grey.png": encoded(grey, "PNG"), "palette.png": encoded(palette, "PNG"),
        "clear.png": encoded(palette, "PNG", transparency=0), "alpha.png": encoded(image.convert("RGBA"), "PNG"),
        "bit.png": encoded(image.convert("1"), "PNG"), "dot.png": encoded(image.crop((0, 0, 1, 1)), "PNG"),
        "wide.png": encoded(wide, "PNG"), "wide.tif": encoded(wide, "TIFF"), "huge.png": huge,
        "huge.bmp": bitmap[:18] + (30_000).to_bytes(4, "little") * 2 + bitmap[26:],
        "rgb.jpg": encoded(image, "JPEG"), "cmyk.jpg": encoded(cmyk, "JPEG"),
        "turned.jpg": encoded(image, "JPEG", exif=turned), "progressive.jpg": encoded(image, "JPEG", progressive=True),
        "rgb.gif": encoded(image, "GIF"), "moving.gif": encoded(image, "GIF", **frames),
        "rgb.webp": encoded(image, "WEBP"), "moving.webp": encoded(image, "WEBP", **frames),
        "rgb.tif": encoded(image, "TIFF"), "lzw.tif": encoded(image, "TIFF", compression="tiff_lzw"),
        "cmyk.tif": encoded(cmyk, "TIFF"), "float.tif": encoded(image.convert("F"), "TIFF"), "rgb.bmp": bitmap,
        "rgb.ppm": encoded(image, "PPM"), "rgb.tga": encoded(image, "TGA"), "rgb.ico": encoded(image, "ICO"),
        "rgb.pcx": encoded(image, "PCX"), "rgb.jp2": encoded(image, "JPEG2000"),
    }  # fmt: skip


def images(folder: Path, n: int) -> set[bytes]:
    files, seen = samples(), set()

    def read(name: str, content: bytes) -> Any:
        seen.add(content)
        path = folder / name
        path.write_bytes(content)
        batch = refused(lambda: load_images([path], size=32), path)
        assert batch is None or (batch.images.shape, batch.images.dtype) == ((1, 3, 32, 32), torch.uint8)
        return batch

    assert {name for name, content in files.items() if read(name, content) is None} == REFUSED
    for name in ("huge.png", "huge.bmp"):  # for their size, not for the pixels that they lack
        with pytest.raises(DataError, match="megapixels"):
            load_images([folder / name], size=32)

    @generated(n)
    @given(name=st.sampled_from(sorted(files)), edits=EDITS)
    def check(name: str, edits: list) -> None:
        read(name, mutated(files[name], edits))

    check()
    return seen


def masks(folder: Path, n: int) -> set[bytes]:
    bricks = write_bricks(folder / "bricks")
    path = bricks / "ground_truth" / "hole" / "002_mask.png"
    mask, seen = Image.open(path).convert("L"), set()
    mask.load()
    modes = {mode: encoded(mask.convert(mode), "PNG") for mode in ("1", "L", "P", "RGB", "RGBA", "LA")}
    modes |= {"I;16": encoded(Image.fromarray(np.asarray(mask).astype(np.uint16)), "PNG")}
    modes |= {"another size": encoded(mask.resize((16, 16)), "PNG"), "jpeg": encoded(mask, "JPEG")}

    def read(content: bytes) -> Any:
        seen.add(content)
        path.write_bytes(content)
        test = refused(lambda: load_test(str(bricks), size=32), path)
        assert test is None or (test.masks.shape, test.masks.dtype) == ((10, 32, 32), torch.bool)
        return test

    for mode, content in modes.items():
        test = read(content)
        if mode == "another size":
            assert test is None
        elif mode != "jpeg":  # under a PNG's name; its values are blurred, which no reader can tell
            assert np.array_equal(test.masks[7], np.asarray(mask) > 0), mode

    @generated(n)
    @given(mode=st.sampled_from(sorted(modes)), edits=EDITS)
    def check(mode: str, edits: list) -> None:
        read(mutated(modes[mode], edits))

    check()
    return seen


BATCHES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]


def batches() -> dict[str, bytes]:
    """CIFAR-10's files with three images each."""
    found = {}
    for i, name in enumerate(BATCHES):
        pixels = np.random.default_rng(i).integers(0, 256, (3, 3072), dtype=np.uint8)
        pixels[:, 64:] = 0
        found[name] = pickle.dumps({"data": pixels, "labels": [3, 3, 5]}, protocol=3)
    return found


def tar(members: list[tuple[str, Any, bytes]]) -> bytes:
    """An archive of (name, kind, content): a link leads to its content, of kind "claim" it is the size claimed."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        for name, kind, content in members:
            member = tarfile.TarInfo(name)
            member.type = tarfile.REGTYPE if kind == "claim" else kind
            if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                member.linkname = content.decode()
            member.size = int(content) if kind == "claim" else len(content) if kind == tarfile.REGTYPE else 0
            if kind == "claim":
                archive.fileobj.write(member.tobuf())
            else:
                archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def archives(folder: Path, n: int) -> set[bytes]:
    """Archives with the right checksum, so that what is in them is looked at, and with a wrong one."""
    folder = folder / "archives"
    folder.mkdir()
    files, base, seen, unpacked = batches(), folder / "root", set(), []
    CIFAR10.train_list, CIFAR10.test_list = (
        [[name, hashlib.md5(files[name]).hexdigest()] for name in names] for names in (BATCHES[:5], BATCHES[5:])
    )

    def no_network(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no network")

    utils._get_redirect_url = no_network
    inside = f"{BATCHES_FOLDER}/"
    good = [(inside + name, tarfile.REGTYPE, content) for name, content in files.items()]
    (folder / "outside").write_text("as it was")

    def read(content: bytes, known: bool = True) -> None:
        seen.add(content)
        shutil.rmtree(base, ignore_errors=True)
        base.mkdir()
        (base / CIFAR10.filename).write_bytes(content)
        CIFAR10.tgz_md5 = hashlib.md5(content if known else content + b"other").hexdigest()
        found = refused(lambda: load_train("cifar10", size=32, normal_class="cat", root=base), base)
        if found is not None:
            assert len(found.images) == 10
            unpacked.append(content)
        there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
        allowed = {"outside", f"root/{CIFAR10.filename}", *(f"root/{inside}{name}" for name in BATCHES)}
        assert there <= allowed, there - allowed
        assert not any(path.is_symlink() for path in base.rglob("*"))
        assert (folder / "outside").read_text() == "as it was"
        if (base / BATCHES_FOLDER).exists():  # all of them or none
            assert {path.name for path in (base / BATCHES_FOLDER).iterdir()} == set(BATCHES)

    read(tar(good))
    assert len(unpacked) == 1
    read(tar(good), known=False)
    assert len(unpacked) == 1
    read(tar([("huge", "claim", b"2147483648"), *good]))
    read(tar([(inside + BATCHES[0], "claim", b"250000000")]))
    assert len(unpacked) == 1

    names = st.sampled_from(
        ["../outside", f"{folder}/outside", "../../outside", f"{inside}../../outside", "root", inside + BATCHES[0],
         inside + BATCHES[5], BATCHES_FOLDER, "x", ".", "/", "//etc/passwd", inside + "../" + BATCHES[1], "é\udcff"]
    )  # fmt: skip
    kinds = st.sampled_from(
        [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE,
         tarfile.DIRTYPE, tarfile.CONTTYPE]
    )  # fmt: skip
    leads = st.sampled_from([b"../outside", str(folder / "outside").encode(), b"/dev/zero", b".", b"evil"])
    evil = st.tuples(names, kinds, leads)

    @generated(n // 2)
    @given(edits=EDITS, known=st.booleans())
    def check_bytes(edits: list, known: bool) -> None:
        read(mutated(tar(good), edits), known)

    @generated(n // 2)
    @given(members=st.lists(st.tuples(st.integers(0, 6), evil), min_size=1, max_size=4), lost=st.integers(-3, 5))
    def check_members(members: list, lost: int) -> None:
        held = [each for i, each in enumerate(good) if i != lost]
        for at, member in members:
            held.insert(at, member)
        read(tar(held))

    check_bytes()
    check_members()
    assert len(unpacked) > n // 20, "nearly nothing was unpacked: the test is too coarse"
    return seen
