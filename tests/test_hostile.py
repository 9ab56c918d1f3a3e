"""A stranger's files among photographs, and a folder that others write to: nothing runs, hangs or is written over."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hostile import EPS, hostile_files, in_iptc
from made import fails
from photographs import TINY, N, rows, scored
from PIL import Image

from attnad.cli import main
from attnad.report.report import cell, table

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.fixture
def trap(tmp_path) -> Path:
    """A folder for PATH whose `gs` writes a log; the test of it below shows that Pillow by itself would call it."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\necho called >> {tmp_path}/log\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    return tmp_path / "bin"


def test_the_trap_works(trap, tmp_path):
    (tmp_path / "x.png").write_bytes(in_iptc(EPS))
    code = f"from PIL import Image; Image.open({str(tmp_path / 'x.png')!r}).load()"
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PATH": f"{trap}:/bin"}, capture_output=True)
    assert (tmp_path / "log").exists()


@pytest.mark.parametrize("kind", ["whole", "tiles"])
def test_a_folder_with_one_of_each_hostile_kind(photographs, new, kind, trap, tmp_path):
    names = hostile_files(new)
    command = [sys.executable, "-m", "attnad", "score", photographs / kind, new, "--out", "out"]
    done = subprocess.run(command, env=os.environ | {"PATH": f"{trap}:/bin"}, capture_output=True, timeout=600)
    said = done.stderr.decode(errors="replace")
    assert done.returncode == 1, said
    assert scored() == {f"{i:03d}.png" for i in range(N)}
    assert f"attnad: {len(names)} of {N + len(names)} images could not be scored" in said
    assert said.count("not scored: ") == len(names)
    assert not (tmp_path / "log").exists(), "an image started a program"
    assert Path("out/report.html").read_text(encoding="utf-8").count("<li class") == N


def test_training_on_such_a_folder_names_them_all(photographs, new, trap, tmp_path):
    names = [name for name in hostile_files(new) if name != "circle"]
    (new / "circle").unlink()
    for name in ("pipe.png", "gone.png", "circle.png", "device.png"):  # what is no file is named first, all of it
        assert name in fails_of_training(photographs, new, trap)
    for name in ("pipe.png", "gone.png", "circle.png", "device.png"):
        (new / name).unlink()
    said = fails_of_training(photographs, new, trap)
    assert f"{len(names) - 4} of {N + len(names) - 4} files cannot be used" in said
    assert not (tmp_path / "log").exists()


def fails_of_training(photographs: Path, folder: Path, trap: Path) -> str:
    command = [sys.executable, "-m", "attnad", "train", folder, *TINY, "--out", "no"]
    done = subprocess.run(command, env=os.environ | {"PATH": f"{trap}:/bin"}, capture_output=True, timeout=600)
    assert done.returncode == 2
    assert not list(Path("no").glob("*.safetensors"))
    return done.stderr.decode(errors="replace")


def test_links_in_a_shared_folder_are_not_followed(photographs, new, capsys):
    Path("precious").write_text("mine")
    Path("elsewhere").mkdir()
    Path("elsewhere/0001-000.png").write_text("mine")
    command = ["score", str(photographs / "whole"), str(new), "--out", "out"]
    for name in (".scores.csv.writing", "report.html", "scores.csv", "score.json", ".lock"):
        shutil.rmtree("out", ignore_errors=True)
        Path("out").mkdir()
        Path("out", name).symlink_to(Path("precious").resolve())
        main(command)
        assert Path("precious").read_text() == "mine", name
    shutil.rmtree("out")
    Path("out").mkdir()
    Path("out/maps").symlink_to(Path("elsewhere").resolve())
    assert "is a link" in fails(capsys, *command)
    assert [path.read_text() for path in Path("elsewhere").iterdir()] == ["mine"]


def test_a_map_that_the_table_names_is_read_as_a_map_alone(photographs, new, trap, tmp_path):
    command = [sys.executable, "-m", "attnad", "score", photographs / "whole", new, "--out", "out"]
    environment = os.environ | {"PATH": f"{trap}:/bin"}
    assert subprocess.run(command, env=environment, capture_output=True).returncode == 0
    maps = [Path("out", row["map"]) for row in rows()[:4]]
    maps[0].write_bytes(EPS)
    maps[1].write_bytes(in_iptc(EPS))
    Image.new("L", (2000, 2000)).save(maps[2])
    maps[3].unlink()
    os.mkfifo(maps[3])
    text = Path("out/scores.csv").read_text().replace(rows()[4]["map"], "../new/000.png")
    Path("out/scores.csv").write_text(text)
    time.sleep(0.01)  # so that all of them are younger than the photographs
    for path in maps:
        os.utime(path)
    assert subprocess.run(command, env=environment, capture_output=True, timeout=300).returncode == 0
    page = Path("out/report.html").read_text(encoding="utf-8")
    assert page.count("<li class") == N - 4
    assert "4 whose files are no longer there are left out" in page
    assert not (tmp_path / "log").exists()


def test_no_two_names_are_one_line(tmp_path):
    names = [
        "\\udcff",
        os.fsdecode(b"\xff"),
        "\\\\udcff",
        os.fsdecode(b"\\\xff"),
        "a\\b",
        "a\\\\b",
        "=x",
        "./=x",
        " =x",
    ]
    assert len({cell(Path("d", name)) for name in names}) == len(names) - 1  # of a path, ./=x is =x
    assert cell(Path("d/a\\b")) == "d/a\\b"


@pytest.mark.parametrize(
    "name", ["=1", "+1", "-1", "@x", "\t=1", "\n=1", "\r=1", " =1", "＝1", "＋1", "－1", "＠x", "|x"]
)
def test_no_name_begins_a_formula(name):
    assert cell(Path(name)) == f"./{name}"
    assert table([(cell(Path("a;=1")), 2)]) == '"a;=1","2"\r\n'
