"""Files that a stranger may leave among photographs: each is to be passed over by name, and nothing else may happen."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n{} loop\n"


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def in_iptc(inner: bytes) -> bytes:
    """A file in an IPTC container, which Pillow opens as whatever it is, where it is asked to open IPTC."""

    def field(record: int, number: int, content: bytes) -> bytes:
        size = len(content).to_bytes(2, "big")
        if len(content) > 0x7FFF:
            size = b"\x80\x04" + len(content).to_bytes(4, "big")  # an extended size
        return bytes([0x1C, record, number]) + size + content

    head = field(3, 60, b"\x01\x00") + field(3, 20, b"\x00\x20") + field(3, 30, b"\x00\x20") + field(3, 120, b"\x05")
    return head + field(8, 10, inner)


def hostile_files(folder: Path) -> list[str]:
    """Write one of each kind into a folder; returns their names."""
    picture = Image.fromarray(np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3))
    png, huge = encoded(picture, "PNG"), Image.new("1", (10_001, 10_001))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.png", png)
    contents = {
        "eps in iptc.png": in_iptc(EPS), "png in iptc.png": in_iptc(png), "eps.png": EPS,
        "wmf.png": b"\xd7\xcd\xc6\x9a" + bytes(80),
        "icon.png": encoded(picture, "ICO"), "huge.png": encoded(huge, "PNG"), "cut.png": png[:-30], "empty.png": b"",
        "moving.gif": encoded(picture, "GIF", save_all=True, append_images=[picture.rotate(90)]),
        "float.tif": encoded(picture.convert("F"), "TIFF"), "raw.dng": encoded(picture, "TIFF"),
        "archive.png": archive.getvalue(), "array.png": b"\x93NUMPY\x01\x00" + bytes(100), "text.png": b"=cmd()",
        "line\nattnad: all is well.png": b"", "red \x1b[31m.png": b"", "=1+1;=2.png": b"", "\uff1dwide.png": b"",
        "literal \\udcff.png": b"x", os.fsdecode(b"bytes \xff.png"): b"y",
    }  # fmt: skip
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    os.mkfifo(folder / "pipe.png")
    (folder / "gone.png").symlink_to("nowhere.png")
    (folder / "circle.png").symlink_to("circle.png")
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "circle").symlink_to(".")
    return [*contents, "pipe.png", "gone.png", "circle.png", "device.png", "circle"]
