"""Files that a run leaves: safetensors for weights and training state, JSON for configuration and results.

Every file is written whole or not at all and carries a SHA-256 of what it holds, so that one flipped bit is refused. A
file of an earlier version carries none and is read as it is. No pickle is ever read.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.overrides import TorchFunctionMode

from attnad.errors import CheckpointError, TrainingError, shown

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

# The most bytes that are read of a file, so that none can fill the memory; none that we write comes near.
JSON_BYTES = 2**24  # run.json has a number for each held-out image: of seven million photographs
TABLE_BYTES = 2**29  # log.csv and scores.csv: millions of lines
PICTURE_BYTES = 2**30  # 100 megapixels of four colours with 16 bits, which nothing has compressed
TENSOR_BYTES = 8 * 10**9  # to fit a model of so many needs about five times as much memory
HEADER_BYTES = 2**20  # names, types and shapes of some thousand tensors
# Names in tensors' names that were others in files of earlier versions.
FORMER = {"reach": "map_scale", "judges": "discriminators", "places": "gaussians"}
Module = TypeVar("Module", bound=nn.Module)


def read_file(path: Path, most: int) -> bytes:
    """Read a plain file of at most so many bytes: a pipe never ends, and /dev/zero fills the memory.

    Raises CheckpointError, naming the file, on anything else, and OSError as `open` does.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise CheckpointError(f"{path} cannot be read: it is a folder, a pipe or a device; put the file itself there")
    # What becomes a pipe in between keeps nobody waiting.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise CheckpointError(
                f"{path} cannot be read: it has {size / 1e6:,.0f} MB, and it needs no more than {most / 1e6:,.0f}; "
                "restore it"
            )
        return file.read(size)


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file whole or not at all: to a hidden neighbour, flushed to the disk, then renamed over the old one.

    Several processes may write one file at once: the last one's stays. Raises OSError, naming the file, where the disk
    is full or the folder cannot be written to; the old file stays.
    """
    content, temporary = content.encode() if isinstance(content, str) else content, None
    try:
        temporary, descriptor = _neighbour(path.parent)
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            if fcntl is None:
                file.close()  # Windows renames no open file; elsewhere it is locked until it has its name
            os.replace(temporary, path)
    except BaseException as error:  # Ctrl-C too
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()
        if isinstance(error, OSError):  # of a full disk, which names no file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


_swept: set[Path] = set()  # folders in which this process has removed what killed ones had left


def _neighbour(folder: Path) -> tuple[Path, int]:
    """Make a hidden file of a random name, where nobody can have put a link, and lock it: path and descriptor."""
    if folder not in _swept:
        _swept.add(folder)
        _sweep(folder)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    while True:
        path = folder / f".{secrets.token_hex(8)}.writing"
        descriptor = os.open(path, flags, 0o666)  # less the umask, as any other file
        if _lock(descriptor, wait=True) is None or path.exists():  # else it was swept before it was locked
            return path, descriptor
        os.close(descriptor)


def _sweep(folder: Path) -> None:
    """Remove what killed processes have left half written in a folder: what nobody has locked."""
    for path in folder.glob(".*.writing"):
        if re.fullmatch(r"\.[0-9a-f]{16}\.writing", path.name) and path.is_file() and not path.is_symlink():
            with suppress(OSError):  # another has removed it, or may
                descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
                try:
                    if _lock(descriptor, wait=False):
                        path.unlink()
                finally:
                    os.close(descriptor)


def _lock(descriptor: int, *, wait: bool) -> bool | None:
    """Lock an open file until it is closed: whether it could be; None where system or disk has no such locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def save_json(path: Path, values: dict[str, Any]) -> None:
    """Write plain values as JSON, atomically."""
    write_atomically(path, json.dumps(values | {"sha256": _json_sum(values)}, indent=2) + "\n")


def _json_sum(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def load_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of a run; raises CheckpointError, naming the file, where it is missing or damaged."""
    try:
        values = json.loads(read_file(path, JSON_BYTES).decode())
        if not isinstance(values, dict):
            raise ValueError("it holds no table of values")
        same = values.pop("sha256", None) in (None, _json_sum(values))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; is {path.parent} the folder of a finished run?") from error
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}); restore it or train again") from error
    if not same:
        raise CheckpointError(f"{path} was changed (its SHA-256 is another); restore it or train again")
    return values


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write named tensors as safetensors, atomically."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    write_atomically(path, save_safetensors(tensors, {"sha256": _tensors_sum(tensors)}))


def _tensors_sum(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values of contiguous tensors on the CPU, whatever their order."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def load_tensors(path: Path, most: int = TENSOR_BYTES) -> dict[str, Tensor]:
    """Read named tensors, of at most so many bytes together, onto the CPU.

    Raises CheckpointError, naming the file, where it is missing, damaged, or holds a value that is not finite.
    """
    try:
        content = read_file(path, most + HEADER_BYTES)
        tensors = load_safetensors(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        if odd := [name for name in tensors if not name.isprintable()]:
            raise ValueError(f"it has a tensor {odd[0]!r}")
        if "__metadata__" in header and header["__metadata__"].get("sha256") != _tensors_sum(tensors):
            raise ValueError("its SHA-256 is another")
        not_finite = [k for k, v in tensors.items() if v.is_floating_point() and not v.isfinite().all()]
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; is {path.parent} the folder of a finished run?") from error
    except (CheckpointError, MemoryError):
        raise
    except Exception as error:  # safetensors and PyTorch raise nearly every kind of error on a damaged file
        raise CheckpointError(f"{path} is damaged ({shown(error)}); restore it or train again") from error
    if not_finite:
        raise CheckpointError(f"{path}: {not_finite[0]} holds a value that is not finite; restore it or train again")
    return {".".join(FORMER.get(part, part) for part in name.split(".")): value for name, value in tensors.items()}


def outline(build: Callable[[], Module]) -> Module:
    """Build a module whose tensors have shapes and no memory yet, until `load_modules` gives them values.

    So a configuration from somebody else takes no more memory than the weights that come with it. Buffers that no file
    keeps are the module's own to make, on the CPU.
    """
    with torch.device("meta"), _NothingNormalised():
        return build()


class _NothingNormalised(TorchFunctionMode):
    """Spectral norm begins with 15 iterations, which take a second where there are no values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is normalize:
            return args[0] if kwargs["out"] is None else kwargs["out"]
        return func(*args, **kwargs)


def bytes_of(module: nn.Module) -> int:
    """Bytes of all values that a file keeps of a module."""
    return sum(value.numel() * value.element_size() for value in module.state_dict().values())


def check_bytes(module: nn.Module, values: dict[str, Any], *names: str) -> None:
    """Raise TrainingError where a module would take too much memory, by those of the values that have these names."""
    if (needed := bytes_of(module)) > TENSOR_BYTES:
        what = ", ".join(f"{name} {values[name]}" for name in names if name in values)
        raise TrainingError(
            f"{what}: what is learned would need {needed / 1e9:.0f} GB, and {TENSOR_BYTES / 1e9:.0f} is the most; "
            "choose smaller values"
        )


def load_modules(path: Path, **modules: nn.Module) -> None:
    """Fill modules from a file that is no larger than they are, each by its name in the file.

    Raises CheckpointError as `load_tensors` and `load_module` do.
    """
    tensors = load_tensors(path, min(TENSOR_BYTES, sum(map(bytes_of, modules.values()))))
    for name, module in modules.items():
        load_module(name, module, tensors, path)


def module_tensors(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    """Name a module's parameters and buffers `prefix.name`."""
    return {f"{prefix}.{name}": value for name, value in module.state_dict().items()}


def load_module(prefix: str, module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Fill a module, which may be an `outline`, from tensors named `prefix.name`.

    Raises CheckpointError, naming the file and the tensor, where names, shapes or types do not match: another
    architecture's weights are refused.
    """
    wanted = module.state_dict()
    given = {name.removeprefix(f"{prefix}."): v for name, v in tensors.items() if name.startswith(f"{prefix}.")}
    if odd := sorted(wanted.keys() ^ given.keys()):
        raise CheckpointError(
            f"{path} is of another model: {prefix}.{odd[0]} and {len(odd) - 1} more do not match; use the config.json "
            "that it was trained with"
        )
    for name, value in wanted.items():
        if (value.shape, value.dtype) != (given[name].shape, given[name].dtype):
            raise CheckpointError(
                f"{path} is of another model: {prefix}.{name} is {given[name].dtype} {tuple(given[name].shape)}, "
                f"not {value.dtype} {tuple(value.shape)}; use the config.json that it was trained with"
            )
    if any(value.is_meta for value in wanted.values()):  # cloned: where safetensors has put them, none is aligned
        module.load_state_dict({name: value.clone() for name, value in given.items()}, assign=True)
    else:
        module.load_state_dict(given)


def optimizer_tensors(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Name an optimiser's state `prefix.parameter.key`."""
    state = optimizer.state_dict()["state"]
    return {f"{prefix}.{i}.{key}": value for i, values in state.items() for key, value in values.items()}


def load_optimizer(prefix: str, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], path: Path) -> None:
    """Fill an optimiser's state from tensors named as `optimizer_tensors` names them.

    Raises CheckpointError, naming the file and the tensor, where one is of no parameter, of another shape, or missing.
    """
    parameters = {str(i): p for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(f"{prefix}."):
            index, _, key = name.removeprefix(f"{prefix}.").partition(".")
            if index not in parameters or value.shape != (() if key == "step" else parameters[index].shape):
                raise CheckpointError(
                    f"{path} is of another model: {name} is {tuple(value.shape)}; use the config.json that it was "
                    "trained with"
                )
            if key != "step":  # a fused step, on CUDA, asks for moments that lie in memory as their parameter does
                value = torch.empty_like(parameters[index], dtype=value.dtype, device=value.device).copy_(value)
            state.setdefault(int(index), {})[key] = value
    keys = set().union(*state.values())
    for number, values in state.items():
        if missing := keys - values.keys():
            raise CheckpointError(f"{path} lacks {prefix}.{number}.{min(missing)}; restore it or train again")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
