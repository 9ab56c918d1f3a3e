"""What is saved comes back bit for bit."""

from __future__ import annotations

import pytest
import torch
from made import small

from attnad.config import AttentionConfig
from attnad.errors import CheckpointError
from attnad.models import AttentionNetwork, Discriminator
from attnad.training.storage import (
    load_json,
    load_module,
    load_optimizer,
    load_tensors,
    module_tensors,
    optimizer_tensors,
    save_json,
    save_tensors,
)

# Round trips


def test_tensors_come_back_bit_for_bit(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "float": torch.randn(2, 3, 4, generator=generator),
        "tiny": torch.tensor([1e-45, -0.0, 3.4e38, 1 / 3]),
        "double": torch.randn(5, generator=generator, dtype=torch.float64),
        "bfloat16": torch.randn(5, generator=generator).bfloat16(),
        "half": torch.randn(5, generator=generator).half(),
        "generator.state": generator.get_state(),  # uint8
        "epoch": torch.tensor(2**40 + 1),  # int64, no dimension
        "masks": torch.tensor([[True, False]]),
        "empty": torch.zeros(0, 3),
        "channels last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "part": torch.arange(10.0)[3:7:2],
        "trained": torch.ones(2, requires_grad=True) * 2,
    }
    save_tensors(tmp_path / "a.safetensors", tensors)
    loaded = load_tensors(tmp_path / "a.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].shape == tensor.shape
        assert torch.equal(loaded[name], tensor)
        assert not loaded[name].requires_grad
    assert torch.signbit(loaded["tiny"][1])
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_generator_goes_on_where_it_was(tmp_path):
    generator = torch.Generator().manual_seed(7)
    torch.rand(1000, generator=generator)
    save_tensors(tmp_path / "a", {"generator": generator.get_state()})
    expected = torch.rand(10, generator=generator)
    other = torch.Generator()
    other.set_state(load_tensors(tmp_path / "a")["generator"])
    assert torch.equal(torch.rand(10, generator=other), expected)


def test_networks_come_back(tmp_path):
    """Two networks in one file: batch statistics and the vectors of spectral norm included."""
    config = AttentionConfig(encoder="resnet18", width=2, latent=2)
    torch.manual_seed(0)
    networks = [(AttentionNetwork(config), Discriminator(4, 32, 4)) for _ in range(2)]
    x = torch.rand(4, 3, 32, 32)
    networks[0][0].train()(x)
    networks[0][1].train()(torch.rand(4, 4, 32, 32))
    path = tmp_path / "both.safetensors"
    save_tensors(path, module_tensors("network", networks[0][0]) | module_tensors("discriminator", networks[0][1]))
    for name, network in zip(("network", "discriminator"), networks[1], strict=True):
        load_module(name, network, load_tensors(path), path)
    for saved, loaded in zip(*networks, strict=True):
        state = loaded.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in saved.state_dict().items())
    assert torch.equal(networks[0][0].eval()(x).a_gen, networks[1][0].eval()(x).a_gen)


@pytest.mark.parametrize("fused", [False, True])  # fused, as on CUDA, it asks for moments in its parameters' layout
def test_an_optimizer_takes_the_same_next_steps(fused, tmp_path):
    x, path = torch.rand(8, 2, 3, 3, generator=torch.Generator().manual_seed(0)), tmp_path / "state.safetensors"

    def made(seed):
        module = small(seed).to(memory_format=torch.channels_last)
        return module, torch.optim.Adam(module.parameters(), 1e-2, (0.5, 0.999), fused=fused)

    def steps(module, optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            module(x).square().mean().backward()
            optimizer.step()

    module, optimizer = made(1)
    steps(module, optimizer)
    save_tensors(path, module_tensors("module", module) | optimizer_tensors("optimizer_g", optimizer))
    steps(module, optimizer)

    resumed, other = made(2)
    tensors = load_tensors(path)
    load_module("module", resumed, tensors, path)
    load_optimizer("optimizer_g", other, tensors, path)
    steps(resumed, other)
    for (name, value), again in zip(module.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(value, again), name

    forgetful, fresh = made(2)
    load_module("module", forgetful, tensors, path)
    steps(forgetful, fresh)
    assert not torch.equal(forgetful[0].weight, module[0].weight), "without its state it would step elsewhere"


def test_an_optimizer_that_has_not_stepped_has_no_state(tmp_path):
    optimizer = torch.optim.Adam(small().parameters(), 0.5)
    assert optimizer_tensors("o", optimizer) == {}
    load_optimizer("o", optimizer, {"other.0.step": torch.tensor(1.0)}, tmp_path)
    assert optimizer_tensors("o", optimizer) == {}
    assert optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.update({"o.0.exp_avg": torch.zeros(3, 2, 3)}),
        lambda t: t.update({"o.0.exp_avg": torch.tensor(0.0)}),
        lambda t: t.update({"o.0.step": torch.ones(2)}),
        lambda t: t.update({"o.9.step": torch.tensor(1.0)}),
        lambda t: t.update({"o.weight": torch.tensor(1.0)}),
    ],
)
def test_an_optimizer_of_another_model_is_refused(change, tmp_path):
    module = small()
    optimizer = torch.optim.Adam(module.parameters(), 0.5)
    module(torch.rand(8, 2, 3, 3)).mean().backward()
    optimizer.step()
    tensors = optimizer_tensors("o", optimizer)
    load_optimizer("o", optimizer, tensors, tmp_path / "a")
    change(tensors)
    with pytest.raises(CheckpointError, match=r"another model: o\.\w+.* is \(.*\); use the config") as raised:
        load_optimizer("o", optimizer, tensors, tmp_path / "a")
    assert str(tmp_path / "a") in str(raised.value)
    tensors = optimizer_tensors("o", optimizer)
    del tensors["o.1.exp_avg_sq"]
    with pytest.raises(CheckpointError, match=r"a lacks o\.1\.exp_avg_sq; restore it"):
        load_optimizer("o", optimizer, tensors, tmp_path / "a")


def test_json_round_trip(tmp_path):
    values = {"a": 1, "b": [0.1, None, True], "c": {"d": "é"}}
    save_json(tmp_path / "a.json", values)
    assert load_json(tmp_path / "a.json") == values
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
