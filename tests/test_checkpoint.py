"""Files of a run: written whole or not at all, read back bit for bit, refused in one clear line if anything is off."""

from __future__ import annotations

import json
import pickle
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from attnad.checkpoint import (
    load_json,
    load_module,
    load_optimizer,
    load_tensors,
    module_tensors,
    optimizer_tensors,
    save_json,
    save_tensors,
    write_atomically,
)
from attnad.config import AttentionConfig, RunConfig, from_dict, recipe, to_dict
from attnad.errors import CheckpointError
from attnad.models import AttentionNetwork, Discriminator


def small(seed: int = 0, channels: int = 3) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(2, channels, 3), nn.BatchNorm2d(channels), nn.Flatten(), nn.Linear(channels, 1))


@contextmanager
def disk_of(size: int):
    """No file can grow beyond `size` bytes here, as on a full disk."""
    resource = pytest.importorskip("resource", reason="this system has no limits of file size")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


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


def test_an_optimizer_takes_the_same_next_steps(tmp_path):
    x, path = torch.rand(8, 2, 3, 3, generator=torch.Generator().manual_seed(0)), tmp_path / "state.safetensors"

    def made(seed):
        module = small(seed).to(memory_format=torch.channels_last)
        return module, torch.optim.Adam(module.parameters(), 1e-2, (0.5, 0.999))

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


# Written whole or not at all


def test_a_write_that_fails_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "a.safetensors"
    old, new = {"a": torch.arange(100)}, {"a": torch.arange(100_000)}
    save_tensors(path, old)
    before = path.read_bytes()
    with disk_of(10_000), pytest.raises(OSError, match=r"too large|No space"):
        save_tensors(path, new)
    assert path.read_bytes() == before
    assert torch.equal(load_tensors(path)["a"], old["a"])
    save_tensors(path, new)  # what the failed write left behind is no obstacle
    assert torch.equal(load_tensors(path)["a"], new["a"])
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_no_half_of_a_new_file(tmp_path):
    path = tmp_path / "a.json"
    with disk_of(100), pytest.raises(OSError, match=r"too large|No space"):
        save_json(path, {"a": "long" * 1000})
    assert not path.exists()
    with pytest.raises(CheckpointError, match="missing"):
        load_json(path)


def test_text_and_bytes_are_written_as_they_are(tmp_path):
    write_atomically(tmp_path / "a", b"\r\n\x00\xff")
    assert (tmp_path / "a").read_bytes() == b"\r\n\x00\xff"
    write_atomically(tmp_path / "a", "é\n")
    assert (tmp_path / "a").read_bytes() == b"\xc3\xa9\n"


@pytest.mark.parametrize("how", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_a_write_that_stops_names_its_file_and_leaves_nothing_behind(how, tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    save_json(path, {"a": 1})

    def stop(descriptor: int) -> None:
        raise how

    monkeypatch.setattr("attnad.checkpoint.os.fsync", stop)
    with pytest.raises(type(how)) as raised:
        save_json(path, {"a": 2})
    assert list(tmp_path.iterdir()) == [path]
    assert load_json(path) == {"a": 1}
    if isinstance(how, OSError):
        assert raised.value.filename == str(path)
        assert raised.value.errno == 28


# Refused


def test_every_truncation_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_tensors(path, module_tensors("m", nn.Linear(2, 3)))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError) as raised:
            load_tensors(path)
        assert str(path) in str(raised.value)
        assert len(str(raised.value).splitlines()) == 1
    path.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match="damaged"):
        load_tensors(path)


def test_every_flipped_bit_of_the_header_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_tensors(path, module_tensors("m", nn.Linear(2, 3)))
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for byte in range(header):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[byte] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError) as raised:
                load_module("m", nn.Linear(2, 3), load_tensors(path), path)
            assert str(path) in str(raised.value)


def test_every_flipped_bit_of_the_values_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"a": torch.tensor([1.0, 2.0]), "n": torch.tensor(3), "empty": torch.zeros(0, 3)})
    whole = path.read_bytes()
    for byte in range(8 + int.from_bytes(whole[:8], "little"), len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[byte] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError, match=r"a\.safetensors is damaged \(its SHA-256 is another\); restore"):
                load_tensors(path)


def test_every_flipped_bit_of_json_is_refused_or_changes_nothing(tmp_path):
    path, values = tmp_path / "a.json", {"threshold": 0.25, "n": 12, "name": "b", "list": [True, None]}
    save_json(path, values)
    whole, as_before = path.read_bytes(), 0
    for byte in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[byte] ^= 1 << bit
            path.write_bytes(damaged)
            found, message = values, str(path)
            try:
                found = load_json(path)
                as_before += 1  # white space, or the sum's own name
            except CheckpointError as error:
                message = str(error)
            assert str(path) in message
            assert {name: value for name, value in found.items() if len(str(value)) < 64} == values
    assert as_before < 0.05 * 8 * len(whole)


def test_files_without_a_sum_are_read_as_they_are(tmp_path):
    """So were those of earlier versions."""
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert torch.equal(load_tensors(tmp_path / "a.safetensors")["a"], torch.ones(2))
    assert load_json(tmp_path / "a.json") == {"a": 1}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_values_that_are_not_finite_are_refused(value, dtype, tmp_path):
    path = tmp_path / "a.safetensors"
    bad = torch.ones(3, 4, dtype=dtype)
    bad[2, 1] = value
    save_tensors(path, {"good": torch.ones(2), "m.weight": bad, "whole": torch.tensor([7])})
    with pytest.raises(CheckpointError, match=r"a\.safetensors: m\.weight .*not finite"):
        load_tensors(path)


@pytest.mark.parametrize("load", [load_tensors, load_json])
def test_missing_files_and_folders_are_named(load, tmp_path):
    for path, problem in [(tmp_path / "run" / "a", "missing"), (tmp_path, "damaged|cannot be read")]:
        with pytest.raises(CheckpointError, match=problem) as raised:
            load(path)
        assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"a": 1',
        b'{"a": 1}}',
        b"null",
        b"[]",
        b"3",
        b'"text"',
        b"\xff\xfe{}",
        b"[" * 100_000,
        b"\x80\x04}.",
    ],
    ids=lambda content: repr(content[:10]),
)
def test_damaged_json_is_named(content, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as raised:
        load_json(path)
    assert str(path) in str(raised.value)


class Trap:
    """Leaves a file behind if it is ever unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save", [lambda o, p: p.write_bytes(pickle.dumps(o)), torch.save])
@pytest.mark.parametrize("load", [load_tensors, load_json])
def test_a_pickle_is_refused_and_not_run(save, load, tmp_path):
    path, trace = tmp_path / "a.safetensors", tmp_path / "it ran"
    save({"m.weight": Trap(trace)}, path)
    with pytest.raises(CheckpointError) as raised:
        load(path)
    assert str(path) in str(raised.value)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Trap(trace)))
    assert trace.exists(), "the trap does not work"


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda t: t.pop("m.3.weight"), "m.3.weight"),
        (lambda t: t.update({"m.4.weight": torch.ones(1)}), "m.4.weight"),
        (lambda t: t.update(module_tensors("m", small(channels=4))), "m.0.weight"),
        (lambda t: t.update({"m.3.bias": torch.ones(())}), "m.3.bias"),
        (lambda t: t.update({"m.3.bias": torch.ones(1).double()}), "m.3.bias"),
        (lambda t: t.update({"m.1.num_batches_tracked": torch.tensor(1.0)}), "m.1.num_batches_tracked"),
        (dict.clear, "m.0.bias"),
    ],
)
def test_another_models_tensors_are_refused(change, name, tmp_path):
    module, tensors, path = small(1), module_tensors("m", small(2)), tmp_path / "a.safetensors"
    before = {key: value.clone() for key, value in module.state_dict().items()}
    change(tensors)
    with pytest.raises(CheckpointError, match=r"another model: " + name.replace(".", r"\.")) as raised:
        load_module("m", module, tensors, path)
    assert str(path) in str(raised.value)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_tensors_of_other_modules_are_passed_over(tmp_path):
    module, saved = small(1), small(2)
    tensors = module_tensors("m", saved) | module_tensors("mm", small(3)) | module_tensors("other.m", small(4))
    load_module("m", module, tensors, tmp_path)
    assert torch.equal(module[0].weight, saved[0].weight)


# Configurations, as config.json keeps them

TEXT = st.text(max_size=8)
FLOAT = st.floats(allow_nan=False)
BY_HINT = {
    bool: st.booleans(),
    int: st.integers(),
    float: FLOAT,
    str: TEXT,
    str | None: st.none() | TEXT,
    tuple[int, ...]: st.lists(st.integers(), max_size=3).map(tuple),
    tuple[float, float]: st.tuples(FLOAT, FLOAT),
}


def configs(cls: type):
    hints = get_type_hints(cls).items()
    return st.builds(
        cls, **{k: configs(h) if is_dataclass(h) else BY_HINT[h] if h in BY_HINT else st.from_type(h) for k, h in hints}
    )


@settings(deadline=None, max_examples=50)
@given(config=configs(RunConfig))
def test_configs_survive_json(config):
    values = json.loads(json.dumps(to_dict(config)))
    assert from_dict(RunConfig, values) == config
    assert from_dict(RunConfig, to_dict(config)) == config
    assert hash(from_dict(RunConfig, values)) == hash(config), "lists became tuples again"


@pytest.mark.parametrize("name", ["quick", "paper"])
def test_recipes_survive_json(name):
    config = recipe(name, "textures")
    assert from_dict(RunConfig, json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize("part", [(), ("augment",), ("attention",), ("adgan",)], ids=".".join)
def test_unknown_and_missing_keys_are_named(part):
    for change in (lambda t: t.update(typo=1), lambda t: t.pop(next(iter(t)))):
        values = to_dict(RunConfig())
        table = values
        for key in part:
            table = table[key]
        before = set(table)
        change(table)
        (odd,) = before ^ set(table)
        with pytest.raises(ValueError, match=rf"\b{odd}\b"):
            from_dict(RunConfig, values)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", "64"), ("size", 64.0), ("size", True), ("size", None), ("size", [64]),
        ("seed", False), ("data", 3), ("data", None), ("normal_class", 3), ("normal_class", ["a"]),
        ("recipe", "fast"), ("image_score", None),
        ("augment.rotation", 1), ("augment.rotation", "true"), ("augment.hue", "0.2"), ("augment.hue", True),
        ("augment.grids", 2), ("augment.grids", [2, 4.0]), ("augment.grids", [2, "4"]), ("augment.grids", [True]),
        ("augment.grids", "24"), ("augment.grids", {"2": 4}),
        ("augment.box_area", [0.1]), ("augment.box_area", [0.1, 0.2, 0.3]), ("augment.box_area", [0.1, None]),
        ("attention.encoder", "resnet50"), ("attention.encoder", None), ("attention.encoder", ["resnet18"]),
        ("attention.epochs", 1.5), ("attention.learning_rate", None), ("adgan.train_features", 0),
    ],
)  # fmt: skip
def test_values_of_another_type_are_named(field, value):
    values = to_dict(RunConfig())
    *parts, last = field.split(".")
    table = values
    for key in parts:
        table = table[key]
    assert last in table
    table[last] = value
    with pytest.raises(ValueError, match=rf"\.{last} cannot be") as raised:
        from_dict(RunConfig, values)
    assert len(str(raised.value).splitlines()) == 1


def test_whole_numbers_do_for_floats():
    values = to_dict(RunConfig())
    values["attention"]["adv_weight"], values["augment"]["box_area"] = 2, [0, 1]
    config = from_dict(RunConfig, values)
    assert config.attention.adv_weight == 2
    assert config.augment.box_area == (0, 1)


@pytest.mark.parametrize("value", [None, [], "text", 3])
def test_what_is_no_table_is_refused(value):
    with pytest.raises(ValueError, match="RunConfig needs a table"):
        from_dict(RunConfig, value)
    with pytest.raises(ValueError, match="ADGANConfig needs a table"):
        from_dict(RunConfig, to_dict(RunConfig()) | {"adgan": value})
