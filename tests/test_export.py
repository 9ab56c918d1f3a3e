"""A run as an ONNX file gives what the PyTorch model gives, says what it is, and takes what a run takes.

What is no stack of bytes of the model's size is refused before it is scored, with what to pass instead.
"""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
import torch
from made import random_images, random_run

import attnad.run.export
from attnad.cli import main
from attnad.errors import CheckpointError, SettingError
from attnad.run.export import IMAGE, export_run, load_exported
from attnad.run.run import Run
from attnad.score import Scores, check_images
from attnad.widgets import PaintDefect

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


def named(scores: Scores) -> dict[str, torch.Tensor]:
    """All that a file can answer: D1 is not in it."""
    return {name: values for name, values in scores.named() if name != "discriminator"}


class Exported(NamedTuple):
    """A run, its scores before it was exported, its file, and its file in single precision, as no command writes it."""

    run: Run
    before: Scores
    half: Path
    single: Path


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Exported:
    """Exported once, by the command and by the function, since each takes seconds: not to be changed."""
    folder, run, said = tmp_path_factory.mktemp("exported"), random_run(), io.StringIO()
    before, half, single = run.score(random_images()), folder / "new" / "half.onnx", folder / "single.onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("attnad.run.run.load_run", lambda folder, device: run)
        patch.setattr("attnad.study.results.current_commit", lambda: "abc123")
        with contextlib.redirect_stdout(said):
            assert main(["export", "run", str(half)]) == 0
        assert f"{half}: 0." in said.getvalue()
        patch.setattr(attnad.run.export, "_halve_weights", lambda model: None)
        export_run(run, single)
    return Exported(run, before, half, single)


def test_the_graph_is_the_model(files):
    """In single precision the two agree to rounding; without half weights nothing hides."""
    before, after = files.before, files.run.score(random_images())
    exported = load_exported(files.single).score(random_images())
    assert before.maps.std() > 0.01, "a constant map would agree with anything"
    assert before.image["adgan"].std() > 1e-4
    assert named(exported).keys() == {"maps", "x_re", "adgan", "attention", "reconstruction"}
    for name, values in named(before).items():
        torch.testing.assert_close(named(exported)[name], values, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(named(after)[name], values, rtol=0, atol=0, msg="the run changed")


def test_half_precision_weights_cost_little_and_halve_the_file(files):
    assert files.half.stat().st_size < 0.6 * files.single.stat().st_size
    for name, values in named(load_exported(files.half).score(random_images())).items():
        torch.testing.assert_close(values, named(files.before)[name], rtol=5e-3, atol=5e-3)


def test_what_the_file_of_the_command_says_of_itself(files):
    assert load_exported(files.half).facts == {
        "size": 32, "threshold": 0.125, "image_score": "adgan", "data": "textures", "normal_class": "",
        "recipe": "quick", "seed": "7", "commit": "abc123", "image": IMAGE,
    }  # fmt: skip
    assert [file.name for file in files.half.parent.iterdir()] == ["half.onnx"], "one file, weights included"
    content = files.half.read_bytes()
    assert str(files.half.parent.parent).encode() not in content
    assert b".py" not in content, "no path of the machine that exported"


def test_the_file_takes_bytes_and_refuses_whatever_else_it_is_given(files):
    """Values in [0, 1] as bytes, or bytes as values, would give scores without a meaning."""
    exported, image = load_exported(files.half), random_images()[:1].numpy()
    assert exported.takes_bytes
    exported.session.run(None, {"image": image})
    for wrong in (image / np.float32(255), image.astype(np.float32), image.transpose(0, 2, 3, 1), image[:, :, 1:]):
        with pytest.raises(Exception, match=r"INVALID_ARGUMENT.*(Unexpected input data type|Got invalid dimensions)"):
            exported.session.run(None, {"image": wrong})


def test_a_file_of_an_earlier_version_is_answered_as_it_was(files, tmp_path):
    """Its graph took float in [0, 1]: the same one without what makes them of bytes."""
    model = onnx.load(files.half)
    (cast,) = (node for node in model.graph.node if "image" in node.input)
    (divide,) = (node for node in model.graph.node if cast.output[0] in node.input)
    assert (cast.op_type, divide.op_type) == ("Cast", "Div")
    for node in model.graph.node:
        node.input[:] = ["image" if name == divide.output[0] else name for name in node.input]
    model.graph.node.remove(cast)
    model.graph.node.remove(divide)
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    onnx.save(model, tmp_path / "before.onnx")
    before, now = map(load_exported, (tmp_path / "before.onnx", files.half))
    assert not before.takes_bytes
    before.session.run(None, {"image": np.zeros((1, 3, 32, 32), np.float32)})
    for name, values in named(now.score(random_images())).items():
        torch.testing.assert_close(named(before.score(random_images()))[name], values, rtol=1e-5, atol=1e-6)
    assert PaintDefect(before, random_images())._facts["takes_bytes"] is False
    assert PaintDefect(now, random_images())._facts["takes_bytes"] is True


def test_the_help_says_what_goes_in(capsys):
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    said = " ".join(re.sub(r"[│|]", " ", capsys.readouterr().out).split())  # without the box around it
    for words in ("uint8 [1, 3, s, s]", "RGB from 0 to 255", "resized to the square with antialiasing", "refuse other"):
        assert words in said


def test_files_that_are_no_model(files, tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.onnx cannot be read .*attnad export"):
        load_exported(tmp_path / "none.onnx")
    content = files.half.read_bytes()
    for broken in (b"", b"no model", content[: len(content) // 2]):
        (tmp_path / "m.onnx").write_bytes(broken)
        with pytest.raises(CheckpointError, match=r"m\.onnx is no model of attnad export, or damaged"):
            load_exported(tmp_path / "m.onnx")


# --- what is given to score -----------------------------------------------------------------------------------------


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


def test_an_exported_run_refuses_them_too(files):
    exported = load_exported(files.half)
    exported.score(IMAGES)
    for images, says in WRONG.values():
        with pytest.raises(SettingError, match=says):
            exported.score(images)
