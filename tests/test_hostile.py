"""A stranger's files among photographs, and a folder that others write to: nothing runs, hangs or is written over."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hostile import EPS, hostile_files, in_iptc
from made import fails
from photographs import TINY, N, rows, scored
from PIL import EpsImagePlugin, Image
from waiting import PATIENCE

from attnad.cli import main
from attnad.report.report import cell, table

pytestmark = [pytest.mark.usefixtures("elsewhere"), pytest.mark.timeout(PATIENCE)]  # a pipe would be read for ever


@pytest.fixture
def trap(tmp_path, monkeypatch) -> None:
    """A `gs` on the PATH that writes a log; the test of it below shows that Pillow by itself would call it."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\necho called >> {tmp_path}/log\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # Pillow looks for it again


def test_the_trap_works(trap, tmp_path):
    (tmp_path / "x.png").write_bytes(in_iptc(EPS))
    with suppress(OSError), Image.open(tmp_path / "x.png") as image:
        image.load()
    assert (tmp_path / "log").exists()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", ["whole", "tiles"])
def test_a_folder_with_one_of_each_hostile_kind(photographs, new, kind, trap, tmp_path, capsys):
    names = hostile_files(new)
    assert main(["score", str(photographs / kind), str(new), "--out", "out"]) == 1
    said = capsys.readouterr().err
    assert scored() == {f"{i:03d}.png" for i in range(N)}
    assert f"attnad: {len(names)} of {N + len(names)} images could not be scored" in said
    assert said.count("not scored: ") == len(names)
    assert not (tmp_path / "log").exists(), "an image started a program"
    assert Path("out/report.html").read_text(encoding="utf-8").count("<li class") == N


def test_training_on_such_a_folder_names_them_all(new, trap, tmp_path, capsys):
    names = [name for name in hostile_files(new) if name != "circle"]
    (new / "circle").unlink()
    said = fails_of_training(new, capsys)
    for name in ("pipe.png", "gone.png", "circle.png", "device.png"):  # what is no file is named first, all of it
        assert name in said
    for name in ("pipe.png", "gone.png", "circle.png", "device.png"):
        (new / name).unlink()
    said = fails_of_training(new, capsys)
    assert f"{len(names) - 4} of {N + len(names) - 4} files cannot be used" in said
    assert not (tmp_path / "log").exists()


def fails_of_training(folder: Path, capsys) -> str:
    capsys.readouterr()
    assert main(["train", str(folder), *TINY, "--out", "no"]) == 2
    assert not list(Path("no").glob("*.safetensors"))
    return capsys.readouterr().err


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
    command = ["score", str(photographs / "whole"), str(new), "--out", "out"]
    assert main(command) == 0
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
    assert main(command) == 0
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
