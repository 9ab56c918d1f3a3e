"""Data sets from real files: layouts, image formats, masks, and an error with a remedy for whatever is wrong."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import shutil
import struct
import urllib.error
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from attnad import data
from attnad.data import load_images, load_test, load_train
from attnad.data.cifar10 import CIFAR10_CLASSES
from attnad.errors import DataError


@pytest.fixture(autouse=True)
def _no_user_data(monkeypatch, tmp_path):
    """Neither the user's data folder nor the current folder may decide a test."""
    monkeypatch.setenv("ATTNAD_DATA", str(tmp_path / "no_root"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def picture(seed: int = 0, size: tuple[int, int] = (40, 32), mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def save(path: Path, image: Image.Image | None = None, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or picture(zlib.crc32(path.as_posix().encode()))).save(path, **options)
    return path


def blob_mask(size: tuple[int, int] = (40, 32), value: int = 255) -> Image.Image:
    values = np.zeros((size[1], size[0]), dtype=np.uint8)
    values[size[1] // 4 : size[1] // 2, size[0] // 4 : size[0] // 2] = value
    return Image.fromarray(values)


@pytest.fixture
def mvtec(tmp_path) -> Path:
    folder = tmp_path / "cap"
    for i in range(4):
        save(folder / f"train/good/{i:03d}.png")
    for name in ("good/000", "good/001", "bent/000", "bent/001", "hole/000"):
        save(folder / f"test/{name}.png")
    for name in ("bent/000", "bent/001", "hole/000"):
        save(folder / f"ground_truth/{name}_mask.png", blob_mask())
    return folder


def refused(*words: str):
    """Expect a DataError whose message holds all words."""
    return pytest.raises(DataError, match="".join(f"(?=.*{word})" for word in words))


def read_one(path: Path, size: int = 32) -> np.ndarray:
    return load_images([path], size=size).images[0].numpy()


# --- textures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normal", [None, "brick", "grass", "gravel"])
def test_textures(normal):
    train = load_train("textures", size=32, normal_class=normal)
    test = load_test("textures", size=32, normal_class=normal)
    normal = normal or "brick"
    assert train.images.shape == (512, 3, 32, 32)
    assert train.images.dtype == torch.uint8
    assert train.names[12] == f"{normal}/train/0012"
    n = 64 + 5 * 16 + 2 * 32
    check_test_set(test, n, 32)
    assert len(set(test.names)) == n
    others = {f"other/{name}" for name in ("brick", "grass", "gravel") if name != normal}
    defects = {f"defect/{name}" for name in ("scratch", "crack", "stain", "hole", "foreign")}
    assert set(test.kinds) == {"good"} | defects | others
    for kind in set(test.kinds):
        chosen = torch.tensor([k == kind for k in test.kinds])
        assert test.labels[chosen].all() == (kind != "good")
        assert test.masks[chosen].flatten(1).any(1).all() == kind.startswith("defect/")
        assert test.has_mask[chosen].all() == (not kind.startswith("other/"))
    seen = {image.numpy().tobytes() for image in train.images}
    assert not any(image.numpy().tobytes() in seen for image in test.images)


def check_test_set(test: data.TestSet, n: int, size: int) -> None:
    assert test.images.shape == (n, 3, size, size)
    assert test.images.dtype == torch.uint8
    assert test.labels.shape == test.has_mask.shape == (n,)
    assert test.masks.shape == (n, size, size)
    assert test.labels.dtype == test.masks.dtype == test.has_mask.dtype == torch.bool
    assert len(test.kinds) == len(test.names) == n
    assert not test.masks[~test.has_mask].any()
    assert not test.masks[~test.labels].any()
    assert [kind != "good" for kind in test.kinds] == test.labels.tolist()


def test_loading_is_deterministic_and_leaves_global_random_states_alone():
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - the global state is what is tested
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = load_test("textures", size=32), load_test("textures", size=32)
    data.split_normal(first.images, seed=0)
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.masks, second.masks)
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("size", [0, 16, 40, 100, -64, 64.0, "64", True, None])
def test_bad_size(size):
    for load in (load_train, load_test):
        with refused("size", "multiple of 16"):
            load("textures", size=size)
    with refused("size"):
        load_images([Path("x.png")], size=size)


def test_bad_texture():
    with refused("textures", "wood", "brick, grass, gravel"):
        load_train("textures", size=32, normal_class="wood")


# --- labelled folders ------------------------------------------------------------------------------------------------


def test_mvtec_folder(mvtec):
    train = load_train(str(mvtec), size=32)
    assert train.images.shape == (4, 3, 32, 32)
    assert train.names == tuple(f"train/good/{i:03d}.png" for i in range(4))
    test = load_test(str(mvtec), size=32)
    check_test_set(test, 5, 32)
    assert test.kinds == ("bent", "bent", "good", "good", "hole")
    assert test.names[0] == "test/bent/000.png"
    assert test.has_mask.all()
    expected = np.asarray(blob_mask().resize((32, 32), Image.Resampling.NEAREST)) > 0
    np.testing.assert_array_equal(test.masks[0].numpy(), expected)
    assert data.classes(str(mvtec)) == ("good",)
    assert torch.equal(load_train(str(mvtec), size=32, normal_class="good").images, train.images)
    with refused("cap", "bent", "good"):
        load_train(str(mvtec), size=32, normal_class="bent")


def test_load_train_never_touches_test_files(mvtec, monkeypatch):
    listed = []
    original = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: listed.append(self) or original(self))
    load_train(str(mvtec), size=32)
    assert listed
    assert not any("test" in path.parts or "ground_truth" in path.parts for path in listed)
    for name in ("test", "ground_truth"):
        shutil.rmtree(mvtec / name)
        (mvtec / name).write_text("not even a folder")
    load_train(str(mvtec), size=32)
    with refused("cap", "no test images"):
        load_test(str(mvtec), size=32)


def test_masks_are_optional_as_a_whole(mvtec):
    shutil.rmtree(mvtec / "ground_truth")
    test = load_test(str(mvtec), size=32)
    check_test_set(test, 5, 32)
    assert not test.has_mask.any()


def test_anomalous_image_without_mask(mvtec):
    (mvtec / "ground_truth/bent/001_mask.png").unlink()
    with refused("test/bent/001.png", "001_mask.png", "add it"):
        load_test(str(mvtec), size=32)


@pytest.mark.parametrize("name", ["bent/007_mask.png", "scratch/000_mask.png", "bent/000.png", "good/009_mask.png"])
def test_mask_without_image(mvtec, name):
    save(mvtec / "ground_truth" / name, blob_mask())
    with refused(name, "mask of no image"):
        load_test(str(mvtec), size=32)


def test_mask_of_another_size(mvtec):
    save(mvtec / "ground_truth/bent/000_mask.png", blob_mask((32, 40)))
    with refused("bent/000_mask.png", "32 x 40", "40 x 32"):
        load_test(str(mvtec), size=32)


def test_mask_as_jpeg(mvtec):
    (mvtec / "ground_truth/bent/000_mask.png").unlink()
    save(mvtec / "ground_truth/bent/000_mask.jpg", blob_mask())
    with refused("000_mask.jpg", "PNG"):
        load_test(str(mvtec), size=32)


def test_a_good_image_may_have_an_empty_mask_only(mvtec):
    save(mvtec / "ground_truth/good/000_mask.png", blob_mask(value=0))
    assert load_test(str(mvtec), size=32).has_mask.all()
    save(mvtec / "ground_truth/good/000_mask.png", blob_mask())
    with refused("good/000_mask.png", "good image"):
        load_test(str(mvtec), size=32)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I"])
def test_any_value_above_zero_is_defect_in_masks_of_every_mode(mvtec, mode):
    expected = np.asarray(blob_mask((32, 32))) > 0
    if mode.startswith("I"):
        mask = Image.fromarray(expected.astype(np.uint16 if mode == "I;16" else np.int32))
        assert mask.mode == mode
    else:
        mask = blob_mask((32, 32), value=255 if mode == "1" else 1).convert(mode)
    save(mvtec / "test/bent/000.png", picture(size=(32, 32)))
    (mvtec / "ground_truth/bent/000_mask.png").unlink()
    save(mvtec / f"ground_truth/bent/000_mask.{'tif' if mode == 'I' else 'png'}", mask)
    np.testing.assert_array_equal(load_test(str(mvtec), size=32).masks[0].numpy(), expected)


def test_masks_stay_with_their_image_when_turned_upright(mvtec):
    """An image with an orientation tag is turned; its mask, drawn on the upright image, is not."""
    exif = Image.Exif()
    exif[0x0112] = 6
    save(mvtec / "test/bent/000.png", picture(size=(32, 40)), exif=exif)  # upright: 40 x 32
    assert load_test(str(mvtec), size=32).masks[0].any()


@pytest.mark.parametrize(("lacking", "words"), [("good", "good images"), ("bent", "anomalous images")])
def test_test_set_needs_both_kinds(mvtec, lacking, words):
    shutil.rmtree(mvtec / "ground_truth")
    for kind in {"bent", "hole"} if lacking == "bent" else {"good"}:
        shutil.rmtree(mvtec / "test" / kind)
    with refused("cap/test", words):
        load_test(str(mvtec), size=32)


def test_empty_and_misplaced(mvtec):
    (mvtec / "test/new").mkdir()
    with refused("test/new", "empty"):
        load_test(str(mvtec), size=32)
    (mvtec / "test/new").rmdir()
    save(mvtec / "test/loose.png")
    with refused("test/loose.png", "beside"):
        load_test(str(mvtec), size=32)
    save(mvtec / "train/good/more/1.png")
    with refused("train/good/more", "folder among images"):
        load_train(str(mvtec), size=32)
    shutil.rmtree(mvtec / "train/good")
    with refused("cap/train", "no class folder", "train/good"):
        load_train(str(mvtec), size=32)
    save(mvtec / "train/1.png")
    with refused("cap/train", "1.png", "train/good"):
        load_train(str(mvtec), size=32)


def test_folder_of_several_classes(tmp_path):
    for name in ("a", "b", "c"):
        save(tmp_path / f"three/train/{name}/0.png")
        save(tmp_path / f"three/test/{name}/0.png")
    folder = str(tmp_path / "three")
    assert data.classes(folder) == ("a", "b", "c")
    assert load_train(folder, size=32, normal_class="b").names == ("train/b/0.png",)
    test = load_test(folder, size=32, normal_class="b")
    check_test_set(test, 3, 32)
    assert test.kinds == ("a", "good", "c")
    for load in (load_train, load_test):
        with refused("three", "no normal class", "a, b, c"):
            load(folder, size=32)
        with refused("three", "'d'", "a, b, c"):
            load(folder, size=32, normal_class="d")
    save(tmp_path / "three/train/good/0.png")
    save(tmp_path / "three/test/good/0.png")
    with refused("test/good", "not the normal class"):
        load_test(folder, size=32, normal_class="b")


# --- which folder ----------------------------------------------------------------------------------------------------


def test_plain_folder(tmp_path):
    for i in (2, 0, 1):
        save(tmp_path / f"photos/{i}.jpg")
    folder = str(tmp_path / "photos")
    assert load_train(folder, size=48).names == ("0.jpg", "1.jpg", "2.jpg")
    assert data.classes(folder) == ()
    with refused("photos", "test/<defect>", "ground_truth"):
        load_test(folder, size=48)
    with refused("photos", "leave normal_class out"):
        load_train(folder, size=48, normal_class="good")
    save(tmp_path / "photos/inner/0.jpg")
    with refused("photos", "inner", "train"):
        load_train(folder, size=48)


def test_a_folder_of_data_sets_is_not_taken_for_normal_images(mvtec):
    with refused("holds folders", str(mvtec)):
        load_train(str(mvtec.parent), size=32)


def test_relative_to_root_and_to_the_current_folder(mvtec, monkeypatch):
    assert len(load_train("cap", size=32, root=mvtec.parent).images) == 4
    monkeypatch.setenv("ATTNAD_DATA", str(mvtec.parent))
    assert len(load_train("cap", size=32).images) == 4
    save(Path("cap/0.png"))
    with refused("cap", "full path"):
        load_train("cap", size=32)
    monkeypatch.setenv("ATTNAD_DATA", "nowhere")
    assert len(load_train("cap", size=32).images) == 1
    assert len(load_train("./cap", size=32).images) == 1


@pytest.mark.parametrize(
    ("name", "near"),
    [("texture", "'textures'"), ("cifar-10", "'cifar10'"), ("capp", "'cap'"), ("", ""), ("x" * 5000, ""), ("a\0b", "")],
)
def test_unknown_name(mvtec, name, near):
    with refused("'textures', 'cifar10'", near):
        load_train(name, size=32, root=mvtec.parent)


def test_a_file_instead_of_a_folder(mvtec):
    with refused("000.png", "is a file"):
        load_train(str(mvtec / "train/good/000.png"), size=32)


def test_ignored_files_and_nothing_else(mvtec):
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "README.md", "license.txt", "LICENSE", ".hidden.png"):
        (mvtec / "train/good" / name).write_bytes(b"\0text")
    (mvtec / "train/.ipynb_checkpoints").mkdir()
    assert len(load_train(str(mvtec), size=32).images) == 4
    (mvtec / "train/good/notes.txt").write_text("text")
    with refused("notes.txt", "no image", "remove it"):
        load_train(str(mvtec), size=32)


def test_broken_link(mvtec):
    (mvtec / "train/good/link.png").symlink_to("nowhere.png")
    with refused("link.png", "broken link"):
        load_train(str(mvtec), size=32)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_no_permission(mvtec):
    (mvtec / "train/good/001.png").chmod(0)
    with refused("001.png", "permission"):
        load_train(str(mvtec), size=32)


def test_no_permission_from_the_system(mvtec, monkeypatch):
    """The same for a user who may read everything."""

    def forbid(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", forbid)
        with refused("000.png", "permission"):
            load_train(str(mvtec), size=32)
    monkeypatch.setattr(Path, "iterdir", forbid)
    with refused("cap/train", "cannot be listed", "permissions"):
        load_train(str(mvtec), size=32)


# --- image formats ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm", "webp", "gif"])
def test_lossless_formats_give_the_same_pixels(tmp_path, suffix):
    image = picture(size=(32, 32)).quantize(64) if suffix == "gif" else picture(size=(32, 32))
    options = {"lossless": True} if suffix == "webp" else {}
    path = save(tmp_path / f"x.{suffix}", image, **options)
    np.testing.assert_array_equal(read_one(path), np.asarray(image.convert("RGB")).transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_modes(tmp_path, mode):
    image = picture(size=(32, 32)).convert(mode)
    path = save(tmp_path / ("x.tif" if mode in ("CMYK", "YCbCr") else "x.png"), image)
    with Image.open(path) as again:
        np.testing.assert_array_equal(read_one(path), np.asarray(again.convert("RGB")).transpose(2, 0, 1))


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bit_is_scaled_not_clipped(tmp_path, suffix):
    values = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    result = read_one(save(tmp_path / f"x.{suffix}", Image.fromarray(values)))
    np.testing.assert_allclose(result, np.broadcast_to(values / 257, (3, 32, 32)), atol=0.51)


def test_16_bit_colour_is_scaled_not_clipped(tmp_path):
    values = np.linspace(0, 65535, 32 * 32 * 3).reshape(32, 32, 3)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)  # Pillow does not write this format
    (tmp_path / "x.png").write_bytes(png(32, 32, rows, bits=16))
    np.testing.assert_allclose(read_one(tmp_path / "x.png"), values.transpose(2, 0, 1) / 257, atol=1)


def test_values_of_unknown_range_are_refused(tmp_path):
    with refused("f.tif", "floating"):
        read_one(save(tmp_path / "f.tif", Image.fromarray(np.ones((32, 32), dtype=np.float32))))
    with refused("i.tif", "0..65535"):
        read_one(save(tmp_path / "i.tif", Image.fromarray(np.full((32, 32), -1, dtype=np.int32))))


def test_transparency_is_laid_on_white(tmp_path):
    rgba = np.zeros((32, 32, 4), dtype=np.uint8)
    rgba[:16] = (255, 0, 0, 255)
    rgba[16:, :16, 3] = 128
    expected = np.full((32, 32, 3), 255, dtype=np.uint8)
    expected[:16] = (255, 0, 0)
    expected[16:, :16] = 127
    result = read_one(save(tmp_path / "x.png", Image.fromarray(rgba)))
    np.testing.assert_array_equal(result, expected.transpose(2, 0, 1))
    palette = Image.new("P", (32, 32), 1)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    path = save(tmp_path / "p.png", palette, transparency=b"\xff\x00")
    assert (read_one(path) == 255).all()


def test_exif_orientation_and_original_size(tmp_path):
    values = np.zeros((20, 40, 3), dtype=np.uint8)
    values[:, :20] = 255  # bright on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise: bright on top
    path = save(tmp_path / "x.jpg", Image.fromarray(values), exif=exif, quality=95)
    batch = load_images([path], size=32)
    assert batch.sizes == ((20, 40),)
    assert batch.images[0, :, :14].min() > 240
    assert batch.images[0, :, 18:].max() < 15


def test_resizing_is_antialiased_and_keeps_all_of_the_image(tmp_path):
    stripes = np.zeros((64, 128, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    result = read_one(save(tmp_path / "x.png", Image.fromarray(stripes))).astype(int)
    assert abs(result[:, :, 2:-2] - 127.5).max() < 10  # without antialiasing: 0 or 255
    edge = np.zeros((64, 128, 3), dtype=np.uint8)
    edge[:, :8] = edge[:, -8:] = 255
    result = read_one(save(tmp_path / "y.png", Image.fromarray(edge)))
    assert result[:, :, 0].min() > 200
    assert result[:, :, -1].min() > 200


def test_one_picture_per_file(tmp_path):
    frames = [picture(i) for i in range(3)]
    for name in ("x.gif", "x.png", "x.tif", "x.webp"):
        path = save(tmp_path / name, frames[0], save_all=True, append_images=frames[1:])
        with refused(name, "more than one picture"):
            read_one(path)
    # A camera's MPO: the photograph comes first.
    path = save(tmp_path / "photo.jpg", frames[0], format="MPO", save_all=True, append_images=frames[1:])
    with Image.open(path) as image:
        assert image.format == "MPO"
    expected = read_one(save(tmp_path / "alone.jpg", frames[0]))
    np.testing.assert_array_equal(read_one(path), expected)


def png(width: int, height: int, pixels: bytes = b"", bits: int = 8) -> bytes:
    """An RGB PNG, chunk by chunk; without pixels it only claims a size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(10_001, 10_000), (30_000, 30_000), (2_000_000, 60)])
def test_too_many_pixels_are_refused_from_the_header(tmp_path, width, height):
    (tmp_path / "x.png").write_bytes(png(width, height))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with refused("x.png", "100 megapixels", "smaller"):
            read_one(tmp_path / "x.png")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "0 bytes"),
        (b"no image at all", "no image"),
        (png(32, 32), "damaged"),
        (png(0, 32), "no image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n", "EPS"),
    ],
)
def test_no_image(tmp_path, content, words):
    (tmp_path / "x.png").write_bytes(content)
    with refused("x.png", words):
        read_one(tmp_path / "x.png")


def test_truncated_image(tmp_path):
    for suffix in ("png", "jpg", "bmp", "tif"):
        content = save(tmp_path / f"x.{suffix}").read_bytes()
        (tmp_path / f"x.{suffix}").write_bytes(content[: len(content) // 2])
        with refused(f"x.{suffix}", "replace it"):
            read_one(tmp_path / f"x.{suffix}")


def encoded(suffix: str) -> bytes:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 3
    options = {"exif": exif} if suffix in ("jpeg", "png", "webp", "tiff") else {}
    picture(1, (33, 32), "P" if suffix == "gif" else "RGB").save(buffer, suffix, **options)
    return buffer.getvalue()


SAMPLES = {
    suffix: encoded(suffix) for suffix in ("png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm", "tga", "ico", "pcx")
}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    suffix=st.sampled_from(sorted(SAMPLES)),
    edits=st.lists(st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=4)), min_size=1, max_size=4),
    keep=st.floats(0.1, 1.0),
)
def test_mutated_images_load_or_are_refused(tmp_path, suffix, edits, keep):
    content = bytearray(SAMPLES[suffix])
    for at, change in edits:
        content[at % len(content) : at % len(content) + len(change)] = change
    path = tmp_path / f"mutated.{suffix}"
    path.write_bytes(content[: round(len(content) * keep)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow's warnings must not come through
        message, shape = str(path), (1, 3, 32, 32)
        try:
            shape = load_images([path], size=32).images.shape
        except DataError as error:
            message = str(error)
    assert str(path) in message
    assert shape == (1, 3, 32, 32)


def test_load_images_expands_folders(tmp_path):
    for name in ("b/2.png", "b/a/1.png", "b/1.jpg", "a.png", "b/.DS_Store.png"):
        save(tmp_path / "in" / name)
    batch = load_images([tmp_path / "in/b", tmp_path / "in/a.png"], size=32)
    assert [path.relative_to(tmp_path / "in").as_posix() for path in batch.paths] == [
        "b/1.jpg",
        "b/2.png",
        "b/a/1.png",
        "a.png",
    ]
    assert batch.images.shape == (4, 3, 32, 32)
    assert batch.sizes == ((40, 32),) * 4
    (tmp_path / "in/b/round").symlink_to(tmp_path / "in")
    with refused("in/b/round", "link to a folder"):
        load_images([tmp_path / "in"], size=32)
    with refused("no image given"):
        load_images([], size=32)
    with refused("missing.png", "no such file"):
        load_images([tmp_path / "missing.png"], size=32)
    (tmp_path / "empty").mkdir()
    with refused("empty", "should hold images"):
        load_images([tmp_path / "empty"], size=32)


def test_order_is_kept_by_the_threads(tmp_path):
    colours = [(3 * i, 255 - 3 * i, i) for i in range(80)]
    for i, colour in enumerate(colours):
        save(tmp_path / f"many/{i:03d}.png", Image.new("RGB", (900, 700) if i % 7 == 0 else (32, 32), colour))
    images = load_train(str(tmp_path / "many"), size=32).images
    assert [tuple(image[:, 5, 5].tolist()) for image in images] == colours


# --- the split -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "fraction", "held"), [(2, 0.1, 1), (2, 0.9, 1), (3, 0.99, 2), (209, 0.1, 21), (10, 0.5, 5)]
)
def test_split_normal(n, fraction, held):
    images = torch.arange(n)[:, None, None, None].repeat(1, 3, 2, 2)
    fit, held_out = data.split_normal(images, fraction=fraction, seed=5)
    assert len(held_out) == held
    assert sorted(torch.cat([fit, held_out])[:, 0, 0, 0].tolist()) == list(range(n))
    again = data.split_normal(images, fraction=fraction, seed=5)
    assert torch.equal(held_out, again[1])


def test_split_normal_depends_on_the_seed_and_refuses_the_impossible():
    images = torch.arange(100)
    assert not torch.equal(data.split_normal(images, seed=0)[1], data.split_normal(images, seed=1)[1])
    for n, fraction in ((1, 0.1), (0, 0.1), (10, 0.0), (10, 1.0), (10, float("nan"))):
        with refused("hold out", "two images"):
            data.split_normal(images[:n], fraction=fraction, seed=0)


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


# --- MVTec AD itself -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "n_train", "n_test", "n_masked"), [("bottle", 209, 83, 63), ("pill", 267, 167, 141)])
def test_real_mvtec(name, n_train, n_test, n_masked):
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("ATTNAD_TEST_DATA", beside)) / "mvtec_ad" / name
    if not folder.is_dir():
        pytest.skip(f"MVTec AD is not at {folder}; set ATTNAD_TEST_DATA to the folder that holds mvtec_ad/{name}")
    assert load_train(str(folder), size=64).images.shape == (n_train, 3, 64, 64)
    test = load_test(str(folder), size=256)
    check_test_set(test, n_test, 256)
    assert test.has_mask.all()
    assert int(test.masks.flatten(1).any(1).sum()) == int(test.labels.sum()) == n_masked
