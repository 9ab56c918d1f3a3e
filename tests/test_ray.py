"""Runs on a real Ray cluster of two workers, one killed on the way: nothing is lost, nothing comes twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from studies import TINY, measure_on_few_crops
from waiting import until

from attnad.errors import SettingError, TrainingError, remedy
from attnad.study import engines
from attnad.study.engines import reproduce, run_locally, run_on_ray
from attnad.study.results import read_results, rows
from attnad.study.tables import TABLES, jobs
from attnad.training.state import Log

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # read as Ray is imported: nothing here listens to others
pytest.importorskip("ray", reason=f"the engine needs Ray: {remedy('ray')}")

SEEDS = (0, 1)


def started(start: Callable[[], Any]) -> Any:
    """What starts processes of Ray, which gives them half a minute; they have ten on a busy machine."""
    for _ in range(19):
        try:
            return start()
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
    return start()


def test_a_start_that_takes_too_long_is_tried_again_and_then_told():
    class Slow:
        tried = 0

        def init(self, *_, **__):
            self.tried += 1
            if self.tried < self.ready:
                raise Exception("The current node timed out during startup. This could happen ...")

    slow = Slow()
    slow.ready = 3
    engines._start(slow, "local")
    assert slow.tried == 3
    slow.tried, slow.ready = 0, 4
    with pytest.raises(SettingError, match="Ray did not start on this machine, three times"):
        engines._start(slow, "local")


@pytest.fixture(scope="module")
def cluster():
    """A node of two CPUs, and so two workers, as real processes of this machine."""
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 2, "num_gpus": 0, "include_dashboard": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)  # where workers find `studies`
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # beside other tests a nice worker would wait for its turn
        patch.setenv("OMP_NUM_THREADS", "1")  # Ray's workers take the user's number before their own
        cluster = started(lambda: Cluster(initialize_head=True, head_node_args=head))
        started(lambda: ray.init(address=cluster.address, log_to_driver=False))
        yield cluster
        ray.shutdown()
        cluster.shutdown()


OPEN = """
import json, os
from types import SimpleNamespace
from attnad.study import engines

def measure(config, **_):
    import psutil
    top = psutil.Process(config)
    processes = [top, *top.children(recursive=True)]
    sockets = [(each.name(), socket) for each in processes for socket in each.net_connections("inet")]
    return [(name, socket.laddr.ip) for name, socket in sockets if socket.status == psutil.CONN_LISTEN]

engines.measure = measure
[(_, found)] = engines.run_on_ray([SimpleNamespace(config=os.getpid())])
if isinstance(found, Exception):
    raise found
print(json.dumps(found))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="psutil needs rights there")
def test_a_cluster_of_our_own_listens_on_loopback_only(tmp_path):
    pytest.importorskip("psutil")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = kept | {"HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", OPEN], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert {"gcs_server", "raylet"} <= {name for name, _ in found}, "the processes that listen were not seen"
    assert {address for _, address in found} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert not (tmp_path / ".ray").exists(), "a token that others on this machine could read"


@pytest.mark.parametrize("address", ["10.0.0.1:6379", "ray://head:10001", "auto", "[2001:db8::1]:6379"])
@pytest.mark.parametrize("settings", [{}, {"RAY_AUTH_TOKEN": "0" * 64}, {"RAY_AUTH_MODE": "token"}], ids=str)
def test_a_cluster_that_others_reach_needs_a_token(address, settings, tmp_path, monkeypatch):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"RAY_ADDRESS": address, "HOME": str(tmp_path)} | settings).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingError, match=r"could run code .* RAY_AUTH_MODE=token and the same token"):
        list(run_on_ray([]))


def measure_once_killed(folder: Path) -> Callable[..., Any]:
    """What takes the place of `measure` in the workers: each waits after its first epoch until one has been killed."""

    def measure(config: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        add = Log.add

        def add_and_wait(self: Log, *values: Any) -> None:
            add(self, *values)
            (folder / str(os.getpid())).touch()
            until((folder / "killed").exists)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Log, "add", add_and_wait)
            return measure_on_few_crops(config, *arguments, **options)

    return measure


def kill_one(folder: Path) -> None:
    """Kill a worker once two are in the middle of a run."""
    until(lambda: len(list(folder.iterdir())) == 2)
    os.kill(int(next(folder.iterdir()).name), signal.SIGKILL)
    (folder / "killed").touch()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_killed_worker_costs_nothing(cluster, tmp_path, monkeypatch):
    monkeypatch.setitem(TABLES, "textures", TABLES["textures"][:2])
    (tmp_path / "working").mkdir()
    monkeypatch.setattr(engines, "measure", measure_once_killed(tmp_path / "working"))
    arguments = {"seeds": SEEDS, "overrides": TINY}
    folders = {"runs": tmp_path / "runs", "results": tmp_path / "results"}
    killer = threading.Thread(target=kill_one, args=(tmp_path / "working",))
    killer.start()
    reproduce("textures", device="cpu", engine="ray", **arguments, **folders)
    killer.join()
    assert (tmp_path / "working" / "killed").exists()
    monkeypatch.setattr(engines, "measure", measure_on_few_crops)

    found = read_results(folders["results"] / "results.csv")
    planned = jobs("textures", classes=["brick"], **arguments)
    assert len(planned) == 4
    assert {row["threads"] for row in found} == {"1"}
    assert len(found) == len({(r["method"], r["seed"], r["metric"]) for r in found}) == 4 * len(rows_of(planned[0]))
    for folder in folders["runs"].iterdir():
        assert {"run.json", "metrics.json"} <= {path.name for path in folder.iterdir()}
    assert len(list(folders["runs"].iterdir())) == 4

    # One of them once more, here and with one thread as there: the same figures as the cluster's.
    job = planned[-1]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ((_, outcome),) = run_locally([job], runs=tmp_path / "here", device="cpu", progress=False)
    torch.set_num_threads(threads)
    here = {row["metric"]: row["value"] for row in rows(job, outcome)}
    there = {r["metric"]: r["value"] for r in found if (r["method"], r["seed"]) == (method_of(job), "1")}
    assert there == here


def rows_of(job):
    return next(iter(job.variant.rows.values()))


def method_of(job):
    return next(iter(job.variant.rows))


def test_a_failed_run_is_named_and_the_others_run(cluster, small_runs, tmp_path, monkeypatch):
    monkeypatch.setitem(TABLES, "textures", TABLES["textures"][:1])
    folders = {"runs": tmp_path / "runs", "results": tmp_path / "results"}
    with pytest.raises(
        TrainingError, match=r"1 of 2 runs failed:\n.*pebble.*DataError: textures: has no class 'pebble'"
    ):
        reproduce(
            "textures", classes=["pebble", "grass"], seeds=[0], overrides=TINY, device="cpu", engine="ray", **folders,
        )  # fmt: skip
    assert {row["class"] for row in read_results(tmp_path / "results" / "results.csv")} == {"grass"}
