"""Recipe `map`: stains and scratches against loops and SciPy, its losses, and a network that learns to mark them."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from made import few_crops, images, rng
from scipy import ndimage
from skimage.transform import resize
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.ops import sigmoid_focal_loss

from attnad.config import AttentionConfig, from_dict, to_dict
from attnad.data import load_test, load_train
from attnad.detectors import override, recipe
from attnad.detectors.map import AttentionMap, AttentionPyramid, MapConfig, one_cycle
from attnad.errors import Stopped, TrainingError
from attnad.features.stains import StainConfig, highest_within, soften, stain, summed_noise, unchanged
from attnad.losses import dice_loss, focal_loss
from attnad.metrics import auroc
from attnad.models import build_encoder
from attnad.run.run import load_run, train_run
from attnad.training.state import stopping

SMALL = replace(recipe("map", "textures"), size=32, min_side=64, width=16, epochs=8, batch=8)


# --- stains and scratches --------------------------------------------------------------------------------------------


def test_noise_is_enlarged_between_its_values_and_summed():
    noises = [torch.randn(3, 1, k, k, generator=rng(k)) for k in (2, 4, 8)]
    for i, found in enumerate(summed_noise(noises, 16)):
        expected = sum(resize(n[i, 0].double().numpy(), (16, 16), order=1, mode="edge") for n in noises)
        np.testing.assert_allclose(found[0], expected, atol=1e-5)


def test_the_highest_within_a_window_against_a_loop():
    values, windows = torch.randn(6, 1, 9, 9, generator=rng(0)), torch.zeros(6, 1, 9, 9)
    shares = torch.tensor([0.1, 0.25, 0.5, 1.0, 0.001, 0.3])
    for i in range(5):  # the last window is empty
        windows[i, :, i : i + 4, 1 : 3 + i] = 1
    found = highest_within(values, windows, shares)
    for value, window, share, mask in zip(values, windows, shares, found, strict=True):
        places = sorted(zip(*np.nonzero(window[0].numpy()), strict=True), key=lambda at: -value[0][at].item())
        wanted = places[: max(1, int(np.ceil(share.item() * len(places))))] if places else []
        assert set(zip(*np.nonzero(mask[0].numpy()), strict=True)) == set(wanted)


@pytest.mark.parametrize("width", [1, 3])
def test_soft_edges_are_scipys_mean(width):
    masks = (torch.rand(4, 1, 12, 12, generator=rng(1)) > 0.6).float()
    for mask, found in zip(masks, soften(masks, width), strict=True):
        expected = ndimage.uniform_filter(mask[0].double().numpy(), 2 * width + 1, mode="constant")
        np.testing.assert_allclose(found[0], expected, atol=1e-6)


def test_what_hardly_changes_stays_normal():
    x = torch.full((1, 3, 2, 2), 0.5)
    x_ano = x.clone()
    x_ano[0, :, 0, 0] += torch.tensor([0.09, 0.0, -0.03])  # 0.04 in the mean
    x_ano[0, :, 1, 1] += 0.02
    assert unchanged(x, x_ano, 0.03).tolist() == [[[[0, 1], [1, 1]]]]


def test_the_target_says_where_a_pixel_changed():
    x, config = images(200, 64), StainConfig()
    x_ano, a_ano = stain(x, config, rng(3))
    assert x_ano.shape == x.shape
    assert 0 <= x_ano.min() <= x_ano.max() <= 1
    assert set(a_ano.unique().tolist()) == {0, 1}
    torch.testing.assert_close(a_ano, ((x_ano - x).abs().mean(1, keepdim=True) < config.changed).float())
    again, others = stain(x, config, rng(3)), stain(x, config, rng(4))
    assert torch.equal(again[0], x_ano)
    assert not torch.equal(others[0], x_ano)
    share = (1 - a_ano).mean((1, 2, 3))
    assert share.median() > 0.002
    assert share.max() < 0.6
    assert (share == 0).float().mean() < 0.1  # nearly each image has something to find


def test_half_are_blots_and_half_rectangles():
    x = torch.zeros(400, 3, 64, 64)  # on black everything shows but a black filling
    _, a_ano = stain(x, StainConfig(opacity=1.0, box=(0.02, 0.1), changed=0.001), rng(0))
    filled = []
    for a in a_ano[(a_ano == 0).any((1, 2, 3))]:
        rows, columns = np.nonzero(a[0].numpy() == 0)
        filled.append(len(rows) / ((rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)))
    assert 0.35 < np.mean(np.array(filled) > 0.99) < 0.65


def test_nothing_waits_for_the_device():
    """Traced without values: a step that needed one would raise."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        x_ano, a_ano = stain(torch.zeros(4, 3, 64, 64), StainConfig(), rng(0))
    assert (x_ano.shape, a_ano.shape) == ((4, 3, 64, 64), (4, 1, 64, 64))


# --- losses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_focal_loss_is_torchvisions(gamma):
    logits = 4 * torch.randn(3, 1, 8, 8, generator=rng(0), dtype=torch.float64)
    a = (torch.rand(3, 1, 8, 8, generator=rng(1)) > 0.3).double()
    expected = sigmoid_focal_loss(logits, a, alpha=-1, gamma=gamma, reduction="mean")
    torch.testing.assert_close(focal_loss(logits, a, gamma=gamma), expected)


def test_focal_loss_stays_finite():
    assert focal_loss(torch.tensor([200.0, -200.0]), torch.tensor([0.0, 1.0])).item() == pytest.approx(200)
    assert focal_loss(torch.tensor([200.0, -200.0]), torch.tensor([1.0, 0.0])).item() == 0


def test_dice_loss_by_hand():
    a = torch.tensor([1.0, 1.0, 0.0, 0.0])
    assert dice_loss(a, a).item() == 0
    assert dice_loss(1 - a, a).item() == pytest.approx(1 - 1 / 5)
    assert dice_loss(torch.tensor([1.0, 0.5, 0.5, 0.0]), a).item() == pytest.approx(1 - (2 * 1.5 + 1) / (2 + 2 + 1))
    assert dice_loss(torch.ones(4), torch.ones(4)).item() == 0  # nothing anomalous, and nothing called so


# --- the network -----------------------------------------------------------------------------------------------------


def test_each_level_has_its_part_in_the_map():
    pyramid = AttentionPyramid([4, 6, 8], 5).eval()
    levels = [torch.randn(2, c, s, s, generator=rng(c)) for c, s in ((4, 16), (6, 8), (8, 4))]
    whole = pyramid(levels)
    assert whole.shape == (2, 1, 16, 16)
    for i in range(3):
        without = [torch.zeros_like(f) if i == j else f for j, f in enumerate(levels)]
        assert not torch.allclose(pyramid(without), whole)


@pytest.fixture(scope="module")
def few():
    """The embedded textures with fewer crops, so that a run takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        few_crops(patch, train=80, good=24, defect=6, other=1)
        yield


@pytest.fixture(scope="module")
def run(few, tmp_path_factory):
    folder = tmp_path_factory.mktemp("map") / "run"
    return train_run(SMALL, folder, progress=False), folder


def test_it_finds_defects_that_it_was_never_shown(run):
    test = load_test("textures", size=SMALL.size)
    chosen = torch.tensor([kind == "good" or kind.startswith("defect") for kind in test.kinds])
    scores = run[0].score(test.images[chosen])
    assert auroc(test.labels[chosen].numpy(), scores.image["top"].numpy()) > 0.8
    assert auroc(test.masks[chosen].flatten().numpy(), scores.maps.flatten().numpy()) > 0.9


def test_a_loaded_run_scores_the_same_and_the_encoder_was_left_alone(run):
    trained, folder = run
    x = load_train("textures", size=SMALL.size).images[:8]
    assert torch.equal(load_run(folder).score(x).maps, trained.score(x).maps)
    published = build_encoder(AttentionConfig(encoder=SMALL.encoder)).state_dict()
    assert all(torch.equal(value, published[name]) for name, value in trained.detector.encoder.state_dict().items())


@pytest.mark.parametrize("more", [{}, {"tune": 0.1, "schedule": "one-cycle"}], ids=["frozen", "tuned"])
def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path, monkeypatch, more):
    few_crops(monkeypatch, train=24)
    config = replace(SMALL, epochs=2, **more)
    train_run(config, tmp_path / "whole", progress=False)
    stopping.set()
    try:
        with pytest.raises(Stopped):
            train_run(config, tmp_path / "stopped", progress=False)
    finally:
        stopping.clear()
    train_run(config, tmp_path / "stopped", progress=False)
    one, other = ((tmp_path / name / "map.safetensors").read_bytes() for name in ("whole", "stopped"))
    assert one == other


def test_one_cycle_is_pytorchs():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=1000, cycle_momentum=False)
    for step in range(1000):  # PyTorch's last step is at the very end, ours one before
        assert one_cycle(step / 1000) == pytest.approx(schedule.get_last_lr()[0], abs=0.005)
        optimizer.step()
        schedule.step()
    assert (one_cycle(0), one_cycle(0.3)) == (pytest.approx(1 / 25), pytest.approx(1))
    assert one_cycle(0.999) < 1e-4


def test_a_tuned_encoder_learns_at_its_share_of_the_rate_and_keeps_its_statistics():
    torch.manual_seed(0)
    model = AttentionMap(replace(SMALL, tune=0.1, schedule="one-cycle")).train()
    assert {part: model.pace(part, 0.3) for part in model.parts()} == {"pyramid": 1.0, "encoder": 0.1}
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    optimizers = {name: torch.optim.Adam(part.parameters(), 1e-3) for name, part in model.parts().items()}
    model.step(images(4, 32), optimizers, rng(0))
    moved = {name for name, value in model.encoder.state_dict().items() if not torch.equal(value, before[name])}
    assert any(name.endswith("conv_stem.weight") for name in moved), "down to the first layer"
    assert not [name for name in moved if "running" in name]
    frozen = AttentionMap(SMALL).train()
    assert frozen.parts() == {"all": frozen}
    assert not any(parameter.requires_grad for parameter in frozen.encoder.parameters())


def test_a_run_from_before_the_encoder_could_be_tuned_is_read():
    before = to_dict(SMALL)
    del before["tune"], before["schedule"]
    assert from_dict(MapConfig, before) == SMALL


@pytest.mark.parametrize(
    ("name", "value"),
    [("focal_weight", -1.0), ("dice_weight", float("inf")), ("width", 1), ("min_side", 100),
     ("stains.window", (0.4, 0.02)), ("stains.box", (0.0, 0.1)), ("stains.thinness", 0.5), ("stains.opacity", 1.5),
     ("stains.changed", -0.1)],
)  # fmt: skip
def test_values_that_make_no_sense_are_refused_early(name, value, tmp_path):
    with pytest.raises(TrainingError, match=re.escape(f"{name} cannot be {value}; choose ")):
        train_run(override(SMALL, {name: value}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "value"), [("grids", (2, 3)), ("hue", 0.6), ("contrast", -0.1)])
def test_a_filling_that_makes_no_sense_is_refused_early(name, value, tmp_path):
    stains = replace(SMALL.stains, augment=replace(SMALL.stains.augment, **{name: value}))
    with pytest.raises(TrainingError, match=re.escape(f"stains.augment.{name} cannot be {value}; choose ")):
        train_run(replace(SMALL, stains=stains), tmp_path / "run")
