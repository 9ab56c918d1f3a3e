"""Carrying out tables' runs, here, many at once in processes or on a Ray cluster, into results.csv.

More than 300 lines: three ways to carry out the same runs, which share how a run is measured and written down.
"""

from __future__ import annotations

import math
import os
import secrets
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from filelock import FileLock
from PIL import Image

from attnad.config import PaperConfig
from attnad.data import TestSet, files_sum, labelled_files, load_test, normal_files
from attnad.data.folders import data_root as find_root
from attnad.data.folders import find_folder
from attnad.detectors.guided import GuidedConfig, attention_config
from attnad.detectors.paper import stage1_hash
from attnad.errors import CheckpointError, DataError, PackageError, SettingError, SomeFailed, Stopped, remedy, shown
from attnad.run.run import check_same, evaluate_run, folder_name, train_run
from attnad.study import tables
from attnad.study.plan import Seconds, classes_there, everything, missing, root_of
from attnad.study.processes import run_in_processes, share_of_cores
from attnad.study.results import current_commit, rows, write_results
from attnad.study.summary import Summary, summary
from attnad.study.tables import MVTEC_CATEGORIES, Job
from attnad.train import pick_device
from attnad.training.machine import machine_facts
from attnad.training.storage import load_json, save_json


def measure(
    config: Any,
    runs: Path,
    *,
    data_root: Path | None = None,
    device: str = "auto",
    commit: str = "",
    progress: bool = True,
) -> dict[str, Any]:
    """Train and evaluate one run into its folder below `runs`, or read what it gave where that is done.

    Returns what `evaluate_run` returns, with "facts", "dataset" and "commit"; raises what training and data raise.
    """
    folder, data_root = runs / folder_name(config), root_of(config.data, data_root)
    path, names = folder / "metrics.json", (config.data, config.normal_class, data_root)
    stale = ""  # the sum of other test images than those that are there now
    if path.exists():
        outcome = load_json(path)
        with suppress(DataError):  # what was measured stands where the data are no longer
            check_same(outcome["facts"], normal_files(*names), config.data, folder)
            if "test_files" in outcome and outcome["test_files"] != files_sum(labelled_files(*names)):
                stale = outcome["test_files"]  # not in a file of an earlier version
        if not stale:
            return outcome
        print(f"{config.data}: its test images have changed since {path} was written; they are scored anew")
    stage1 = _same_stage1(config, runs)
    run = train_run(config, folder, stage1=stage1, device=device, data_root=data_root, progress=progress)
    with FileLock(folder / ".lock"):  # the run's own: another process may have waited for its training too
        if path.exists() and (there := load_json(path)).get("test_files") != stale:
            return there
        # Test images are read no earlier than the weights are final.
        test = load_test(config.data, size=config.size, normal_class=config.normal_class, root=data_root)
        outcome = evaluate_run(run, test) | {"facts": run.facts}
        outcome |= {
            "n_good": int((~test.labels).sum()),
            "dataset": _dataset(config.data, test, data_root),
            "commit": commit,
            "test_files": files_sum(labelled_files(*names)),
        }
        save_json(path, outcome)
    return outcome


def _same_stage1(config: Any, runs: Path) -> Path | None:
    """A finished run with the stage 1 that this one needs, as its configuration says and training will check."""
    if isinstance(config, GuidedConfig):
        there = runs / folder_name(attention_config(config))
        return there if (there / "run.json").exists() else None
    if isinstance(config, PaperConfig) and config.attention.epochs:
        wanted = stage1_hash(asdict(config))
        for path in sorted(runs.glob("*/run.json")):
            with suppress(CheckpointError):  # a damaged run is none to take over; whoever loads it will hear so
                if stage1_hash(load_json(path.parent / "config.json")) == wanted:
                    return path.parent
    return None


def _dataset(data: str, test: TestSet, data_root: Path | None) -> str:
    """Name a data set as the paper does, and what was done to its files, if it was: JPEG coding, a smaller size."""
    if data == "textures":
        return data
    if data == "cifar10":
        return "CIFAR-10 (JPEG)" if test.names[0].endswith((".jpg", ".jpeg")) else "CIFAR-10"
    if Path(data).name not in MVTEC_CATEGORIES:
        return Path(data).name
    with Image.open(find_folder(data, data_root) / test.names[0]) as image:
        side = max(image.size)
    return "MVTec AD" if side >= 700 else f"MVTec AD ({side} px)"  # the original's sides are 700 to 1,024 pixels


def run_locally(planned: Sequence[Job], **arguments: Any) -> Iterator[tuple[Job, dict[str, Any] | Exception]]:
    """Run jobs one after the other in this process."""
    for job in planned:
        try:
            yield job, measure(job.config, **arguments)
        except Exception as error:
            if not isinstance(error, (ValueError, RuntimeError, OSError)):
                traceback.print_exc()  # a mistake of the program rather than of its input
            yield job, error


def run_on_ray(
    planned: Sequence[Job], *, jobs_per_gpu: int = 1, **arguments: Any
) -> Iterator[tuple[Job, dict[str, Any] | Exception]]:
    """Run jobs all at once on a Ray cluster: the one that RAY_ADDRESS names, else this machine alone, on loopback.

    Each takes one CPU and, where the cluster has GPUs, a share of one. A job whose worker dies is run again, up to
    three times, and goes on from its last saved state where the machines share the folder of runs. Only this process
    writes results. Raises PackageError where Ray is not installed, SettingError where the cluster is open to others.
    """
    address = os.environ.get("RAY_ADDRESS") or "local"
    with _ray_settings(address):
        try:
            import ray
        except ImportError as error:
            raise PackageError(f"--engine ray needs other packages: {remedy('ray')}") from error
        ours = not ray.is_initialized()
        if ours:
            _start(ray, address)
    try:
        if ours and address == "local" and not _is_loopback(there := ray.util.get_node_ip_address()):
            raise SettingError(
                f"Ray would listen at {there}, for all who reach it: it was imported before attnad began a cluster. "
                "Start Python again, or set RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 before it is imported"
            )
        gpus = 1 / jobs_per_gpu if ray.cluster_resources().get("GPU") else 0
        remote: Any = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=3)(measure)
        waiting = {remote.remote(job.config, **arguments, progress=False): job for job in planned}
        while waiting:
            (ended,), _ = ray.wait(list(waiting))
            job = waiting.pop(ended)
            try:
                yield job, ray.get(ended)
            except Exception as error:  # Ray's own, or one that wraps the job's
                yield job, getattr(error, "cause", None) or error
    finally:
        if ours:
            ray.shutdown()


_TOKEN = secrets.token_hex(32)  # of this process's clusters: Ray keeps the first that it reads


def _start(ray: Any, address: str) -> None:
    """Start or join a cluster: Ray gives its processes half a minute, and a busy machine takes longer."""
    own = {"include_dashboard": False} if address == "local" else {}  # a door less, and seconds
    for more in (True, True, False):
        try:
            ray.init(address, log_to_driver=False, **own)
            return
        except Exception as error:  # Ray has no name for it
            if "timed out during startup" not in str(error):
                raise
            if not more:
                raise SettingError("Ray did not start on this machine, three times; it may be too busy") from error


@contextmanager
def _ray_settings(address: str) -> Iterator[None]:
    """Variables that Ray and its workers read as they start; raises SettingError where a cluster has no token.

    Whoever reaches a port of Ray runs code there. A cluster of our own listens on loopback only (the variable is Ray's
    for systems that have no other kind) and takes a token that nobody else on the machine can read.
    """
    mode, own = os.environ.get("RAY_AUTH_MODE", ""), address == "local"
    host = address.rpartition("://")[2].rpartition(":")[0] or address
    if not own and not _is_loopback(host) and not (mode == "token" and _has_ray_token()):
        raise SettingError(
            f"RAY_ADDRESS={address}: whoever reaches that cluster could run code on its machines and on this one. "
            "Start Ray on each machine with RAY_AUTH_MODE=token and the same token (ray get-auth-token --generate), "
            "and set RAY_AUTH_MODE=token here too"
        )
    values = {"RAY_USAGE_STATS_ENABLED": os.environ.get("RAY_USAGE_STATS_ENABLED", "0")}  # it tells its makers else
    if own:
        values |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
        values |= {"RAY_AUTH_TOKEN": os.environ.get("RAY_AUTH_TOKEN") or _TOKEN}
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:  # a name
        return False


def _has_ray_token() -> bool:
    """Whether Ray finds a token where it looks for one."""
    given = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    return given or (Path.home() / ".ray" / "auth_token").exists()


def reproduce(
    table: str,
    *,
    classes: Sequence[str] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    recipe_name: str = "quick",
    overrides: dict[str, Any] | None = None,
    data_root: Path | None = None,
    device: str = "auto",
    engine: str = "local",
    jobs: int = 1,
    jobs_per_gpu: int = 1,
    minutes: float | None = None,
    runs: Path = Path("runs"),
    results: Path = Path("book/results"),
) -> Summary | None:
    """Run what is missing of a table, write results.csv as each run ends, and return the table beside the paper's.

    `classes` defaults to all of the table's; of MVTec AD, to the categories that are there. With `jobs` above 1 that
    many runs go at once, each in a process of its own. Table "all" is every table, the most telling runs first
    (`attnad.study.plan.ORDER`), without those that results.csv has rows of on any machine; a table whose data are
    not there is left out, and nothing is returned. With `minutes`, only runs that can end in time are begun, by the
    seconds of earlier ones, and at the end of the time those that run save their states and stop: call again to go on.
    Raises SomeFailed at the end where runs failed, naming each; the others have run by then.
    """
    if engine == "ray" and (jobs > 1 or minutes is not None):
        raise SettingError("--jobs and --minutes are for this machine; leave them out, or --engine ray")
    if jobs < 1 or (minutes is not None and not minutes > 0):
        raise SettingError(f"--jobs {jobs}, --minutes {minutes}: give 1 or more, and more than 0")
    started, seconds = time.monotonic(), None
    values: dict[str, Any] = {"seeds": seeds, "recipe_name": recipe_name, "overrides": overrides}
    if table == "all":
        planned, absent = everything(data_root, classes=classes, **values)
        planned = missing(planned, results)
        for line in absent:
            print(line, flush=True)
    else:
        planned = tables.jobs(table, classes=classes or classes_there(table, data_root), **values)
    root = find_root(data_root).resolve()
    arguments: dict[str, Any] = {
        "runs": runs.resolve(), "data_root": root, "device": device, "commit": current_commit(),
    }  # fmt: skip
    if engine == "ray":
        ended = run_on_ray(planned, jobs_per_gpu=jobs_per_gpu, **arguments)
    elif jobs > 1 or minutes is not None:
        limits: dict[str, Any] = {}
        if minutes is not None:
            name = machine_facts(pick_device(device))["device"]
            seconds = Seconds(results, runs, device=name, threads=share_of_cores(jobs))
            limits = {"deadline": started + 60 * minutes, "fits": seconds.fits}
        ended = run_in_processes(measure, planned, workers=jobs, **limits, **arguments, progress=False)
    else:
        ended = run_locally(planned, **arguments)
    left, failed, stopped, in_vain = list(planned), [], 0, 0
    for i, (job, outcome) in enumerate(ended, 1):
        name = f"{job.table}, {job.name}" if table == "all" else job.name
        label = shown(f"[{i}/{len(planned)}] {name}, seed {job.config.seed}, {next(iter(job.variant.rows))}")
        if isinstance(outcome, Stopped):
            if seconds and (had := seconds.stopped(job)):
                in_vain += 1
                print(f"{label}: ended at the deadline after {had:.0f} s, and nothing of them is saved", flush=True)
            else:
                stopped += 1
                print(f"{label}: {outcome}", flush=True)
            continue
        left.remove(job)
        if seconds:
            seconds.note(job)
        if isinstance(outcome, Exception):
            failed.append(f"{label}: {type(outcome).__name__}: {outcome}")
            print(f"{failed[-1]}", file=sys.stderr)
            continue
        new = rows(job, outcome)
        write_results(results / "results.csv", new)
        print(f"{label}: " + ", ".join(f"{row['metric']} {float(row['value']):.3f}" for row in new), flush=True)
    if minutes is not None or table == "all":
        done, spent = len(planned) - len(left) - len(failed), (time.monotonic() - started) / 60
        by_table = ", ".join(f"{name} {n}" for name, n in Counter(job.table for job in left).items())
        ways = f"{stopped} stopped with their states saved" + (f", {in_vain} with nothing saved" if in_vain else "")
        print(f"{spent:.1f} minutes: {done} done, {len(failed)} failed, {ways}")
        longer = [seconds.needs(job) for job in left if seconds.needs(job) > seconds.most] if seconds else []
        again = "; the same command goes on" if len(longer) < len(left) else ""
        print(f"left: {len(left)} ({by_table}){again}" if left else "left: none")
        if longer:
            print(
                f"{len(longer)} of them need more time at once than this: give --minutes "
                f"{math.ceil(min(longer) / 60) + 1} for the first to begin, and up to {math.ceil(max(longer) / 60) + 1}"
            )
    found = None if table == "all" else summary(table, results)
    if found:
        print(found.text())
    if failed:
        raise SomeFailed(f"{len(failed)} of {len(planned)} runs failed:", *"\n".join(failed).split("\n"))
    return found
