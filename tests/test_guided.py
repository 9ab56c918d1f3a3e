"""Recipe guided: frozen features times the map of stage 1, on real crops."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made import few_crops
from torch import Tensor
from torch.nn.functional import interpolate

from attnad.cli import main
from attnad.data import load_test, load_train
from attnad.detectors import guided, recipe
from attnad.detectors import map as skips
from attnad.detectors.guided import GuidedConfig, attention_config
from attnad.errors import TrainingError
from attnad.run.run import Run, folder_name, load_run, train_run
from attnad.study.engines import measure
from attnad.train import to_float
from attnad.training.state import read_log
from attnad.training.storage import load_json, save_json

SIZE, SEEN = 32, 64  # images, and what they are enlarged to
CONFIG = replace(recipe("guided", "textures"), size=SIZE, min_side=SEEN, steps=20, batch=256, channels=24)


def train(config: GuidedConfig, folder: Path, **arguments) -> Run:
    return train_run(config, folder, device="cpu", progress=False, **arguments)


@pytest.fixture(scope="module", autouse=True)
def few():
    """The embedded textures with fewer crops, and two epochs of the map, so that a run takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        few_crops(patch)
        short = classmethod(
            lambda cls, name, data: skips.MapConfig(data=data, size=SIZE, min_side=SEEN, epochs=2, width=16)
        )
        patch.setattr(skips.AttentionMap, "recipe", short)
        yield


@pytest.fixture(scope="module")
def run(few, tmp_path_factory) -> tuple[Run, Path]:
    folder = tmp_path_factory.mktemp("guided")
    return train(CONFIG, folder), folder


@pytest.fixture(scope="module")
def runs(few, tmp_path_factory) -> Path:
    """A folder of runs, with that of a map: not to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    measure(attention_config(CONFIG), folder, device="cpu", progress=False)
    return folder


@pytest.fixture(scope="module")
def images(few) -> Tensor:
    return load_test("textures", size=SIZE).images[:6]


@torch.no_grad()
def test_each_feature_is_times_the_mean_of_the_map_above_it(run, images):
    levels, x = run[0].detector.levels, to_float(images)
    a_gen = levels.attention.logits(x).sigmoid()
    assert a_gen.std() > 0.01  # or there is nothing to see
    a_gen = interpolate(a_gen, size=(SEEN, SEEN), mode="bilinear").numpy()  # as the images are
    for plain, seen in zip(levels.features(x), levels.seen(x), strict=True):
        n, _, side, _ = plain.shape
        cell = SEEN // side
        for i, row, column in ((0, 0, 0), (n - 1, side - 1, side // 2), (1, 3, 2)):
            above = a_gen[i, 0, row * cell : (row + 1) * cell, column * cell : (column + 1) * cell]
            wanted = plain[i, :, row, column].numpy() * above.mean(dtype=np.float64)
            np.testing.assert_allclose(seen[i, :, row, column], wanted, rtol=1e-4, atol=1e-6)


def test_a_run_is_loaded_as_it_was_saved(run, images):
    loaded = load_run(run[1], device="cpu")
    assert loaded.config == CONFIG
    for (name, wanted), (_, found) in zip(run[0].score(images).named(), loaded.score(images).named(), strict=True):
        assert torch.equal(wanted, found), name
    assert run[0].facts["seconds"].keys() == {"map", "gaussians", "discriminators"}


def test_what_stopped_after_the_map_does_not_train_it_again(run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(guided, "fit_levels", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(CONFIG, tmp_path)
    before = [line for line in read_log(tmp_path / "log.csv") if line[0] == "map"]
    train(CONFIG, tmp_path)
    assert [line for line in read_log(tmp_path / "log.csv") if line[0] == "map"] == before
    assert (tmp_path / "strong.safetensors").read_bytes() == (run[1] / "strong.safetensors").read_bytes()
    assert not list(tmp_path.glob("*.state.safetensors"))


def test_the_map_of_a_finished_run_is_taken_over(run, runs, tmp_path):
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    outcome = measure(CONFIG, tmp_path, device="cpu", progress=False)
    folder = tmp_path / folder_name(CONFIG)
    assert not (folder / "map.safetensors").exists()  # it was not trained again
    assert (folder / "strong.safetensors").read_bytes() == (run[1] / "strong.safetensors").read_bytes()
    assert outcome["facts"]["seconds"].keys() == {"map", "gaussians", "discriminators"}
    assert 0 <= outcome["pixel_auroc"] <= 1


def test_another_map_is_refused(runs, tmp_path):
    first = Path(shutil.copytree(runs / folder_name(attention_config(CONFIG)), tmp_path / "map"))
    with pytest.raises(TrainingError, match="no run of recipe map with these values"):
        train(replace(CONFIG, seed=1), tmp_path / "seed", stage1=first)
    gaussian_run = tmp_path / "gaussian"
    train(replace(recipe("gaussian", "textures"), size=SIZE, min_side=SEEN, channels=24), gaussian_run)
    with pytest.raises(TrainingError, match="no run of recipe map with these values"):
        train(CONFIG, tmp_path / "recipe", stage1=gaussian_run)
    save_json(first / "run.json", load_json(first / "run.json") | {"images": "of others"})
    with pytest.raises(TrainingError, match="trained on other images"):
        train(CONFIG, tmp_path / "images", stage1=first)


@pytest.mark.parametrize(("name", "value"), [("stain_share", -0.1), ("noise", 0.1)])
def test_values_that_make_no_sense_are_refused_early(name, value, tmp_path):
    with pytest.raises(TrainingError, match=f"{name} cannot be {value}; choose "):
        train(replace(CONFIG, data="nowhere", **{name: value}), tmp_path)


def test_the_commands_take_it(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    from PIL import Image

    Image.fromarray(load_train("textures", size=SIZE).images[0].permute(1, 2, 0).numpy()).save("a.png")
    assert main(["score", str(run[1]), "a.png", "--out", "out"]) in (0, None)
    with open("out/scores.csv", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert float(row["score"]) > 0
