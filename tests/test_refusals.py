"""Files that are damaged, planted, of another model or of another version are refused by name."""

from __future__ import annotations

import json
import pickle
from dataclasses import is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made import small
from safetensors.torch import save_file
from torch import nn

from attnad.config import PaperConfig, from_dict, to_dict
from attnad.detectors import recipe
from attnad.errors import CheckpointError
from attnad.training.storage import (
    load_json,
    load_module,
    load_tensors,
    module_tensors,
    save_json,
    save_tensors,
)

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


@settings(max_examples=50)
@given(config=configs(PaperConfig))
def test_configs_survive_json(config):
    values = json.loads(json.dumps(to_dict(config)))
    assert from_dict(PaperConfig, values) == config
    assert from_dict(PaperConfig, to_dict(config)) == config
    assert hash(from_dict(PaperConfig, values)) == hash(config), "lists became tuples again"


@pytest.mark.parametrize("name", ["quick", "paper"])
def test_recipes_survive_json(name):
    config = recipe(name, "textures")
    assert from_dict(PaperConfig, json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize("part", [(), ("augment",), ("attention",), ("adgan",)], ids=".".join)
def test_unknown_and_missing_keys_are_named(part):
    for change in (lambda t: t.update(typo=1), lambda t: t.pop(next(iter(t)))):
        values = to_dict(PaperConfig())
        table = values
        for key in part:
            table = table[key]
        before = set(table)
        change(table)
        (odd,) = before ^ set(table)
        with pytest.raises(ValueError, match=rf"\b{odd}\b"):
            from_dict(PaperConfig, values)


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
    values = to_dict(PaperConfig())
    *parts, last = field.split(".")
    table = values
    for key in parts:
        table = table[key]
    assert last in table
    table[last] = value
    with pytest.raises(ValueError, match=rf"\.{last} cannot be") as raised:
        from_dict(PaperConfig, values)
    assert len(str(raised.value).splitlines()) == 1


def test_whole_numbers_do_for_floats():
    values = to_dict(PaperConfig())
    values["attention"]["adv_weight"], values["augment"]["box_area"] = 2, [0, 1]
    config = from_dict(PaperConfig, values)
    assert config.attention.adv_weight == 2
    assert config.augment.box_area == (0, 1)


@pytest.mark.parametrize("value", [None, [], "text", 3])
def test_what_is_no_table_is_refused(value):
    with pytest.raises(ValueError, match="PaperConfig needs a table"):
        from_dict(PaperConfig, value)
    with pytest.raises(ValueError, match="ADGANConfig needs a table"):
        from_dict(PaperConfig, to_dict(PaperConfig()) | {"adgan": value})
