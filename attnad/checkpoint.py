"""Files that a run leaves: safetensors for weights and training state, JSON for configuration and results.

Every file is written whole or not at all, and no pickle is ever read.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn


class CheckpointError(RuntimeError):
    """A file of a run is missing, damaged, or of another model."""


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file whole or not at all: to a neighbour first, flushed to the disk, then renamed over the old one."""
    content = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.writing")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def save_json(path: Path, values: dict[str, Any]) -> None:
    """Write plain values as JSON, atomically."""
    write_atomically(path, json.dumps(values, indent=2) + "\n")


def load_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of a run; raises CheckpointError, naming the file, where it is missing or damaged."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; is {path.parent} the folder of a finished run?") from error
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}); restore it or train again") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds no table of values; restore it or train again")
    return values


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write named tensors as safetensors, atomically."""
    write_atomically(path, save_safetensors({k: v.detach().cpu().contiguous() for k, v in tensors.items()}))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read named tensors onto the CPU.

    Raises CheckpointError, naming the file, where it is missing, damaged, or holds a value that is not finite.
    """
    try:
        tensors = load_safetensors(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; is {path.parent} the folder of a finished run?") from error
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); restore it or train again") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise CheckpointError(f"{path}: {name} holds a value that is not finite; restore it or train again")
    return tensors


def module_tensors(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    """Name a module's parameters and buffers `prefix.name`."""
    return {f"{prefix}.{name}": value for name, value in module.state_dict().items()}


def load_module(prefix: str, module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Fill a module from tensors named `prefix.name`.

    Raises CheckpointError, naming the file and the tensor, where names, shapes or types do not match: another
    architecture's weights are refused.
    """
    wanted = module.state_dict()
    given = {name.removeprefix(f"{prefix}."): v for name, v in tensors.items() if name.startswith(f"{prefix}.")}
    if odd := sorted(wanted.keys() ^ given.keys()):
        raise CheckpointError(f"{path} is of another model: {prefix}.{odd[0]} and {len(odd) - 1} more do not match")
    for name, value in wanted.items():
        if (value.shape, value.dtype) != (given[name].shape, given[name].dtype):
            raise CheckpointError(
                f"{path} is of another model: {prefix}.{name} is {given[name].dtype} {tuple(given[name].shape)}, "
                f"not {value.dtype} {tuple(value.shape)}; use the config.json that it was trained with"
            )
    module.load_state_dict(given)


def optimizer_tensors(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Name an optimiser's state `prefix.parameter.key`."""
    state = optimizer.state_dict()["state"]
    return {f"{prefix}.{i}.{key}": value for i, values in state.items() for key, value in values.items()}


def load_optimizer(prefix: str, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Fill an optimiser's state from tensors named as `optimizer_tensors` names them."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(f"{prefix}."):
            index, key = name.removeprefix(f"{prefix}.").split(".")
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
