"""The estimator: it says what a run says, of whatever form the images come in."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from made import few_crops, write_images
from PIL import Image

import attnad
from attnad.cli import main
from attnad.data import load_images, load_test, textures
from attnad.detectors import override, recipe
from attnad.errors import CheckpointError, DataError, SettingError
from attnad.report.report import resized_map
from attnad.run.run import evaluate_run, load_run, train_run

SMALL = {"size": 32, "min_side": 64, "channels": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Photographs: `good`, and in `new` three good ones and three with a black square, of two sizes."""
    folder = tmp_path_factory.mktemp("photographs")
    crops = textures.train_crops("gravel", 64)
    write_images(folder / "good", crops[:20])
    new = crops[20:26].copy()
    new[3:, 20:40, 20:40] = 0
    write_images(folder / "new", new)
    Image.fromarray(new[0]).resize((96, 48)).save(folder / "new" / "000.png")
    return folder


@pytest.fixture(scope="module")
def detector(folder) -> attnad.Detector:
    return attnad.Detector("gaussian", device="cpu", progress=False, **SMALL).fit(folder / "good")


@pytest.fixture(scope="module")
def run(folder):
    """The same by `train_run`."""
    config = override(recipe("gaussian", str(folder / "good")), SMALL)
    return train_run(config, folder / "run", device="cpu", progress=False)


def test_it_is_train_run_without_a_folder(folder, detector, run):
    new = load_images([folder / "new"], size=32)
    scores = run.score(new.images)
    wanted = run.image_scores(scores).numpy()
    assert np.array_equal(detector.decision_function(folder / "new"), wanted)
    assert detector.threshold_ == run.facts["threshold"]
    assert np.array_equal(detector.predict(str(folder / "new")), wanted > run.facts["threshold"])
    assert detector.predict(folder / "new").tolist()[3:] == [1, 1, 1]
    maps = detector.anomaly_maps(folder / "new")
    assert [one.shape for one in maps] == [(48, 96), *[(64, 64)] * 5]  # the photographs' sizes
    for one, each in zip(maps, scores.maps, strict=True):
        assert np.array_equal(one, resized_map(each, one.shape[::-1]))
    for name in ("held_out_scores", "n_train", "files", "images", "synthetic"):
        assert detector.run.facts[name] == run.facts[name]
    assert detector.run.config == run.config


def test_images_in_any_form_are_the_same_images(folder, detector):
    good, new = (load_images([folder / name], size=32).images for name in ("good", "new"))
    files = sorted(map(str, (folder / "good").iterdir()))
    forms = {
        "tensor": good, "array": good.numpy(), "channels last": good.permute(0, 2, 3, 1).numpy(), "files": files,
    }  # fmt: skip
    wanted = detector.decision_function(folder / "new")
    for form, images in forms.items():
        fitted = attnad.Detector("gaussian", device="cpu", progress=False, **SMALL).fit(images)
        assert np.array_equal(fitted.decision_function(new.permute(0, 2, 3, 1).numpy()), wanted), form
        assert fitted.threshold_ == detector.threshold_
        assert fitted.run.config.size == 32
    maps = detector.anomaly_maps(new)
    assert maps.shape == (6, 32, 32)
    assert maps.dtype == np.float32
    assert np.array_equal(detector.decision_function([folder / "new" / "003.png"]), wanted[3:4])


def test_what_is_saved_is_loaded_and_scored_by_the_commands(folder, detector, tmp_path, capsys):
    detector.save(tmp_path / "mine")
    loaded = attnad.load(tmp_path / "mine", device="cpu")
    wanted = detector.decision_function(folder / "new")
    assert np.array_equal(loaded.decision_function(folder / "new"), wanted)
    assert loaded.threshold_ == detector.threshold_
    assert main(["score", str(tmp_path / "mine"), str(folder / "new"), "--out", str(tmp_path / "out")]) == 0
    assert "3 of 6 images look anomalous" in capsys.readouterr().out
    with pytest.raises(SettingError, match=r"mine is not empty; choose another folder"):
        detector.save(tmp_path / "mine")
    loaded.save(tmp_path / "again")
    assert np.array_equal(attnad.load(tmp_path / "again").decision_function(folder / "new"), wanted)
    with pytest.raises(CheckpointError, match="nowhere is not a run"):
        attnad.load(tmp_path / "nowhere")


def test_what_was_fitted_from_memory_is_saved_and_names_no_folder_to_read(folder, tmp_path, capsys):
    images = load_images([folder / "good"], size=32).images
    attnad.Detector("gaussian", progress=False, min_side=64, channels=16).fit(images).save(tmp_path / "mine")
    assert load_run(tmp_path / "mine").config.data == "<images>"
    assert main(["score", str(tmp_path / "mine"), str(folder / "new"), "--out", str(tmp_path / "out")]) == 0
    assert main(["evaluate", str(tmp_path / "mine")]) == 2
    assert "<images>" in capsys.readouterr().err


def test_a_folder_that_is_given_is_a_run_that_is_gone_on_with(folder, run, tmp_path):
    shutil.copytree(run.folder, tmp_path / "run")
    before = (tmp_path / "run" / "strong.safetensors").stat().st_mtime_ns
    fitted = attnad.Detector("gaussian", progress=False, **SMALL).fit(folder / "good", tmp_path / "run")
    assert (tmp_path / "run" / "strong.safetensors").stat().st_mtime_ns == before
    assert fitted.run.folder == tmp_path / "run"
    with pytest.raises(SettingError, match="fitted without a folder; then save"):
        attnad.Detector("gaussian").fit(load_images([folder / "good"], size=32).images, tmp_path / "other")


def test_metrics_of_what_is_labelled(monkeypatch):
    few_crops(monkeypatch)
    detector = attnad.Detector("gaussian", progress=False, **SMALL).fit("textures")
    test = load_test("textures", size=32)
    wanted = evaluate_run(detector.run, test)
    assert detector.evaluate("textures") == wanted
    found = detector.evaluate(test.images[test.has_mask], test.labels[test.has_mask], test.masks[test.has_mask])
    assert found["pixel_auroc"] == pytest.approx(wanted["pixel_auroc"], abs=1e-12)
    assert detector.evaluate(test.images, test.labels)["image_auroc"] == wanted["image_auroc"]
    assert detector.evaluate(test.images, test.labels)["pixel_auroc"] is None
    with pytest.raises(SettingError, match="evaluate needs labels"):
        detector.evaluate(test.images)


def test_it_says_what_it_is(detector):
    assert repr(attnad.Detector("strong", seed=3)) == "Detector('strong', seed=3)"
    threshold = f"{detector.threshold_:.4g}"
    said = repr(detector)
    assert said.endswith(f", fitted on 20 photographs, threshold {threshold})")
    with Image.open(io.BytesIO(detector._repr_png_())) as picture:
        assert picture.format == "PNG"
        assert len(picture.convert("RGB").getcolors(100_000)) > 50  # something is drawn
    assert attnad.Detector("strong")._repr_png_() is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: attnad.Detector("stronk"), "there is no recipe 'stronk'"),
        (lambda: attnad.Detector("strong", sise=32), "has no value 'sise'; did you mean size"),
        (lambda: attnad.Detector("strong", size=50), "size cannot be 50; choose a multiple of 32"),
        (lambda: attnad.Detector("strong").predict("photos"), "has learned nothing yet; call fit"),
        (lambda: attnad.Detector("strong").save("mine"), "has learned nothing yet; call fit"),
        (lambda: attnad.Detector("strong").fit("nowhere"), "nowhere"),
        (lambda: attnad.Detector("strong").fit(np.zeros((4, 50, 50, 3), np.uint8)), "size cannot be 50"),
        (lambda: attnad.Detector("strong").fit(np.zeros((4, 64, 32, 3), np.uint8)), r"takes uint8 \[n, 3, 32, 32\]"),
        (lambda: attnad.Detector("strong").fit(torch.rand(4, 3, 32, 32)), "multiply values"),
        (lambda: attnad.Detector("gaussian").fit(torch.zeros(2, 3, 32, 32).byte()), "2 normal images"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_in_words(wrong, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((SettingError, DataError, attnad.errors.TrainingError), match=message):
        wrong()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_read_is_named(folder, detector, tmp_path):
    shutil.copytree(folder / "new", tmp_path / "new")
    (tmp_path / "new" / "damaged.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"damaged\.png"):
        detector.decision_function(tmp_path / "new")
    (tmp_path / "new" / "damaged.png").unlink()
    (tmp_path / "new" / "gone.png").symlink_to("nowhere.png")
    with pytest.raises(DataError, match=r"gone\.png"):
        detector.decision_function(tmp_path / "new")
