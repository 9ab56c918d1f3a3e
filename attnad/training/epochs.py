"""The loop of every training by epochs: what a step is, its caller says."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from attnad.training.state import Log, State


def run_epochs(
    step: Callable[[Tensor], Tensor],
    state: State,
    terms: Sequence[str],
    *,
    epochs: int,
    batch: int,
    steps: int,
    progress: bool,
) -> None:
    """Train from the epoch that the folder's state has reached to the last.

    An epoch takes `steps` batches, in an order that the state's generator draws; `step` takes the numbers of a batch's
    images [n] and returns its losses in the order of `terms`, detached. Their means go into log.csv after each epoch.
    Raises TrainingError on a loss that is not finite, CheckpointError on a state of other data or another model, and
    Stopped as `State.save` does.
    """
    done = state.resume()
    log = Log(state.folder and state.folder / "log.csv", state.stage, terms, done)
    device = state.generator.device
    losses = torch.empty(steps, len(terms), device=device)  # of one epoch; read at its end
    with tqdm(total=epochs * steps, initial=done * steps, desc=state.stage, disable=not progress) as bar:
        for epoch in range(done + 1, epochs + 1):
            started = time.perf_counter()
            order = torch.randperm(state.n, generator=state.generator, device=device)
            for i, chosen in enumerate(order.split(batch)[:steps]):
                state.passed = (epoch - 1 + i / steps) / epochs
                losses[i] = step(chosen)
                state.check(losses[: i + 1], terms, epoch)
                bar.update()
            means = state.finite_mean(losses, terms, epoch)
            bar.set_postfix({term: f"{mean:.3f}" for term, mean in zip(terms, means, strict=True)})
            log.add(epoch, means, time.perf_counter() - started)
            state.save(epoch, last=epoch == epochs)
