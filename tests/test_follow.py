"""attnad score --follow, in real processes: killed, restarted, files written in halves, Ctrl-C."""

from __future__ import annotations

import csv
import errno
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from faults import processes
from hostile import hostile_files
from PIL import Image
from waiting import PATIENCE, until

from attnad.cli import main
from attnad.data import textures
from attnad.errors import DataError
from attnad.report import follow as following
from attnad.training.storage import load_json

N = 24


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A folder with a finished run, `run`, and photographs, `all`: not to be changed."""
    folder = tmp_path_factory.mktemp("work")
    for name, images in (
        ("good", textures.train_crops("gravel", 32)[:40]),
        (
            "all",
            np.concatenate(
                [textures.held_out_crops("gravel", 32)[0][: N // 2], textures.train_crops("brick", 32)[: N // 2]]
            ),
        ),
    ):
        (folder / name).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(folder / name / f"{i:02d}.png")
    recipe = ["--recipe", "gaussian", "--size", "32", "--min-side", "64", "--channels", "16"]
    assert main(["train", str(folder / "good"), *recipe, "--out", str(folder / "run")]) == 0
    assert main(["score", str(folder / "run"), str(folder / "all"), "--out", str(folder / "wanted")]) == 0
    return folder


def carry_out(arguments: list[str], log: Path, tries: Path | None, patience: float) -> None:
    """The command, in its process: what it prints stands in a log, and files that could not be read in `tries`."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = (
        os.fdopen(number, "w", buffering=1, encoding="utf-8", errors=errors)
        for number, errors in ((1, "strict"), (2, "backslashreplace"))
    )
    # Tests that run in the background of a script inherit that Ctrl-C is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    reason = following._reason

    def noted(error: DataError, path: Path) -> str:
        with open(tries, "a", errors="replace") as file:
            print(path.name, file=file)
        return reason(error, path)

    following.PATIENCE = patience
    if tries:
        following._reason = noted
    status = main(arguments)
    sys.stdout.flush()
    os._exit(status)


class Following:
    """A process that follows a folder."""

    def __init__(
        self, work: Path, folder: Path, out: Path, *more: str, tries: Path | None = None, patience: float = 30.0
    ):
        self.log = out.with_name(f"{out.name}-{time.monotonic_ns()}.log")
        self.command = ["score", str(work / "run"), str(folder), "--follow", "--out", str(out), *more]
        self.process = processes.Process(target=carry_out, args=(self.command, self.log, tries, patience))
        self.process.start()

    def __enter__(self) -> Following:
        return self

    def __exit__(self, *_: object) -> None:
        """Kill it, unless it has ended by now."""
        self.process.kill()
        self.process.join()

    def until(self, holds: Callable[[], bool]) -> None:
        until(holds, self.process.is_alive)

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8") if self.log.exists() else ""

    def ended(self) -> str:
        """Press Ctrl-C; returns what was printed."""
        os.kill(self.process.pid, signal.SIGINT)
        self.process.join(PATIENCE)
        assert self.process.exitcode == 0, self.said()
        assert "Traceback" not in self.said()
        return self.said()


def rows(out: Path) -> list[dict[str, str]]:
    with open(out / "scores.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def names(out: Path) -> list[str]:
    return [Path(row["file"]).name for row in rows(out)] if (out / "scores.csv").exists() else []


def test_killed_and_restarted_nothing_is_lost_and_nothing_scored_twice(work, tmp_path):
    """Half of the images are there, the others come in halves; the process is killed as it scores, three times."""
    tries = tmp_path / "tries"
    tries.touch()
    folder, out = tmp_path / "new", tmp_path / "out"
    images = sorted((work / "all").iterdir())
    (folder / "inner").mkdir(parents=True)
    for path in images[: N // 2]:
        shutil.copy(path, folder / path.name)
    slow = [(path, folder / "inner" / path.name) for path in images[N // 2 :]]
    for count in (2, 7, 13):
        with Following(work, folder, out, tries=tries) as process:
            if count == 13:  # by now the first half is there
                for path, to in slow:
                    content = path.read_bytes()
                    to.write_bytes(content[: len(content) // 2])
                process.until(lambda: len(names(out)) == N // 2)
                process.until(lambda: all(tries.read_text().split().count(path.name) > 1 for path, _ in slow))
                assert len(names(out)) == N // 2
                for path, to in slow:
                    with open(to, "ab") as file:
                        file.write(path.read_bytes()[len(path.read_bytes()) // 2 :])
            process.until(lambda count=count: len(names(out)) >= count)
        text = (out / "scores.csv").read_bytes()
        assert text.endswith(b"\r\n")
        assert all(None not in row.values() and None not in row for row in rows(out)), "a torn line"
        assert len(names(out)) == len(set(names(out)))
    # What a power cut leaves: a part of the last line. Its image is scored again, once.
    (out / "scores.csv").write_bytes(text[:-9])
    with Following(work, folder, out) as process:
        process.until(lambda: sorted(set(names(out))) == [path.name for path in images] and len(names(out)) == N)
        printed = process.ended()
    wanted = {Path(row["file"]).name: float(row["score"]) for row in rows(work / "wanted")}
    assert {Path(row["file"]).name: float(row["score"]) for row in rows(out)} == pytest.approx(wanted, rel=1e-4)
    assert len({row["map"] for row in rows(out)}) == N
    assert all((out / row["map"]).exists() for row in rows(out))
    flagged = sum(row["anomalous"] == "yes" for row in rows(out))
    assert f"{flagged} of {N} images look anomalous: {out / 'report.html'}" in printed
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("<li class") == N
    assert page.index("23.png") < page.index("05.png"), "the worst is not first"


def test_what_cannot_be_read_is_told_and_the_rest_goes_on(work, tmp_path, capsys):
    folder, out = tmp_path / "new", tmp_path / "out"
    folder.mkdir()
    content = (work / "all" / "00.png").read_bytes()
    (folder / "half.png").write_bytes(content[:-60])
    (folder / "later.png.part").write_bytes(content)
    (folder / "text.txt").write_text("no image")
    with Image.open(work / "all" / "01.png") as image:
        image.resize((320, 32)).save(folder / "01.png")
    with Following(work, folder, out, "--maps", "npy", patience=1.0) as process:
        wanted = ("half.png: is no image", "text.txt: is no image", "01.png")
        process.until(lambda: all(each in process.said() for each in wanted))
        assert names(out) == ["01.png"]
        assert main(process.command) == 2
        assert "is in use by another attnad score" in capsys.readouterr().err
        (tmp_path / "whole.png").write_bytes(content)
        (tmp_path / "whole.png").replace(folder / "half.png")
        (folder / "later.png.part").rename(folder / "later.png")
        process.until(lambda: len(names(out)) == 3)
        printed = process.ended()
    assert printed.count("a defect smaller than 20 pixels") == 1
    assert "text.txt: not scored, is no image that is read" in printed
    assert sorted(names(out)) == ["01.png", "half.png", "later.png"]
    assert len(list((out / "maps").glob("*.npy"))) == 3
    assert "of 3 images look anomalous" in printed


def test_strays_and_hostile_files_do_not_stop_it(work, tmp_path):
    """One of each kind among good images: these are scored, the others told, and nothing hangs."""
    folder, out = tmp_path / "new", tmp_path / "out"
    shutil.copytree(work / "all", folder)
    names_of_others = hostile_files(folder)
    with Following(work, folder, out, patience=0.0) as process:
        process.until(lambda: len(names(out)) == N)
        printed = process.ended()
    assert sorted(names(out)) == [f"{i:02d}.png" for i in range(N)]
    assert printed.count("not scored, ") == len(names_of_others)
    assert f"of {N} images look anomalous" in printed


def test_what_has_changed_is_said_as_it_happens_and_when_it_is_over(work, tmp_path):
    folder, out = tmp_path / "new", tmp_path / "out"
    folder.mkdir()

    def arrive(name: str, light: float, n: int) -> None:
        for i in range(n):
            with Image.open(work / "good" / f"{i:02d}.png") as image:
                image.point(lambda value: value * light).save(folder / f"{name}{i:02d}.png")

    def said() -> dict[str, str]:
        return load_json(out / "follow.json").get("changed", {})

    with Following(work, folder, out) as process:
        arrive("a", 0.5, 12)
        process.until(lambda: (out / "follow.json").exists() and "light" in said())
        assert "are darker than nearly all photographs that were learned from" in said()["light"]
        printed = process.ended()
    assert "are darker than nearly all photographs" in printed
    assert "Changed since training" in (out / "report.html").read_text(encoding="utf-8")
    with Following(work, folder, out) as process:
        process.until(lambda: not said())  # nothing is known of photographs that have not come yet
        arrive("b", 0.5, 20)
        process.until(lambda: "light" in said())
        arrive("c", 1.0, 20)
        process.until(lambda: not said())
        printed = process.ended()
    assert printed.index("are darker than nearly all") < printed.index("The last 20: as what was learned from")


def test_a_full_disk_leaves_whole_lines_only(work, tmp_path, capsys, monkeypatch):
    out, real = tmp_path / "out", os.fsync

    def full(descriptor: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{descriptor}")) == out / "scores.csv" and len(names(out)) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "scores.csv")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    assert main(["score", str(work / "run"), str(work / "all"), "--follow", "--out", str(out)]) == 1
    assert os.strerror(errno.ENOSPC) in capsys.readouterr().err
    assert names(out) == ["00.png", "01.png", "02.png"]


def test_what_is_refused(work, tmp_path, capsys):
    def fails(*arguments: object) -> str:
        assert main(["score", str(work / "run"), *map(str, arguments)]) == 2
        return capsys.readouterr().err

    (tmp_path / "new").mkdir()
    assert "no such folder" in fails(tmp_path / "nowhere", "--follow", "--out", tmp_path / "out")
    assert "name one" in fails(work / "all", work / "good", "--follow", "--out", tmp_path / "out")
    assert "choose another --out" in fails(tmp_path / "new", "--follow", "--out", tmp_path / "new" / "out")
    assert not (tmp_path / "out").exists()
    assert "without --follow; choose another --out" in fails(work / "all", "--follow", "--out", work / "wanted")
    (tmp_path / "new" / "text.txt").write_text("no image")
    with Following(work, tmp_path / "new", tmp_path / "out", patience=0.0) as process:
        process.until(lambda: "text.txt: " in process.said())
        assert "No image came" in process.ended()
    said = fails(tmp_path / "new", "--follow", "--threshold", "9", "--out", tmp_path / "out")
    assert "9.0 here" in said
    assert "belongs to attnad score --follow" in fails(work / "all", "--out", tmp_path / "out")
    with open(tmp_path / "out" / "scores.csv", "a") as file:
        file.write("a,b\r\nc,d,e,f,g,h,i,j\r\n")
    assert "scores.csv is damaged" in fails(tmp_path / "new", "--follow", "--out", tmp_path / "out")
