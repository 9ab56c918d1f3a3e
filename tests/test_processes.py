"""Many runs at once in processes, and in borrowed minutes: nothing is lost, nothing is trained twice, time is kept.

More than 300 lines: what processes do, and what is left to run, are asserted with the same small jobs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from studies import TINY, measure_on_few_crops
from waiting import PATIENCE, until

from attnad.cli import main
from attnad.errors import SettingError, Stopped, TrainingError
from attnad.run.run import folder_name
from attnad.study.engines import reproduce
from attnad.study.plan import ORDER, Seconds, everything, missing
from attnad.study.processes import run_in_processes, share_of_cores
from attnad.study.results import COLUMNS, read_results, write_results
from attnad.study.tables import CIFAR10_CLASSES, CLASSES, MVTEC_CATEGORIES, TABLES, Job, jobs
from attnad.training.state import Log, stopping
from attnad.training.storage import load_tensors


def textures(*methods: str, seeds: tuple[int, ...] = (0,), overrides: dict[str, Any] = TINY) -> list[Job]:
    """Jobs of the study on textures, of the methods in the order named."""
    planned = jobs("textures", classes=["brick"], seeds=seeds, overrides=overrides)
    return [job for method in methods for job in planned if method in job.variant.rows]


def timeless(results: Path) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if k not in ("seconds", "date")} for row in read_results(results)]


# --- what stands in for a run, in its process ------------------------------------------------------------------------


def facts(config: Any) -> dict[str, Any]:
    begun = time.time()
    time.sleep(0.4)
    return {"threads": torch.get_num_threads(), "process": os.getpid(), "from": begun, "to": time.time()}


def meets(config: Any, folder: Path) -> dict[str, Any]:
    """Wait, once begun, until two runs have begun; end a little later."""
    begun = time.monotonic()
    (folder / folder_name(config)).touch()
    until(lambda: len(list(folder.iterdir())) >= 2)
    time.sleep(0.4)
    return {"from": begun, "to": time.monotonic()}


def never_ends(config: Any, folder: Path) -> dict[str, Any]:
    (folder / str(os.getpid())).touch()
    while True:
        time.sleep(PATIENCE)


def dies(config: Any) -> dict[str, Any]:
    if config.seed == 1:
        os._exit(9)
    if config.seed == 2:
        raise TrainingError("a loss is not finite")
    return {"seed": config.seed}


def saves_once_asked(config: Any, **arguments: Any) -> dict[str, Any]:
    """Train, and after the first epoch go on only when this process was asked to end."""
    add = Log.add

    def add_and_wait(self: Log, *values: Any) -> None:
        add(self, *values)
        until(stopping.is_set)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Log, "add", add_and_wait)
        return measure_on_few_crops(config, **arguments)


# What the command is where its runs are to be on a few crops.
SMALL_RUNS = """
import sys, studies
from attnad.cli import main
from attnad.study import engines
engines.measure = studies.measure_on_few_crops
sys.exit(main(sys.argv[1:]))
"""


# --- many at once ----------------------------------------------------------------------------------------------------


def test_processes_share_the_cores_and_are_as_many_as_asked_for():
    planned = textures("as the recipe says", seeds=(0, 1, 2, 3))
    outcomes = [outcome for _, outcome in run_in_processes(facts, planned, workers=2)]
    assert len({outcome["process"] for outcome in outcomes}) == 4
    assert os.getpid() not in {outcome["process"] for outcome in outcomes}
    threads = int(os.environ.get("OMP_NUM_THREADS", share_of_cores(2)))
    assert {outcome["threads"] for outcome in outcomes} == {threads}
    for one in outcomes:
        at_once = [other for other in outcomes if other["from"] <= one["from"] < other["to"]]
        assert len(at_once) <= 2


def test_the_share_of_cores_is_one_thread_or_more():
    cores = share_of_cores(1)
    assert cores >= 1
    assert share_of_cores(2) == max(1, cores // 2)
    assert share_of_cores(10 * cores) == 1


def test_runs_that_share_a_stage_1_wait_for_each_other(tmp_path):
    """The first and the third meet; the second, which shares the first's stage 1, begins when that has ended."""
    planned = textures("as the recipe says", "ADGAN without synthetic fakes", "no adversarial losses")
    running = run_in_processes(meets, planned, workers=3, folder=tmp_path)
    ended = {next(iter(job.variant.rows)): out for job, out in running}
    first, same, other = (ended[next(iter(job.variant.rows))] for job in planned)
    assert same["from"] >= first["to"]
    assert other["from"] < first["to"]


def test_a_process_that_dies_or_fails_is_named_and_the_others_run():
    planned = textures("as the recipe says", seeds=(0, 1, 2, 3))
    ended = {job.config.seed: outcome for job, outcome in run_in_processes(dies, planned, workers=2)}
    assert (ended[0], ended[3]) == ({"seed": 0}, {"seed": 3})
    assert isinstance(ended[1], TrainingError)
    assert "its process ended with status 9; the same command goes on" in str(ended[1])
    assert (type(ended[2]), str(ended[2])) == (TrainingError, "a loss is not finite")


def runs(process: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    return False


def test_at_the_deadline_nothing_runs_any_more(tmp_path, monkeypatch):
    """The clock stands until both runs have begun: how long they take to begin is the machine's business."""
    started = []

    def clock() -> float:
        if not started and len(list(tmp_path.iterdir())) == 2:
            started.append(time.monotonic())
        return time.monotonic() - started[0] if started else 0.0

    monkeypatch.setattr("attnad.study.processes.time", SimpleNamespace(monotonic=clock))
    planned = textures("as the recipe says", seeds=(0, 1, 2))
    ended = list(run_in_processes(never_ends, planned, workers=2, deadline=1.0, folder=tmp_path))
    assert {job.config.seed for job, _ in ended} == {0, 1}, "the third was never begun"
    assert all(isinstance(outcome, Stopped) for _, outcome in ended)
    assert not any(runs(int(path.name)) for path in tmp_path.iterdir())


def test_many_at_once_give_the_rows_of_one_after_the_other(small_runs, tmp_path, monkeypatch):
    names = ("as the recipe says", "ADGAN without synthetic fakes", "no adversarial losses")
    monkeypatch.setitem(TABLES, "textures", [v for v in TABLES["textures"] if next(iter(v.rows)) in names])
    folders = {name: {k: tmp_path / name / k for k in ("runs", "results")} for name in ("one", "many")}
    arguments = {"seeds": (1,), "overrides": TINY, "device": "cpu"}
    reproduce("textures", **arguments, **folders["one"])
    reproduce("textures", jobs=2, **arguments, **folders["many"])
    one, many = (timeless(folders[name]["results"] / "results.csv") for name in ("one", "many"))
    assert len(one) == 3 * 5
    assert many == one


def test_a_failed_run_ends_the_command_with_its_name(small_runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(TABLES, "textures", TABLES["textures"][:3])
    options = ["--size", "32", "--epochs", "0", "--adgan-epochs", "1", "--set", "attention.width=4", "--device", "cpu"]
    folders = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    command = ["reproduce", "textures", "--classes", "pebble", "grass", "--seeds", "0", "--jobs", "2"]
    assert main([*command, *options, *folders]) == 1
    out, err = capsys.readouterr()
    last = err.rpartition("attnad: ")[2]
    runs = len(TABLES["textures"])
    assert last.startswith(f"{runs} of {2 * runs} runs failed:\n")
    assert last.count("pebble, seed 0, ") == runs
    assert "textures: has no class 'pebble'" in last
    assert out.count("grass, seed 0, ") == runs


@pytest.mark.parametrize(
    ("options", "said"),
    [({"jobs": 0}, "--jobs 0"), ({"minutes": 0}, "--minutes 0"), ({"minutes": float("nan")}, "--minutes nan"),
     ({"engine": "ray", "jobs": 2}, "or --engine ray"), ({"engine": "ray", "minutes": 1}, "or --engine ray")],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(options, said, tmp_path):
    with pytest.raises(SettingError, match=said):
        reproduce("textures", runs=tmp_path, results=tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


# --- stopped on the way ----------------------------------------------------------------------------------------------


def terminate_once_begun(folder: Path) -> None:
    """Ask a run to end, as the deadline does, once it has logged an epoch."""
    until(lambda: any(folder.glob("*/log.csv")))
    for process in psutil.Process().children(recursive=True):
        if process.ppid() != os.getpid():  # a run is a child of the server's
            process.terminate()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process without asking it")
def test_what_is_asked_to_end_goes_on_to_the_same_weights(tmp_path):
    (job,) = textures("as the recipe says", overrides=TINY | {"attention.epochs": 8})
    arguments = {"runs": tmp_path, "device": "cpu", "progress": False}
    measure_on_few_crops(job.config, tmp_path / "whole", device="cpu", progress=False)
    asking = threading.Thread(target=terminate_once_begun, args=(tmp_path,))
    folder = tmp_path / folder_name(job.config)
    asking.start()
    ((_, outcome),) = run_in_processes(saves_once_asked, [job], workers=1, **arguments)
    asking.join()
    assert isinstance(outcome, Stopped), outcome
    epochs = int(load_tensors(folder / "attention.state.safetensors")["epoch"])
    assert 0 < epochs < 8
    assert str(outcome) == f"stopped after epoch {epochs}; the same command goes on from there"
    measure_on_few_crops(job.config, **arguments)
    for name in ("attention.safetensors", "adgan.safetensors"):
        one, other = load_tensors(folder / name), load_tensors(tmp_path / "whole" / folder.name / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_runs_whose_parent_is_killed_save_their_states_and_end(tmp_path):
    options = ["--size", "32", "--epochs", "4000", "--set", "attention.width=4", "--device", "cpu", "--jobs", "2"]
    folders = ["--runs", tmp_path / "runs", "--results", tmp_path / "results"]
    parent = subprocess.Popen(
        [sys.executable, "-c", SMALL_RUNS, "reproduce", "textures", "--seeds", "0", *options, *folders],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=Path(__file__).parent,
    )  # fmt: skip
    until(lambda: len(list(tmp_path.glob("runs/*/log.csv"))) == 2, lambda: parent.poll() is None)
    below = psutil.Process(parent.pid).children(recursive=True)
    parent.kill()
    parent.wait()
    gone, alive = psutil.wait_procs(below, timeout=PATIENCE)
    for process in alive:
        process.kill()
    assert not alive
    assert len(gone) >= 3, "a server and two runs"
    assert len(list(tmp_path.glob("runs/*/attention.state.safetensors"))) == 2


# --- every table, most telling first ---------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path) -> Path:
    """Folders where CIFAR-10 and two categories of MVTec AD would be; planning reads no image."""
    for name in CIFAR10_CLASSES:
        (tmp_path / "cifar10" / "train" / name).mkdir(parents=True)
    for name in ("bottle", "pill"):
        (tmp_path / "mvtec_ad" / name / "train").mkdir(parents=True)
    return tmp_path


def test_everything_is_each_table_once_seed_by_seed(root):
    planned, absent = everything(root, classes=None, seeds=(0, 1))
    assert absent == []
    assert set(ORDER) == set(TABLES)
    assert list(dict.fromkeys((job.config.seed, job.table) for job in planned)) == [
        (seed, table) for seed in (0, 1) for table in ORDER
    ]
    wanted = {
        (table, name, seed, i)
        for table, variants in TABLES.items() for seed in (0, 1) for i in range(len(variants))
        for name in CLASSES[table] if name in ("bottle", "pill") or name not in MVTEC_CATEGORIES
    }  # fmt: skip
    found = [(job.table, job.name, job.config.seed, TABLES[job.table].index(job.variant)) for job in planned]
    assert len(found) == len(set(found))
    assert set(found) == wanted
    some, _ = everything(root, classes=["cat", "pill"], seeds=(0,))
    assert {job.name for job in some} == {"cat", "pill"}


def test_tables_without_data_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.utils.download_url", offline)
    planned, absent = everything(tmp_path, classes=None, seeds=(0,))
    assert {job.table for job in planned} == {"textures", "surfaces", "choices", "unlabelled", "rivals"}
    first, second = absent
    assert first.startswith("left out: table2, table5, table1, rivals-cifar10: cifar10: not found")
    assert second.startswith("left out: table3, beyond, table4, defects, rivals-mvtec: ")
    assert "holds no category of MVTec AD" in second


def offline(*_: Any, **__: Any) -> None:
    raise OSError("no network")


def row(job: Job, method: str, **changes: str) -> dict[str, str]:
    c = job.config
    values = {
        "table": job.table, "class": job.name, "method": method, "recipe": c.recipe, "encoder": c.encoder,
        "size": str(c.size), "epochs": str(c.epochs), "overrides": job.overrides, "seed": str(c.seed), "value": "0.5",
        "seconds": "100", "device": "cpu", "threads": "2",
    }  # fmt: skip
    return dict.fromkeys(COLUMNS, "") | values | changes


def test_only_jobs_without_rows_are_missing(tmp_path):
    planned = jobs("table5", classes=["cat", "dog"], seeds=(0, 1))
    cat, dog = planned[0], planned[1]
    assert missing(planned, tmp_path) == planned
    write_results(tmp_path / "results.csv", [row(cat, method) for method in cat.variant.rows])
    write_results(tmp_path / "results.csv", [row(dog, method) for method in list(dog.variant.rows)[:-1]])
    assert missing(planned, tmp_path) == planned[1:], "a job is there when all of its methods are"
    other = jobs("table5", classes=["cat"], seeds=(0,), overrides={"attention.kl_weight": 0.5})
    assert missing(other, tmp_path) == other


def test_a_run_begins_only_if_it_can_end(tmp_path):
    a, b, c = textures("as the recipe says", "no adversarial losses", "rectangles only")
    write_results(tmp_path / "results.csv", [row(job, next(iter(job.variant.rows))) for job in (a, b)])
    seconds = Seconds(tmp_path, tmp_path, device="cpu", threads=2)
    assert seconds.fits(a, 101)
    assert not seconds.fits(a, 99)
    assert seconds.fits(c, 1), "nothing is known of its kind"
    assert Seconds(tmp_path, tmp_path, device="cpu", threads=1).fits(a, 99), "other threads, other seconds"
    folder = tmp_path / folder_name(b.config)
    folder.mkdir()
    assert not seconds.fits(b, 99)
    (folder / "attention.state.safetensors").touch()
    assert seconds.fits(b, 99), "what it does is kept"
    assert seconds.fits(a, 101)
    seconds.note(a)  # it took no time at all
    assert seconds.fits(a, 1)


def test_all_tables_in_borrowed_minutes(small_runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.utils.download_url", offline)
    monkeypatch.setitem(TABLES, "textures", TABLES["textures"][:3])
    for other in ("surfaces", "choices", "unlabelled", "rivals"):
        monkeypatch.setitem(TABLES, other, [])
    options = ["--size", "32", "--epochs", "1", "--adgan-epochs", "1", "--set", "attention.width=4", "--device", "cpu"]
    folders = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results"), "--data-root", str(tmp_path)]
    command = ["reproduce", "all", "--jobs", "2", "--minutes", "600", *options, *folders]
    assert main([*command, "--seeds", "0"]) == 0
    first = capsys.readouterr().out.splitlines()
    assert "left: none" in first
    assert any("minutes: 3 done, 0 failed, 0 stopped" in line for line in first)
    assert main([*command, "--seeds", "0", "1"]) == 0
    second = capsys.readouterr().out.splitlines()
    assert any("minutes: 3 done, 0 failed, 0 stopped" in line for line in second), "those of seed 0 are there"
    assert {row["seed"] for row in read_results(tmp_path / "results" / "results.csv")} == {"0", "1"}


def test_a_run_that_saved_nothing_begins_again_only_with_more_time(tmp_path):
    a, b, _ = textures("as the recipe says", "no adversarial losses", "rectangles only")
    folder = tmp_path / folder_name(a.config)

    def call() -> Seconds:
        return Seconds(tmp_path, tmp_path, device="cpu", threads=2)

    seconds = call()
    assert seconds.fits(a, 0.0)
    had = seconds.stopped(a)
    assert had > 0
    assert not call().fits(a, had / 2), "it would do the same again"
    assert call().fits(b, had / 2), "of another nothing is known"
    seconds = call()
    assert seconds.fits(a, 2 * had)
    folder.mkdir(exist_ok=True)
    (folder / "attention.state.safetensors").touch()
    assert seconds.stopped(a) == 0, "what it did is kept"
    seconds = call()
    assert seconds.fits(a, 0.0)
    assert seconds.stopped(a) > 0, "the state is as it was"
    assert not call().fits(a, 0.0)
    seconds = call()
    assert seconds.fits(a, 60)
    (folder / "attention.state.safetensors").unlink()
    (folder / "run.json").touch()
    assert seconds.stopped(a) == 0, "it is trained"
    assert seconds.fits(a, 60)
    assert seconds.stopped(a) > 0
    assert seconds.fits(a, 60)
    seconds.note(a)
    assert not (folder / "unsaved.json").exists()


def test_minutes_that_are_too_few_are_told_and_nothing_is_done_twice(tmp_path, monkeypatch, capsys):
    begun = []

    def too_short(_: Any, planned: Sequence[Job], *, fits: Any, **__: Any) -> Iterator[tuple[Job, Exception]]:
        for job in planned:
            if fits(job, 0.0):
                begun.append(job)
                yield job, Stopped("ended at the deadline; the same command goes on from its last saved state")

    monkeypatch.setattr("attnad.study.engines.run_in_processes", too_short)
    few = [v for v in TABLES["textures"] if v.recipe is None][:2]
    monkeypatch.setitem(TABLES, "textures", few)
    arguments = {"classes": ["brick"], "seeds": (0,), "minutes": 1, "device": "cpu"}
    folders = {name: tmp_path / name for name in ("runs", "results")}
    reproduce("textures", **arguments, **folders)
    assert len(begun) == 2
    first = capsys.readouterr().out
    assert first.count("and nothing of them is saved") == 2
    assert "0 stopped with their states saved, 2 with nothing saved" in first
    assert "goes on" not in first
    assert "2 of them need more time at once than this: give --minutes 2 " in first
    reproduce("textures", **arguments, **folders)
    assert len(begun) == 2
    second = capsys.readouterr().out
    assert "left: 2 (textures 2)\n2 of them need more time" in second
