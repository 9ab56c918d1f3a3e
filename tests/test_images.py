"""Reading images: formats, colours, orientation, size, and whatever may be wrong with a file."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pictures import picture, refused, save
from PIL import Image

from attnad.data import load_images, load_train
from attnad.data.images import resized
from attnad.errors import DataError

pytestmark = pytest.mark.usefixtures("no_user_data")


def read_one(path: Path, size: int = 32) -> np.ndarray:
    return load_images([path], size=size).images[0].numpy()


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


SAMPLES = {suffix: encoded(suffix) for suffix in ("png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm", "tga", "pcx")}


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
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


def test_large_images_are_shrunk_in_two_steps_with_hardly_another_result():
    large = picture(seed=3, size=(64, 64)).resize((2048, 1536), Image.Resampling.BICUBIC)
    direct = np.asarray(large.resize((64, 64), Image.Resampling.BICUBIC)).astype(int)
    difference = abs(resized(large, 64).astype(int) - direct)
    assert difference.max() <= 5
    assert 0 < difference.mean() < 1.5
