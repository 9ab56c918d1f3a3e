"""What is no stack of bytes of the model's size is refused before it is scored, with what to pass instead."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from made import random_images, random_run

from attnad.errors import SettingError
from attnad.run.export import export_run, load_exported
from attnad.score import check_images

IMAGES = random_images()
SIZE = IMAGES.shape[-1]

# What somebody passes, and what the error says to do about it.
WRONG = {
    "values in [0, 1]": (IMAGES / 255, r"are float32 \[.*multiply values in \[0, 1\] by 255"),
    "half precision": (IMAGES.half() / 255, r"are float16 \[.*multiply values in \[0, 1\] by 255"),
    "another whole number": (IMAGES.int(), r"are int32 \[.*images\.to\(torch\.uint8\)"),
    "channels last": (IMAGES.permute(0, 2, 3, 1), rf"are uint8 \[4, {SIZE}, {SIZE}, 3\].*permute\(0, 3, 1, 2\)"),
    "one image": (IMAGES[0], rf"are uint8 \[3, {SIZE}, {SIZE}\].*images\[None\]"),
    "another size": (IMAGES[..., 1:, 1:], rf"are uint8 \[4, 3, {SIZE - 1}, {SIZE - 1}\].*size={SIZE}\)"),
    "not square": (IMAGES[..., 1:], rf"size={SIZE}\)"),
    "grey": (IMAGES[:, :1], rf"size={SIZE}\)"),
    "no image": (IMAGES[:0], rf"size={SIZE}\)"),
    "an array": (IMAGES.numpy(), rf"are ndarray; pass a tensor uint8 \[n, 3, {SIZE}, {SIZE}\]"),
    "one array of floats, channels last": (
        np.moveaxis(IMAGES[0].numpy(), 0, -1) / 255, "are ndarray"),
    "several at once": (IMAGES[0].permute(1, 2, 0) / 255, r"\[None\].*permute.*multiply"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_stack_of_bytes_is_refused_with_a_remedy(name):
    images, says = WRONG[name]
    with pytest.raises(SettingError, match=says):
        check_images(images, SIZE)


@pytest.mark.parametrize("name", ["values in [0, 1]", "channels last", "one image", "another size"])
def test_the_remedy_is_one(name):
    """Whoever does what the error says passes."""
    images, size = WRONG[name][0], SIZE
    remedies = {
        "values in [0, 1]": lambda: (255 * images).round().to(torch.uint8),
        "channels last": lambda: images.permute(0, 3, 1, 2),
        "one image": lambda: images[None],
        "another size": lambda: torch.nn.functional.pad(images, [0, 1, 0, 1]),
    }
    check_images(remedies[name](), size)


def test_an_exported_run_refuses_them_too(tmp_path):
    export_run(random_run(), tmp_path / "m.onnx")
    exported = load_exported(tmp_path / "m.onnx")
    exported.score(IMAGES)
    for images, says in WRONG.values():
        with pytest.raises(SettingError, match=says):
            exported.score(images)
