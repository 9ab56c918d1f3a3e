"""What is saved comes back bit for bit, and a write that fails leaves the old file whole."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import processes
from made import small

from attnad import checkpoint
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
from attnad.config import AttentionConfig
from attnad.errors import CheckpointError
from attnad.models import AttentionNetwork, Discriminator


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


def test_two_writers_of_one_file_do_not_meet(tmp_path, monkeypatch):
    """The second begins and ends while the first has written and not yet renamed; it sweeps, too, as a process does."""
    path, flush, inner = tmp_path / "a.json", os.fsync, []

    def also(descriptor: int) -> None:
        flush(descriptor)
        if not inner:
            inner.append(True)
            monkeypatch.setattr(checkpoint, "_swept", set(), raising=False)
            save_json(path, {"by": "the second"})
            assert load_json(path) == {"by": "the second"}

    monkeypatch.setattr("attnad.checkpoint.os.fsync", also)
    save_json(path, {"by": "the first"})
    assert load_json(path) == {"by": "the first"}
    assert list(tmp_path.iterdir()) == [path]


def test_many_processes_write_one_file_and_it_is_always_whole(tmp_path):
    path = tmp_path / "a.json"
    save_json(path, {"by": -1})
    writers = [processes.Process(target=write_often, args=(path, i)) for i in range(3)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert load_json(path)["by"] in range(-1, 3)
    assert [writer.exitcode for writer in writers] == [0] * 3
    assert list(tmp_path.iterdir()) == [path]


def write_often(path: Path, number: int) -> None:
    for i in range(100):
        checkpoint._swept.clear()
        save_json(path, {"by": number, "filling": "x" * i})


def test_what_a_killed_process_has_left_goes_with_the_next_ones_first_write(tmp_path):
    (tmp_path / ".mine.writing").write_text("a person's file")
    for _ in range(2):
        assert ended(write_and_die, tmp_path / "a.json") == -signal.SIGKILL
        assert len(list(tmp_path.glob(".*.writing"))) == 2, "the second removes what the first has left"
    assert ended(save_json, tmp_path / "b.json", {}) == 0
    assert {path.name for path in tmp_path.iterdir()} == {".mine.writing", "b.json"}


def ended(target: Callable, *arguments: Any) -> int | None:
    """Call a function in a process and say how that ended."""
    process = processes.Process(target=target, args=arguments)
    process.start()
    process.join(60)
    return process.exitcode


def write_and_die(path: Path) -> None:
    checkpoint.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    save_json(path, {"a": 1})


def test_a_link_in_the_way_is_not_followed(tmp_path, monkeypatch):
    """Whoever can foresee the name could else have another file written over."""
    target = tmp_path / "precious"
    target.write_text("kept")
    monkeypatch.setattr("secrets.token_hex", lambda n: "0" * 2 * n)
    for name in (".0000000000000000.writing", ".a.json.writing"):
        (tmp_path / name).symlink_to(target)
    with pytest.raises(OSError, match="File exists"):
        save_json(tmp_path / "a.json", {"a": 1})
    assert target.read_text() == "kept"


def test_a_file_has_the_permissions_that_any_new_file_has(tmp_path):
    before = os.umask(0o027)
    try:
        save_json(tmp_path / "a.json", {})
        (tmp_path / "plain").write_text("")
    finally:
        os.umask(before)
    modes = {(tmp_path / name).stat().st_mode & 0o777 for name in ("a.json", "plain")}
    assert modes == {0o640}


def test_the_longest_name_that_a_disk_takes_is_written(tmp_path):
    path = tmp_path / ("x" * 250 + ".json")
    save_json(path, {})
    assert load_json(path) == {}
