"""Many runs at once on one machine, each in a process of its own: no cluster, no framework.

A process that dies takes its run along and no other; what it had saved is kept. Runs that share a stage 1 wait for each
other, so that it is trained once.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from attnad.config import PaperConfig
from attnad.detectors.guided import GuidedConfig, attention_config
from attnad.detectors.paper import stage1_hash
from attnad.errors import Stopped, TrainingError
from attnad.run.run import folder_name
from attnad.study.tables import Job
from attnad.training.state import stopping

GRACE = 30.0  # seconds before the deadline at which runs are asked to save their states and stop, or a tenth of all


def run_in_processes(
    call: Callable[..., dict[str, Any]],
    planned: Sequence[Job],
    *,
    workers: int,
    deadline: float = float("inf"),
    fits: Callable[[Job, float], bool] = lambda job, seconds: True,
    **arguments: Any,
) -> Iterator[tuple[Job, dict[str, Any] | Exception]]:
    """Call `call(config, **arguments)` for each job, `workers` at once; give each job and what came of it as it ends.

    Each process takes its share of the cores. Until `deadline`, a value of `time.monotonic`, a job is begun if
    `fits(job, seconds left)`; at last those that run are asked to save their states and stop, which gives `Stopped`.
    Jobs that were not begun are not given.
    """
    begun = time.monotonic()
    last_call = deadline - min(GRACE, 0.1 * (deadline - begun)) if deadline < float("inf") else deadline
    waiting = list(planned)
    running: dict[Any, tuple[Job, Any]] = {}  # by the pipe that its outcome comes through
    with _shared_cores(workers) as context:
        try:
            while True:
                while len(running) < workers and (job := _next(waiting, running.values(), last_call, fits)):
                    waiting.remove(job)
                    pipe, theirs = context.Pipe(duplex=False)
                    process = context.Process(target=_work, args=(theirs, workers, call, job.config, arguments))
                    process.start()
                    theirs.close()  # so that the pipe ends with the process
                    running[pipe] = (job, process)
                if not running:
                    return
                now = time.monotonic()
                if now >= deadline:
                    for _, process in running.values():
                        process.kill()
                elif now >= last_call:
                    for _, process in running.values():
                        process.terminate()
                until = next((t for t in (last_call, deadline) if t > now), now + 1)
                for pipe in wait(list(running), None if until == float("inf") else max(0.0, until - now)):
                    job, process = running.pop(pipe)
                    yield job, _outcome(pipe, process, late=time.monotonic() >= last_call)
        finally:
            for _, process in running.values():
                process.terminate()
            give_up = time.monotonic() + GRACE
            for _, process in running.values():
                process.join(max(0.0, give_up - time.monotonic()))
                process.kill()


def _next(waiting: Sequence[Job], running: Any, last_call: float, fits: Callable[[Job, float], bool]) -> Job | None:
    """The first job that may begin now; none whose stage 1 another is training."""
    left = last_call - time.monotonic()
    taken = {_stage1(job) for job, _ in running}
    return next((job for job in waiting if left > 0 and _stage1(job) not in taken and fits(job, left)), None)


def _stage1(job: Job) -> str:
    """What jobs that share a stage 1 have in common; other detectors' jobs share whole runs."""
    if isinstance(job.config, GuidedConfig):
        return folder_name(attention_config(job.config))
    return stage1_hash(asdict(job.config)) if isinstance(job.config, PaperConfig) else folder_name(job.config)


@contextmanager
def _shared_cores(workers: int) -> Iterator[Any]:
    """Processes that take equal shares of the cores, and sleep while their threads wait for each other."""
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        # Seconds of imports once, not for each run; encoders import timm, and with it torchvision, when they are built.
        context.set_forkserver_preload(["attnad.study.engines", "timm"])
    given = {"OMP_NUM_THREADS": str(share_of_cores(workers)), "OMP_WAIT_POLICY": "passive"}
    before = {name: os.environ.get(name) for name in given}
    for name, value in given.items():
        os.environ.setdefault(name, value)
    try:
        yield context
    finally:
        for name, old in before.items():
            if old is None:
                del os.environ[name]


def share_of_cores(workers: int) -> int:
    """Threads for each of several processes on this machine: one or more, together no more than its cores if it can."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // workers)


def _work(pipe: Connection, workers: int, call: Callable[..., Any], config: Any, arguments: dict[str, Any]) -> None:
    """One run, in its process: send what comes of it. Asked to end, or alone in the world, it saves its state first."""
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which asks us to end
    threading.Thread(target=_watch_parent, daemon=True).start()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", share_of_cores(workers))))
    try:
        outcome = call(config, **arguments)
    except Exception as error:
        if not isinstance(error, (ValueError, RuntimeError, OSError)):
            traceback.print_exc()  # a mistake of the program rather than of its input
        outcome = error
    try:
        pipe.send(outcome)
    except Exception:  # an error that cannot be sent
        pipe.send(TrainingError(f"{type(outcome).__name__}: {outcome}"))


def _watch_parent() -> None:
    """Wait for the parent's end: a run whose result nobody reads saves its state and stops."""
    parent = multiprocessing.parent_process()
    assert parent, "runs have a process of their own"
    wait([parent.sentinel])
    stopping.set()


def _outcome(pipe: Any, process: Any, *, late: bool) -> dict[str, Any] | Exception:
    """What a process has sent; an error in its place where it has died."""
    outcome: Any = None
    with suppress(EOFError, OSError):
        outcome = pipe.recv()
    pipe.close()
    process.join()
    if outcome is None and late:
        return Stopped("ended at the deadline; the same command goes on from its last saved state")
    if outcome is None:
        return TrainingError(f"its process ended with status {process.exitcode}; the same command goes on with it")
    return outcome
