"""Training's memory: the log of its losses, and the state from which it goes on after a kill, to the same weights."""

from __future__ import annotations

import csv
import hashlib
import io
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from attnad.errors import CheckpointError, Stopped, TrainingError
from attnad.training.storage import (
    TABLE_BYTES,
    load_module,
    load_optimizer,
    load_tensors,
    module_tensors,
    optimizer_tensors,
    read_file,
    save_tensors,
    write_atomically,
)

SAVE_SECONDS = 20.0  # training state is saved at the first end of an epoch this long after the last
stopping = threading.Event()  # once set, every training of this process saves its state after its epoch and stops


@dataclass(frozen=True)
class FitOptions:
    """Where and how a detector is fitted: nothing that decides its scores.

    data_root: folder of the data sets, for what needs more of them than normal images. stage1: a finished run whose
    stage 1 is taken over, not trained. save_seconds: between saved states of training. progress: show bars. groups: of
    copies among the images, as `attnad.data.near_copies` gives them, for a detector that leaves some out in turn.
    """

    device: torch.device
    data_root: Path | None = None
    stage1: Path | None = None
    save_seconds: float = SAVE_SECONDS
    progress: bool = True
    groups: Tensor | None = None


def fingerprint(images: Tensor) -> str:
    """SHA-256 of images, in hexadecimal digits: which data a state or a run was trained on."""
    return hashlib.sha256(images.cpu().contiguous().numpy().data).hexdigest()


def read_log(path: Path) -> list[list[str]]:
    """Lines of a log.csv without its head: stage, epoch, term, loss, seconds.

    Raises CheckpointError, naming the file, where it is missing or damaged.
    """
    try:
        _, *lines = csv.reader(read_file(path, TABLE_BYTES).decode().splitlines())
        for _, epoch, _, loss, seconds in lines:
            int(epoch), float(loss), float(seconds)
    except (OSError, ValueError, csv.Error) as error:
        raise CheckpointError(f"{path} is damaged ({error}); restore it, or remove it to go on") from error
    return lines


def write_log(path: Path, lines: Sequence[Sequence[str]]) -> None:
    """Write a log.csv whole: its head, and lines as `read_log` gives them."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("stage", "epoch", "term", "loss", "seconds"), *lines])
    write_atomically(path, text.getvalue())


def logged_seconds(path: Path) -> dict[str, float]:
    """Seconds of training by stage, over all sittings, from the log's one figure an epoch."""
    if not path.exists():  # neither stage has an epoch
        return {}
    epochs = {(stage, epoch): float(seconds) for stage, epoch, _, _, seconds in read_log(path)}
    stages = dict.fromkeys(stage for stage, _ in epochs)
    return {stage: round(sum(s for (name, _), s in epochs.items() if name == stage), 1) for stage in stages}


class Log:
    """Losses of each epoch, as lines of RUN/log.csv, written whole each time so that resuming leaves no doubles."""

    def __init__(self, path: Path | None, stage: str, terms: Sequence[str], first_epoch: int):
        self.path, self.stage, self.terms, self.lines = path, stage, terms, []
        if path is not None and path.exists():
            self.lines = [line for line in read_log(path) if line[0] != stage or int(line[1]) <= first_epoch]

    def add(self, epoch: int, losses: Sequence[float], seconds: float) -> None:
        for term, loss in zip(self.terms, losses, strict=True):
            self.lines.append([self.stage, str(epoch), term, f"{loss:.6f}", f"{seconds:.4f}"])
        if self.path is not None:
            write_log(self.path, self.lines)


class State:
    """All that a loop needs to go on after a kill, in one file: weights, optimisers, generator, epochs done.

    The file is STAGE.state.safetensors in the folder; without a folder nothing is saved.
    """

    passed = 0.0  # share of the training that has passed, from 0 to below 1: what learning rates may go by

    def __init__(
        self,
        folder: Path | None,
        stage: str,
        modules: dict[str, nn.Module],
        optimizers: dict[str, torch.optim.Optimizer],
        generator: torch.Generator,
        images: Tensor,
        save_seconds: float,
    ):
        self.folder, self.stage, self.path = folder, stage, folder and folder / f"{stage}.state.safetensors"
        self.modules, self.optimizers, self.generator, self.n = modules, optimizers, generator, len(images)
        self.save_seconds, self.saved_at = save_seconds, time.monotonic()
        self.data = torch.frombuffer(bytearray.fromhex(fingerprint(images)), dtype=torch.uint8)

    def resume(self) -> int:
        """Load the saved state, if there is one, and return the epochs done."""
        if self.path is None or not self.path.exists():
            return 0
        tensors = load_tensors(self.path)
        if missing := {"data", "epoch", "generator"} - tensors.keys():
            raise CheckpointError(f"{self.path} is no training state: it lacks {min(missing)}; choose another --out")
        if tensors["epoch"].shape != ():
            raise CheckpointError(f"{self.path} is of another version; choose another --out")
        if not torch.equal(tensors["data"], self.data):
            raise CheckpointError(
                f"{self.path} was trained on other images than these; restore the data or choose another --out"
            )
        try:
            self.generator.set_state(tensors["generator"])
        except (RuntimeError, TypeError) as error:
            raise CheckpointError(
                f"{self.path} cannot go on with {self.generator.device.type} ({error}); give the --device that it was "
                "trained on, or choose another --out"
            ) from error
        for name, module in self.modules.items():
            load_module(name, module, tensors, self.path)
        for name, optimizer in self.optimizers.items():
            load_optimizer(f"optimizer_{name}", optimizer, tensors, self.path)
        return int(tensors["epoch"])

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that a step changes, themselves and no copies, by their names in the file."""
        tensors: dict[str, Tensor] = {}
        for name, module in self.modules.items():
            tensors |= module_tensors(name, module)
        for name, optimizer in self.optimizers.items():
            tensors |= optimizer_tensors(f"optimizer_{name}", optimizer)
        return tensors

    def save(self, epoch: int, *, last: bool) -> None:
        """Save the state after an epoch, if it is time to or the epoch is the last.

        Raises TrainingError where a value of the state is not finite: what is saved is always fit to go on with; and
        Stopped once `stopping` is set, the state saved.
        """
        tensors = {"epoch": torch.tensor(epoch), "generator": self.generator.get_state(), "data": self.data}
        tensors |= self.tensors()
        for name, value in tensors.items():
            if value.is_floating_point() and not value.isfinite().all():
                raise self.not_finite(f"{name} is no longer finite after epoch {epoch}")
        stop = stopping.is_set() and not last
        if self.path is not None and (last or stop or time.monotonic() - self.saved_at >= self.save_seconds):
            save_tensors(self.path, tensors)
            self.saved_at = time.monotonic()
        if stop:
            raise Stopped(f"stopped after epoch {epoch}; the same command goes on from there")

    def check(self, losses: Tensor, terms: Sequence[str], epoch: int) -> None:
        """Look at the last of an epoch's losses so far [steps, terms].

        Raises TrainingError at the step whose loss is not finite. Not on a GPU: to look would be to wait for it at each
        step, so there `finite_mean` looks at the whole epoch.
        """
        if losses.device.type == "cpu" and not losses[-1].isfinite().all():
            self.finite_mean(losses, terms, epoch)

    def finite_mean(self, losses: Tensor, terms: Sequence[str], epoch: int) -> list[float]:
        """Mean of each term over an epoch's steps [steps, terms]; one transfer from the device.

        Raises TrainingError naming the step and the term where a loss is not finite.
        """
        table = losses.cpu()
        for step, term in (~table.isfinite()).nonzero().tolist():
            raise self.not_finite(f"{terms[term]} became {table[step, term].item()} in epoch {epoch}, step {step + 1}")
        return table.mean(0).tolist()

    def not_finite(self, what: str) -> TrainingError:
        """The error that stops training, with what is kept and the remedy."""
        saved = self.path is not None and self.path.exists()
        kept = f"the last good state is in {self.path}" if saved else "no state was saved yet"
        return TrainingError(f"{what}; {kept}. Lower the learning rate or the weights of the losses, in another --out")
