"""Configurations and checkpoints, damaged in many ways: each is read rightly or refused by name."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from faults import EDITS, generated, mutated, refused
from hypothesis import given
from hypothesis import strategies as st
from made import WEIGHTS

from attnad.config import PaperConfig, from_dict, to_dict
from attnad.run.run import load_run, train_run
from attnad.training import storage
from attnad.training.storage import load_json, load_tensors, save_json, save_tensors

ODD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.sampled_from([2**31, 2**64, -(2**70), 10**400, 0, 1, 48]), st.floats(),
    st.sampled_from([1e300, 5e-324]), st.text(max_size=4), st.lists(st.integers(), max_size=3), st.just({}),
)  # fmt: skip


def configs(folder: Path, n: int) -> set[bytes]:
    """config.json and run.json: bytes changed, values changed under a right checksum, and other versions' tables."""
    run, seen = folder / "run", set()
    contents = {name: (run / name).read_bytes() for name in ("config.json", "run.json")}
    was = load_run(run, device="cpu")

    def read(name: str) -> Any:
        seen.add((run / name).read_bytes())
        try:
            return refused(lambda: load_run(run, device="cpu"), *(run / each for each in (*contents, *WEIGHTS)))
        finally:
            (run / name).write_bytes(contents[name])

    @generated(n // 2)
    @given(name=st.sampled_from(sorted(contents)), edits=EDITS)
    def check_bytes(name: str, edits: list) -> None:
        (run / name).write_bytes(mutated(contents[name], edits))
        if (found := read(name)) is not None:
            assert found.config == was.config
            assert {key: value for key, value in found.facts.items() if key in was.facts} == was.facts

    for name, old, new in (("config.json", b'"seed": 0', b'"seed": 1'), ("run.json", b'"n_train": 1', b'"n_train": 9')):
        (run / name).write_bytes(contents[name].replace(old, new))
        assert (run / name).read_bytes() != contents[name]
        assert read(name) is None, "another number, and nothing else"
    for key, value in (("width", 10**6), ("learning_rate", -1.0), ("epochs", 10**9), ("adv_weight", 10**400)):
        values = load_json(run / "config.json")
        values["attention"][key] = value
        save_json(run / "config.json", values)
        assert read("config.json") is None, f"{key} {value}"

    tables = [(), ("augment",), ("attention",), ("adgan",)]

    @generated(n // 2)
    @given(data=st.data(), value=ODD, how=st.sampled_from(["set", "set", "set", "drop", "add"]))
    def check_values(data: Any, value: Any, how: str) -> None:
        values = load_json(run / "config.json")
        table = values
        for key in data.draw(st.sampled_from(tables)):
            table = table[key]
        key = data.draw(st.sampled_from(sorted(table)))
        if how == "set":
            table[key] = value
        elif how == "drop":
            del table[key]
        else:
            table[f"{key}_2"] = value
        save_json(run / "config.json", values)
        if (found := read("config.json")) is not None:  # as it says, to the letter
            assert how == "set"
            assert json.dumps(to_dict(found.config), sort_keys=True) == json.dumps(values, sort_keys=True)

    check_bytes()
    check_values()
    return seen


def checkpoints(folder: Path, n: int) -> set[bytes]:
    """Weights and training state: bytes changed, and tensors changed under a right checksum."""
    run, going, seen = folder / "run", folder / "going", set()
    config = from_dict(PaperConfig, load_json(run / "config.json"))
    longer = replace(config, attention=replace(config.attention, epochs=9))
    going.mkdir()
    state = going / "attention.state.safetensors"
    with suppress(KeyboardInterrupt):
        original, storage.os.replace = os.replace, None

        def stop(source: Path, target: Path) -> None:
            original(source, target)
            if Path(target) == state:
                raise KeyboardInterrupt

        storage.os.replace = stop
        train_run(longer, going, device="cpu", save_seconds=0, progress=False)
    storage.os.replace = original
    paths = [run / name for name in WEIGHTS] + [state]
    contents = {path: path.read_bytes() for path in paths}
    tensors = {path: load_tensors(path) for path in paths}

    def use(path: Path) -> Any:
        seen.add(path.read_bytes())
        try:
            if path == state:
                return refused(lambda: train_run(longer, going, device="cpu", progress=False), path)
            return refused(lambda: load_run(run, device="cpu"), path)
        finally:
            path.write_bytes(contents[path])

    @generated(n // 2)
    @given(path=st.sampled_from(paths), edits=EDITS)
    def check_bytes(path: Path, edits: list) -> None:
        path.write_bytes(mutated(contents[path], edits))
        seen.add(path.read_bytes())
        found = refused(lambda: load_tensors(path), path)
        if found is not None:
            assert found.keys() == tensors[path].keys()
            assert all(torch.equal(value, tensors[path][name]) for name, value in found.items())
        path.write_bytes(contents[path])

    @generated(n // 2)
    @given(data=st.data(), how=st.sampled_from(["nan", "inf", "shape", "longer", "type", "drop", "rename"]))
    def check_tensors(data: Any, how: str) -> None:
        path = data.draw(st.sampled_from(paths))
        changed = dict(tensors[path])
        name = data.draw(st.sampled_from(sorted(changed)))
        value = changed.pop(name)
        floating = value.is_floating_point()
        if how in ("nan", "inf"):
            value = value.clone() if floating else value.double()
            value.view(-1)[data.draw(st.integers(0, value.numel() - 1))] = float(how)
        elif how == "shape":
            value = value[None]
        elif how == "longer":
            value = torch.cat([value.reshape(-1)] * 2)
        elif how == "type":
            value = value.double() if "optimizer" not in name and name != "epoch" else value[None]
        if how != "drop":
            changed[f"{name}_" if how == "rename" else name] = value
        save_tensors(path, changed)
        assert use(path) is None, f"{path}: {name} {how}"

    check_bytes()
    check_tensors()
    for path in paths:  # another architecture's, and another file's
        path.write_bytes(contents[next(other for other in paths if other != path)])
        assert use(path) is None
    wider = replace(
        config, attention=replace(config.attention, width=8, epochs=1), adgan=replace(config.adgan, epochs=1)
    )
    train_run(wider, folder / "wider", device="cpu", progress=False)
    for name in WEIGHTS:
        shutil.copy(folder / "wider" / name, run / name)
        assert use(run / name) is None
    return seen
