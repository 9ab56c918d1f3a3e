"""A run as an ONNX file gives what the PyTorch model gives, and says what it is."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
import torch
from made import random_images, random_run

import attnad.run.export
from attnad.cli import main
from attnad.errors import CheckpointError
from attnad.run.export import IMAGE, export_run, load_exported
from attnad.score import Scores
from attnad.widgets import PaintDefect


def named(scores: Scores) -> dict[str, torch.Tensor]:
    """All that a file can answer: D1 is not in it."""
    return {name: values for name, values in scores.named() if name != "discriminator"}


def test_the_graph_is_the_model(tmp_path, monkeypatch):
    """In single precision the two agree to rounding; without half weights nothing hides."""
    monkeypatch.setattr(attnad.run.export, "_halve_weights", lambda model: None)
    run = random_run()
    before = run.score(random_images())
    export_run(run, tmp_path / "m.onnx")
    after, exported = run.score(random_images()), load_exported(tmp_path / "m.onnx").score(random_images())
    assert before.maps.std() > 0.01, "a constant map would agree with anything"
    assert before.image["adgan"].std() > 1e-4
    assert named(exported).keys() == {"maps", "x_re", "adgan", "attention", "reconstruction"}
    for name, values in named(before).items():
        torch.testing.assert_close(named(exported)[name], values, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(named(after)[name], values, rtol=0, atol=0, msg="the run changed")


def test_half_precision_weights_cost_little_and_halve_the_file(tmp_path, monkeypatch):
    run = random_run()
    export_run(run, tmp_path / "half.onnx")
    monkeypatch.setattr(attnad.run.export, "_halve_weights", lambda model: None)
    export_run(run, tmp_path / "single.onnx")
    half, single = ((tmp_path / f"{name}.onnx").stat().st_size for name in ("half", "single"))
    assert half < 0.6 * single
    expected, found = run.score(random_images()), load_exported(tmp_path / "half.onnx").score(random_images())
    for name, values in named(expected).items():
        torch.testing.assert_close(named(found)[name], values, rtol=5e-3, atol=5e-3)


def test_the_command_and_what_the_file_says_of_itself(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("attnad.run.run.load_run", lambda folder, device: random_run())
    monkeypatch.setattr("attnad.study.results.current_commit", lambda: "abc123")
    path = tmp_path / "new" / "model.onnx"
    assert main(["export", "run", str(path)]) == 0
    assert f"{path}: 0." in capsys.readouterr().out
    run = load_exported(path)
    assert run.facts == {
        "size": 32, "threshold": 0.125, "image_score": "adgan", "data": "textures", "normal_class": "",
        "recipe": "quick", "seed": "7", "commit": "abc123", "image": IMAGE,
    }  # fmt: skip
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"], "one file, weights included"
    assert str(tmp_path).encode() not in path.read_bytes()
    assert b".py" not in path.read_bytes(), "no path of the machine that exported"


def test_the_file_takes_bytes_and_refuses_whatever_else_it_is_given(tmp_path):
    """Values in [0, 1] as bytes, or bytes as values, would give scores without a meaning."""
    export_run(random_run(), tmp_path / "m.onnx")
    exported, image = load_exported(tmp_path / "m.onnx"), random_images()[:1].numpy()
    assert exported.takes_bytes
    exported.session.run(None, {"image": image})
    for wrong in (image / np.float32(255), image.astype(np.float32), image.transpose(0, 2, 3, 1), image[:, :, 1:]):
        with pytest.raises(Exception, match=r"INVALID_ARGUMENT.*(Unexpected input data type|Got invalid dimensions)"):
            exported.session.run(None, {"image": wrong})


def test_a_file_of_an_earlier_version_is_answered_as_it_was(tmp_path):
    """Its graph took float in [0, 1]: the same one without what makes them of bytes."""
    export_run(random_run(), tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    (cast,) = (node for node in model.graph.node if "image" in node.input)
    (divide,) = (node for node in model.graph.node if cast.output[0] in node.input)
    assert (cast.op_type, divide.op_type) == ("Cast", "Div")
    for node in model.graph.node:
        node.input[:] = ["image" if name == divide.output[0] else name for name in node.input]
    model.graph.node.remove(cast)
    model.graph.node.remove(divide)
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    onnx.save(model, tmp_path / "before.onnx")
    before, now = (load_exported(tmp_path / name) for name in ("before.onnx", "m.onnx"))
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


def test_files_that_are_no_model(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.onnx cannot be read .*attnad export"):
        load_exported(tmp_path / "none.onnx")
    export_run(random_run(), tmp_path / "m.onnx")
    content = (tmp_path / "m.onnx").read_bytes()
    for broken in (b"", b"no model", content[: len(content) // 2]):
        (tmp_path / "m.onnx").write_bytes(broken)
        with pytest.raises(CheckpointError, match=r"m\.onnx is no model of attnad export, or damaged"):
            load_exported(tmp_path / "m.onnx")
