"""The two training loops: they learn, they repeat and resume bit for bit, and they stop where they must.

More than 300 lines: one small network is trained once for all of them.
"""

from __future__ import annotations

import copy
import csv
import random
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from attnad.config import ADGANConfig, AttentionConfig, PaperConfig
from attnad.data import load_test, load_train, split_normal
from attnad.detectors import recipe
from attnad.errors import CheckpointError
from attnad.models import AttentionNetwork
from attnad.train import (
    ADGAN_TERMS,
    ATTENTION_TERMS,
    TrainingError,
    attention_maps,
    pick_device,
    renew_statistics,
    to_float,
    train_adgan,
    train_attention,
)
from attnad.training.storage import load_tensors, save_tensors

CPU = torch.device("cpu")
NAN = float("nan")
STAGE1 = AttentionConfig(
    encoder="resnet18", width=4, latent=4, epochs=2, batch=8, learning_rate=1e-3, kl_weight=0.01, adv_weight=0.05,
    adv_ano_weight=0.05, renew_statistics=True,
)  # fmt: skip
STAGE2 = ADGANConfig(epochs=2, batch=8, learning_rate=5e-4, synthetic_fakes=True, ema=0.9)


def tiny(seed: int = 0, **changes) -> PaperConfig:
    """A configuration that trains in under a second; changes are fields of stage 1, or of stage 2 after `adgan_`."""
    stage2 = {name.removeprefix("adgan_"): value for name, value in changes.items() if name.startswith("adgan_")}
    stage1 = {name: value for name, value in changes.items() if not name.startswith("adgan_")}
    return PaperConfig(size=32, seed=seed, attention=replace(STAGE1, **stage1), adgan=replace(STAGE2, **stage2))


def train1(config: PaperConfig, images: Tensor, folder: Path | None = None):
    return train_attention(config, images, device=CPU, folder=folder, save_seconds=0, progress=False)


def train2(config: PaperConfig, images: Tensor, network: AttentionNetwork, folder: Path | None = None, **more):
    return train_adgan(config, images, network, device=CPU, folder=folder, save_seconds=0, progress=False, **more)


def copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: nn.Module | dict[str, Tensor], other: nn.Module | dict[str, Tensor]) -> bool:
    """Bit for bit the same tensors under the same names."""
    one, other = (m.state_dict() if isinstance(m, nn.Module) else m for m in (one, other))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def read_log(folder: Path) -> list[tuple[str, int, str, float]]:
    with open(folder / "log.csv", newline="") as file:
        return [(r["stage"], int(r["epoch"]), r["term"], float(r["loss"])) for r in csv.DictReader(file)]


@pytest.fixture(scope="module")
def images() -> Tensor:
    return load_train("textures", size=32).images[:24]


@pytest.fixture(scope="module")
def network(images) -> AttentionNetwork:
    return train1(tiny(), images)[0]


# --- learning --------------------------------------------------------------------------------------------------------


def test_losses_are_logged_finite_and_the_attention_loss_falls(images, tmp_path):
    config = tiny(epochs=12, learning_rate=2e-3)
    network, _ = train1(config, images, tmp_path)
    train2(config, images, network, tmp_path)
    log = read_log(tmp_path)
    expected = [("attention", epoch, term) for epoch in range(1, 13) for term in ATTENTION_TERMS]
    expected += [("adgan", epoch, term) for epoch in (1, 2) for term in ADGAN_TERMS]
    assert [line[:3] for line in log] == expected
    assert np.isfinite([loss for *_, loss in log]).all()
    falling = [loss for stage, _, term, loss in log if (stage, term) == ("attention", "L_att")]
    assert np.mean(falling[-3:]) < 0.8 * np.mean(falling[:3])


def test_renewed_statistics_are_those_that_pytorch_takes_anew():
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2))
    theirs, batches = copy.deepcopy(ours), torch.rand(5, 6, 3, 8, 8)
    renew_statistics(ours.train(), ((batch,) for batch in batches))
    update_bn(batches, theirs.train())
    assert same(ours, theirs)
    assert ours[1].momentum == 0.1
    before = copied(ours[:2].eval())
    renew_statistics(ours, ((batch,) for batch in batches + 1))
    assert same(before, ours[:2])  # in evaluation mode
    assert not same(theirs[4], ours[4])


def test_renewing_changes_statistics_alone_and_maps_are_as_in_training(images):
    """At a rate at which running statistics lag behind the weights, and for a frozen encoder, which keeps its own."""
    x = to_float(images)
    for freeze in (False, True):
        left, renewed = (
            train1(tiny(learning_rate=2e-2, epochs=4, freeze_encoder=freeze, renew_statistics=renew), images)[0]
            for renew in (False, True)
        )
        assert all(map(torch.equal, left.parameters(), renewed.parameters()))
        assert same(left.encoder, renewed.encoder) == freeze
        assert not same(left.decoder, renewed.decoder)
        gaps = []
        for network in (left, renewed):
            scored = network(x)
            trained = copy.deepcopy(network).train()(x)
            gaps.append((scored.x_re - trained.x_re).abs().mean())
        assert gaps[1] < 0.8 * gaps[0]


@pytest.mark.machines
def test_maps_of_recipe_quick_are_right_whatever_the_rounding():
    """With AVX2's and two threads, as `make machines` has it, all of them were anomalous until D34."""
    config = recipe("quick", "textures")
    fit, held_out = split_normal(load_train("textures", size=config.size).images, seed=config.seed)
    network, _ = train_attention(config, fit, device=CPU, progress=False)
    assert attention_maps(network, held_out).mean() > 0.9
    test = load_test("textures", size=config.size)
    others = torch.tensor([kind.startswith("other/") for kind in test.kinds])
    assert attention_maps(network, test.images[others]).mean() < 0.5


def test_networks_come_back_ready_to_score(images, network):
    adgan = train2(tiny(), images, network)
    assert not any(module.training for module in (*network.modules(), *adgan.modules()))


def test_fewer_images_than_a_batch_still_train(images):
    before = AttentionNetwork(tiny().attention)
    network, _ = train1(tiny(), images[:3])
    train2(tiny(), images[:3], network)
    assert not same(network, before)


# --- the same again --------------------------------------------------------------------------------------------------


def test_the_seed_decides_the_weights_and_no_global_generator_is_touched(images):
    def everything(seed: int) -> dict[str, Tensor]:
        network, discriminator = train1(tiny(seed), images)
        parts = {"g1": network, "d1": discriminator, "adgan": train2(tiny(seed), images, network)}
        return {f"{part}.{name}": value for part, module in parts.items() for name, value in copied(module).items()}

    torch.manual_seed(1)
    first = everything(0)
    torch.manual_seed(2)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    second = everything(0)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]  # noqa: NPY002
    assert same(first, second)
    other = everything(1)
    assert not any(torch.equal(first[name], other[name]) for name in first if name.endswith("conv1.weight"))


def test_training_resumes_bit_for_bit(images, tmp_path):
    short, long = tiny(epochs=2, adgan_epochs=2), tiny(epochs=4, adgan_epochs=4)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()

    network, discriminator = train1(long, images, whole)
    train1(short, images, parts)
    again = train1(long, images, parts)
    assert same(network, again[0])
    assert same(discriminator, again[1])

    adgan = train2(long, images, network, whole)
    train2(short, images, network, parts)
    assert same(adgan, train2(long, images, network, parts))

    assert read_log(parts) == read_log(whole)
    assert set(Counter(line[:3] for line in read_log(parts)).values()) == {1}
    for stage in ("attention", "adgan"):
        name = f"{stage}.state.safetensors"
        assert (parts / name).read_bytes() == (whole / name).read_bytes()

    # A finished stage is loaded, not trained on.
    assert same(network, train1(long, images, parts)[0])
    assert same(adgan, train2(long, images, network, parts))
    assert read_log(parts) == read_log(whole)


def test_epochs_logged_after_the_last_saved_state_are_not_logged_twice(images, tmp_path):
    train1(tiny(epochs=1), images, tmp_path)
    state = (tmp_path / "attention.state.safetensors").read_bytes()
    train1(tiny(epochs=3), images, tmp_path)
    log = read_log(tmp_path)
    (tmp_path / "attention.state.safetensors").write_bytes(state)  # as if killed before epochs 2 and 3 were saved
    train1(tiny(epochs=3), images, tmp_path)
    assert read_log(tmp_path) == log


def test_saving_waits_for_its_time_but_not_at_the_end(images, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr("attnad.training.state.save_tensors", lambda path, tensors: saved.append(int(tensors["epoch"])))
    for seconds in (3600, 0):
        train_attention(tiny(epochs=3), images, device=CPU, folder=tmp_path, save_seconds=seconds, progress=False)
    assert saved == [3, 1, 2, 3]


# --- stopping --------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_at_its_term_and_step_and_keeps_the_last_good_state(images, network, tmp_path):
    train1(tiny(epochs=1), images, tmp_path)
    path = tmp_path / "attention.state.safetensors"
    before, log = path.read_bytes(), read_log(tmp_path)
    # The first step's losses are finite; its NaN gradient is first seen in the losses of the second.
    with pytest.raises(TrainingError, match=r"^L_\w+ became nan in epoch 2, step 2; ") as error:
        train1(tiny(epochs=3, att_weight=NAN), images, tmp_path)
    assert f"the last good state is in {path}" in str(error.value)
    assert "learning rate" in str(error.value)
    assert path.read_bytes() == before
    assert read_log(tmp_path) == log
    resumed, _ = train1(tiny(epochs=3), images, tmp_path)
    assert same(resumed, train1(tiny(epochs=3), images)[0])

    train2(tiny(adgan_epochs=1), images, network, tmp_path)
    path = tmp_path / "adgan.state.safetensors"
    before = path.read_bytes()
    with pytest.raises(TrainingError, match=r"^L_\w+ became nan in epoch 2, step 2; the last good state is in"):
        train2(tiny(adgan_epochs=3, adgan_reconstruction_weight=NAN), images, network, tmp_path)
    assert path.read_bytes() == before


def test_the_term_that_is_not_finite_is_the_one_named(images, monkeypatch):
    steps = []

    def attention_loss(*maps: Tensor) -> Tensor:
        steps.append(maps)
        return maps[0].sum() * (float("inf") if len(steps) == 5 else 1.0)

    monkeypatch.setattr("attnad.train.attention_loss", attention_loss)  # three steps an epoch
    with pytest.raises(TrainingError, match=r"^L_att became inf in epoch 2, step 2; no state was saved yet"):
        train1(tiny(), images)
    assert len(steps) == 5, "training went on after that step"


@pytest.mark.parametrize("changes", [{"learning_rate": 1e20}, {"att_weight": 1e38}, {"g_weight": NAN}], ids=str)
@pytest.mark.parametrize("n", [8, 24])
def test_weights_that_are_not_finite_are_never_saved_nor_returned(images, tmp_path, changes, n):
    """With one step an epoch and one epoch, no later loss would show what the last step did to the weights."""
    with pytest.raises(TrainingError, match=r"finite|became"):
        train1(tiny(epochs=1 if n == 8 else 3, **changes), images[:n], tmp_path)
    if (path := tmp_path / "attention.state.safetensors").exists():
        load_tensors(path)  # refuses what is not finite


def test_a_stage_2_that_is_not_finite_is_neither_saved_nor_returned(images, network, tmp_path):
    with pytest.raises(TrainingError, match="finite after epoch 1; no state was saved yet"):
        train2(tiny(adgan_epochs=1, adgan_reconstruction_weight=NAN), images[:8], network, tmp_path)
    assert not (tmp_path / "adgan.state.safetensors").exists()


@pytest.fixture(scope="module")
def saved(images, network, tmp_path_factory) -> Path:
    """Folder of the states of both stages: not to be changed."""
    folder = tmp_path_factory.mktemp("saved")
    train1(tiny(), images, folder)
    train2(tiny(), images, network, folder)
    return folder


@pytest.fixture
def states(saved, tmp_path) -> Path:
    """A copy of them, to be changed."""
    return Path(shutil.copytree(saved, tmp_path / "states"))


@pytest.mark.parametrize("stage", ["attention", "adgan"])
def test_a_state_that_does_not_fit_is_refused(images, network, states, stage):
    path = states / f"{stage}.state.safetensors"
    content, tensors = path.read_bytes(), load_tensors(path)

    def refused(match: str, config: PaperConfig = tiny(epochs=4, adgan_epochs=4), data: Tensor = images) -> None:  # noqa: B008
        with pytest.raises(CheckpointError, match=match) as error:
            train1(config, data, states) if stage == "attention" else train2(config, data, network, states)
        assert str(path) in str(error.value)

    other = images.clone()
    other[0, 0, 0, 0] ^= 1
    refused("other images", data=other)
    refused("other images", data=images[1:])
    refused("another model", config=tiny(width=8))
    # A CUDA generator's state has 16 bytes.
    save_tensors(path, tensors | {"generator": torch.zeros(16, dtype=torch.uint8)})
    refused("--device")
    save_tensors(path, {name: value for name, value in tensors.items() if name != "epoch"})
    refused("no training state: it lacks epoch")
    name = next(name for name in tensors if name.endswith("conv1.weight"))
    save_tensors(path, tensors | {name: tensors[name] * NAN})
    refused("not finite")
    path.write_bytes(content[: len(content) // 2])
    refused("damaged")


def test_a_damaged_log_is_refused(images, states):
    for text in ("", "stage,epoch,term,loss,seconds\nattention,one,L_D,0,0\n", "stage\n\n"):
        (states / "log.csv").write_text(text)
        with pytest.raises(CheckpointError, match=r"log\.csv is damaged"):
            train1(tiny(epochs=3), images, states)


@pytest.mark.parametrize("name", ["cuda:99", "nonsense", "meta", ""])
def test_a_device_that_is_not_there_is_refused_with_the_remedy(name):
    with pytest.raises(TrainingError, match=f"device '{name}' cannot be used here .*; try --device auto or cpu"):
        pick_device(name)


def test_devices_that_are_there():
    assert pick_device("cpu") == CPU
    assert pick_device("auto").type in ("cpu", "cuda", "mps")


# --- what is trained, and what is not --------------------------------------------------------------------------------


@pytest.mark.parametrize("train_features", [False, True])
def test_stage_2_leaves_the_attention_network_alone(images, network, train_features):
    before = copied(network)
    network.zero_grad()
    train2(tiny(adgan_train_features=train_features), images, network)
    assert same(network, before)
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("trained", [False, True])
def test_the_feature_layers_are_trained_where_asked(images, network, trained):
    adgan = train2(tiny(adgan_train_features=trained), images, network)
    block = network.encoder.layer1[0]
    start = {"0": network.encoder.conv1, "1": network.encoder.bn1, "3": block.conv1, "4": block.bn1}
    # All of a layer's tensors, the batch statistics too.
    unchanged = [same(adgan.features.layers.get_submodule(i), layer) for i, layer in start.items()]
    assert unchanged == [not trained] * 4


@pytest.mark.parametrize("frozen", [False, True])
def test_the_encoder_is_trained_unless_frozen(images, tmp_path, frozen):
    one, _ = train1(tiny(epochs=1, freeze_encoder=frozen), images)
    two, _ = train1(tiny(epochs=2, freeze_encoder=frozen), images)
    assert same(one.encoder, two.encoder) == frozen
    assert not same(one.decoder, two.decoder)


def test_the_judge_is_the_moving_average_of_its_weights(images, network, tmp_path):
    """Recomputed from the weights after each of four steps (one an epoch): a <- 0.9 a + 0.1 w, from the first on."""
    average: dict[str, Tensor] = {}
    for epochs in (1, 2, 3, 4):
        config = tiny(adgan_epochs=epochs, adgan_train_features=True, adgan_ema=0.9)
        adgan = train2(config, images[:8], network, tmp_path)
        for name, weight in load_tensors(tmp_path / "adgan.state.safetensors").items():
            name = name.removeprefix("adgan.")
            if name in dict(adgan.named_parameters()):
                average[name] = 0.9 * average[name] + 0.1 * weight if name in average else weight
    last = load_tensors(tmp_path / "adgan.state.safetensors")
    for name, parameter in adgan.named_parameters():
        judging = name.startswith(("features.", "discriminator."))
        torch.testing.assert_close(parameter.detach(), average[name] if judging else last[f"adgan.{name}"])
        if judging:
            assert not torch.equal(parameter, last[f"adgan.{name}"])


def test_without_decay_the_judge_has_the_last_weights(images, network, tmp_path):
    adgan = train2(tiny(adgan_ema=0.0), images, network, tmp_path)
    last = load_tensors(tmp_path / "adgan.state.safetensors")
    assert all(torch.equal(parameter, last[f"adgan.{name}"]) for name, parameter in adgan.named_parameters())


def test_a_game_of_weight_0_is_not_played(images, tmp_path):
    none = {"adv_weight": 0.0, "adv_ano_weight": 0.0}
    network1, untrained = train1(tiny(epochs=1, **none), images)
    network2, still = train1(tiny(epochs=2, **none), images, tmp_path)
    assert same(untrained, still)
    assert not same(network1, network2)
    losses = {term: [loss for _, _, t, loss in read_log(tmp_path) if t == term] for term in ATTENTION_TERMS}
    assert losses["L_D"] == losses["L_adv"] == losses["L_adv_ano"] == [0, 0]
    assert min(losses["L_G"] + losses["L_att"]) > 0
    trained = [untrained]
    for one in ({"adv_weight": 0.0}, {"adv_ano_weight": 0.0}, {}):
        trained.append(train1(tiny(epochs=1, **one), images)[1])
    weights = [discriminator.layers[0].weight for discriminator in trained]
    assert not any(torch.equal(weights[i], weights[j]) for i in range(4) for j in range(i))


def test_synthetic_fakes_reach_the_judge(images, network):
    without, with_ = (train2(tiny(adgan_synthetic_fakes=on), images, network) for on in (False, True))
    assert not same(without.discriminator, with_.discriminator)


def test_maps_of_the_normal_images_are_the_networks_own(images, network):
    with torch.no_grad():
        expected = network(images.float() / 255).a_gen
    maps = attention_maps(network, images, batch=5)
    assert maps.shape == (24, 1, 32, 32)
    torch.testing.assert_close(maps, expected)
    x = to_float(images)
    assert (x.dtype, x.min().item() >= 0, x.max().item() <= 1) == (torch.float32, True, True)
    torch.testing.assert_close((x * 255).round().to(torch.uint8), images)
