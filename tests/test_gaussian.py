"""Recipes gaussian and discriminators, from normal images to scores, on real crops and painted squares."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made import few_crops
from PIL import Image
from torch.nn.functional import interpolate

from attnad.cli import main
from attnad.config import GaussianConfig
from attnad.data import load_test, load_train, split_normal, textures
from attnad.detectors import gaussian, recipe
from attnad.errors import CheckpointError, DataError, TrainingError
from attnad.metrics import auroc, evaluate_scores, normal_threshold
from attnad.run.export import export_run, load_exported
from attnad.run.run import Run, evaluate_run, load_run, train_run
from attnad.train import to_float
from attnad.training.state import read_log
from attnad.training.storage import load_json, load_tensors, save_json, save_tensors
from attnad.widgets import PaintDefect

SIZE = 64
CONFIG = replace(recipe("discriminators", "textures"), steps=40, batch=1024)
LITTLE = replace(CONFIG, min_side=64, channels=24, steps=20, batch=256)  # where nothing has to be found


def train(config: GaussianConfig, folder: Path, **arguments) -> Run:
    return train_run(config, folder, device="cpu", progress=False, **arguments)


@pytest.fixture(scope="module")
def few():
    """The embedded textures with fewer crops, so that a run takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        few_crops(patch, train=32, good=12, defect=2, other=2)
        yield


@pytest.fixture(scope="module")
def run(few, tmp_path_factory) -> tuple[Run, Path]:
    folder = tmp_path_factory.mktemp("discriminators")
    return train(CONFIG, folder), folder


@pytest.fixture(scope="module")
def little(few, tmp_path_factory) -> Run:
    return train(LITTLE, tmp_path_factory.mktemp("little"))


@pytest.fixture(scope="module")
def test_set(few):
    return load_test("textures", size=SIZE)


def test_painted_defects_are_found(run, test_set):
    result = evaluate_run(run[0], test_set)
    assert result["image_auroc"] > 0.98
    assert result["pixel_auroc"] > 0.98
    assert all(row["image_auroc"] > 0.95 for row in result["by_kind"].values())
    assert result["encoder"] == "efficientnet-lite0"


def test_scores_are_what_they_say(run, test_set):
    """Map, parts and image scores from the distances of both answers, written out."""
    levels, images = run[0].detector.levels, test_set.images[:5]
    scores = run[0].score(images)
    with torch.no_grad():
        gaussian, judge = levels(images.float() / 255)
    smaller = torch.minimum(gaussian, judge)
    assert smaller.shape == (5, 1, 32, 32)  # 64 pixels are enlarged to 128, of which the finest level keeps a fourth
    highest = smaller.flatten(1).sort(1, descending=True).values[:, :10]
    torch.testing.assert_close(scores.image["top"], highest.mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scores.image["peak"], highest[:, 0], rtol=1e-4, atol=1e-5)
    for found, distance in (
        (scores.maps, smaller),
        (scores.parts["gaussian"], gaussian),
        (scores.parts["discriminator"], judge),
    ):
        square = interpolate(distance, size=(SIZE, SIZE), mode="bilinear")[:, 0] ** 2
        torch.testing.assert_close(found, square / (4 + square), rtol=1e-4, atol=1e-5)
        assert 0 <= found.min() < found.max() < 1
    assert (scores.maps <= torch.maximum(scores.parts["gaussian"], scores.parts["discriminator"]) + 1e-6).all()


def test_scores_do_not_depend_on_the_batch(run, test_set):
    images = test_set.images[:20]
    whole, single = run[0].score(images), [run[0].score(images[i : i + 1]) for i in range(20)]
    for name, values in whole.named():
        parts = torch.cat([dict(each.named())[name] for each in single])
        torch.testing.assert_close(parts, values, rtol=1e-3, atol=1e-4, msg=name)


def test_a_loaded_run_scores_as_the_trained_one(run, test_set):
    trained, folder = run
    loaded = load_run(folder, device="cpu")
    theirs = dict(loaded.score(test_set.images).named())
    assert all(torch.equal(values, theirs[name]) for name, values in trained.score(test_set.images).named())
    assert (loaded.config, loaded.facts) == (trained.config, trained.facts)
    assert not any(module.training for module in loaded.detector.levels.modules())


def test_the_same_seed_gives_the_same_file(little, tmp_path):
    train(LITTLE, tmp_path / "again")
    name = "strong.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (little.folder / name).read_bytes()
    train(replace(LITTLE, seed=1), tmp_path / "other")
    assert (tmp_path / "other" / name).read_bytes() != (little.folder / name).read_bytes()


def test_gaussian_is_discriminators_without_steps(little, test_set, tmp_path):
    of_recipe = recipe("gaussian", "textures")
    assert of_recipe == replace(CONFIG, recipe="gaussian", steps=0, batch=of_recipe.batch)
    bare = train(replace(LITTLE, recipe="gaussian", steps=0), tmp_path)
    scores, both = bare.score(test_set.images[:8]), little.score(test_set.images[:8])
    torch.testing.assert_close(scores.maps, scores.parts["gaussian"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scores.parts["gaussian"], both.parts["gaussian"], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(both.parts["discriminator"], both.parts["gaussian"], atol=1e-3)


@torch.no_grad()
def test_a_place_is_a_fake_where_a_quarter_of_it_is_stained(run, test_set):
    levels, x = run[0].detector.levels, to_float(test_set.images[:6])
    a_ano = torch.ones(len(x), 1, SIZE, SIZE)
    a_ano[2, 0, 16:32, 16:32] = 0  # whole places of every level
    a_ano[3, 0, 0, 0] = 0  # a quarter of one place of stride 4: images of 64 pixels are enlarged to 128
    found = gaussian._whitened(levels, [(x, a_ano)], len(x), torch.Generator().manual_seed(0))
    for level, (kept, white) in enumerate(zip(found, levels.white(x), strict=True)):
        side = white.shape[-1]
        part = slice(side // 4, side // 2)
        wanted = white[2, :, part, part].flatten(1).T
        if level < 2:
            wanted = torch.cat([wanted, white[3, :, :1, :1].flatten(1).T])
        order = [rows.float().numpy()[np.lexsort(rows.float().numpy().T)] for rows in (kept, wanted.half())]
        np.testing.assert_array_equal(*order)


def test_stained_places_teach_the_judges_and_not_the_gaussians(little, test_set, tmp_path):
    scores = [r.score(test_set.images[:8]) for r in (little, train(replace(LITTLE, stain_share=0.0), tmp_path))]
    torch.testing.assert_close(*(s.parts["gaussian"] for s in scores))
    assert not torch.allclose(*(s.parts["discriminator"] for s in scores), atol=1e-3)


def test_a_run_from_before_there_were_stains_is_loaded(run, test_set, tmp_path):
    shutil.copytree(run[1], tmp_path / "old")
    path = tmp_path / "old" / "config.json"
    values = load_json(path)
    del values["stain_share"]
    save_json(path, values)
    old = load_run(tmp_path / "old", device="cpu")
    assert old.config == replace(CONFIG, stain_share=0.0)
    assert torch.equal(old.score(test_set.images[:4]).maps, run[0].score(test_set.images[:4]).maps)
    del values["noise"]  # any other value has to be there
    save_json(path, values)
    with pytest.raises(CheckpointError, match="noise unknown or missing"):
        load_run(tmp_path / "old", device="cpu")


def test_the_threshold_is_from_held_out_normal_images(run):
    _, held_out = split_normal(load_train("textures", size=SIZE).images, seed=0)
    wanted = normal_threshold(run[0].score(held_out).image["top"].numpy())
    assert run[0].facts["threshold"] == pytest.approx(wanted, rel=1e-6)


def test_the_log_says_what_the_judges_learned(run):
    lines = read_log(run[1] / "log.csv")
    assert [line[:3] for line in lines[:1]] == [["gaussians", "1", "mean distance"]]
    assert 0.2 < float(lines[0][3]) < 1.5
    judges = [line for line in lines if line[0] == "discriminators"]
    assert [line[1] for line in judges] == list("11223344")
    for before, after in zip(judges[::2], judges[1::2], strict=True):
        assert float(after[3]) < float(before[3])
    assert run[0].facts["seconds"].keys() == {"gaussians", "discriminators"}


def test_a_judge_keeps_no_more_numbers_than_it_may(monkeypatch, few, test_set, tmp_path):
    seen = []
    real = gaussian.train_discriminator

    def watched(judge, features, *arguments, **more):
        seen.append(features.numel())
        return real(judge, features, *arguments, **more)

    monkeypatch.setattr(gaussian, "train_discriminator", watched)
    monkeypatch.setattr(gaussian, "KEPT_NUMBERS", 100_000)
    run = train(replace(LITTLE, steps=5), tmp_path)
    assert sum(seen) <= 100_000
    assert min(seen) > 10_000
    assert run.score(test_set.images[:2]).maps.isfinite().all()


def test_three_photographs_are_enough_and_two_are_not(tmp_path):
    for n in (3, 2):
        folder = tmp_path / str(n)
        folder.mkdir()
        for i, image in enumerate(textures.train_crops("brick", SIZE)[:n]):
            Image.fromarray(image).save(folder / f"{i}.png")
    config = replace(LITTLE, data=str(tmp_path / "3"), size=SIZE)
    scores = train(config, tmp_path / "run").score(torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8))
    assert all(values.isfinite().all() for _, values in scores.named())
    with pytest.raises((TrainingError, DataError), match="needs 3 or more"):
        train(replace(config, data=str(tmp_path / "2")), tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "value"),
    [("size", 40), ("min_side", 16), ("shrink", 1.5), ("ridge", 0.0), ("noise", 0.1), ("stain_share", 1.1),
     ("steps", -1), ("batch", 1), ("channels", 0), ("width", 0), ("learning_rate", 0.0), ("seed", -1)],
)  # fmt: skip
def test_values_that_make_no_sense_are_refused_early(name, value, tmp_path):
    with pytest.raises(TrainingError, match=f"{name} cannot be {value}; choose "):
        train(replace(CONFIG, data="nowhere", **{name: value}), tmp_path)


def test_files_that_do_not_fit_are_refused(run, tmp_path):
    for path in run[1].iterdir():
        if path.is_file() and path.name != ".lock":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    path = tmp_path / "strong.safetensors"
    tensors = load_tensors(path)
    for broken, said in (
        ({k: v for k, v in tensors.items() if k != "levels.discriminators.2.a"}, "levels.discriminators.2.a"),
        (tensors | {"levels.gaussians.0.mean": torch.zeros(4, 1, 16)}, "levels.gaussians.0.mean"),
    ):
        save_tensors(path, broken)
        with pytest.raises(CheckpointError, match=f"strong.safetensors is of another model: .*{said}"):
            load_run(tmp_path, device="cpu")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"strong\.safetensors is damaged"):
        load_run(tmp_path, device="cpu")
    path.unlink()
    with pytest.raises(CheckpointError, match=r"strong\.safetensors is missing"):
        load_run(tmp_path, device="cpu")


def test_the_command_line_from_photographs_to_a_report(few, tmp_path, capsys):
    (tmp_path / "good").mkdir()
    (tmp_path / "new").mkdir()
    for i, image in enumerate(textures.train_crops("brick", SIZE)[:20]):
        Image.fromarray(image).save(tmp_path / "good" / f"{i}.png")
    good, _, _ = textures.held_out_crops("brick", SIZE)
    painted, _, _ = textures.defects("brick", SIZE)
    for i, image in enumerate([*good[:4], *painted]):
        Image.fromarray(image).save(tmp_path / "new" / f"{i:02d}.png")
    out = str(tmp_path / "run")
    words = ["--recipe", "discriminators", "--size", str(SIZE), "--steps", "20", "--batch", "512", "--device", "cpu"]
    assert main(["train", str(tmp_path / "good"), *words, "--out", out]) == 0
    assert main(["score", out, str(tmp_path / "new"), "--out", str(tmp_path / "report"), "--device", "cpu"]) == 0
    lines = list(csv.DictReader((tmp_path / "report" / "scores.csv").read_text().splitlines()))
    anomalous = [int(Path(line["file"]).stem) >= 4 for line in lines]
    assert auroc(np.array(anomalous), np.array([float(line["score"]) for line in lines])) > 0.95
    assert (tmp_path / "report" / "report.html").exists()
    said = capsys.readouterr().out
    assert f"Next: attnad score {out} FOLDER --out report" in said


def test_one_covariance_for_all_places_makes_a_small_file_that_answers_as_the_run(few, test_set, tmp_path):
    """PyTorch and onnxruntime agree; convolutions' weights are stored in half precision.

    It is what the book's playground shows in the reader's browser; one covariance for each place is test_strong.py's.
    """
    one = train(replace(CONFIG, shrink=1, steps=5, batch=256), tmp_path / "one")
    export_run(one, tmp_path / "one.onnx", commit="abc")
    assert (tmp_path / "one.onnx").stat().st_size < 2e6
    exported, images = load_exported(tmp_path / "one.onnx"), test_set.images[::20]
    found, wanted = exported.score(images), one.score(images)
    torch.testing.assert_close(found.maps, wanted.maps, rtol=0, atol=5e-3)
    for name in ("top", "peak"):
        torch.testing.assert_close(found.image[name], wanted.image[name], rtol=5e-3, atol=5e-3)
    assert (exported.facts["recipe"], exported.facts["size"]) == ("discriminators", SIZE)
    assert exported.facts["threshold"] == pytest.approx(one.facts["threshold"])
    painted = PaintDefect(exported, images)
    assert painted._facts["labels"] == [("top", "Score")]
    assert painted._still().shape[1] < 3 * SIZE, "image and map: it makes no reconstruction"


def test_levels_apart_mark_defects_more_sharply_than_joined(few, test_set, tmp_path):
    """What D27 claims of the embedded bricks."""
    found = {}
    for apart in (True, False):
        run = train(replace(recipe("gaussian", "textures"), per_level=apart), tmp_path / str(apart))
        maps, known = run.score(test_set.images).maps.numpy(), test_set.has_mask.numpy()
        labels, masks = test_set.labels.numpy(), test_set.masks.numpy()
        image = maps.max((1, 2))
        found[apart] = evaluate_scores(labels, image, threshold=0.5, masks=masks, maps=maps, has_mask=known)["aupro"]
    assert found[True] > found[False]
