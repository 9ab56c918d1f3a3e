"""attnad score of many files: what can be scored is, each once, nothing is lost, and all that could not be is named."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from faults import processes
from filelock import FileLock
from made import fails
from photographs import N, rows, scored
from PIL import Image
from waiting import PATIENCE

from attnad.cli import main
from attnad.report import scoring

pytestmark = pytest.mark.usefixtures("elsewhere")


def score_and_stop(arguments: list[str], number: int, log: Path) -> None:
    """The command, in its process: a signal reaches it when ten photographs or more are in the table."""
    add = scoring.ScoreTable.add

    def add_and_stop(self: scoring.ScoreTable, judged: Any) -> None:
        add(self, judged)
        if len(self.lines) >= 10:
            os.kill(os.getpid(), number)

    scoring.ScoreTable.add = add_and_stop
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with open(log, "w", buffering=1, errors="backslashreplace") as sys.stderr:
        status = main(arguments)
    os._exit(status)


@pytest.fixture(scope="module")
def wanted(photographs, tmp_path_factory) -> dict[str, dict[str, float]]:
    """Scores of the photographs by each run, by their names, where nothing comes between."""
    found = {}
    for kind in ("whole", "tiles"):
        out = tmp_path_factory.mktemp(kind)
        assert main(["score", str(photographs / kind), str(photographs / "new"), "--out", str(out)]) == 0
        found[kind] = scores(out)
    return found


def scores(out: str | Path = "out") -> dict[str, float]:
    return {Path(row["file"]).name: float(row["score"]) for row in rows(out)}


@pytest.mark.parametrize("kind", ["whole", "tiles"])
def test_what_can_be_scored_is_and_all_else_is_named(photographs, new, kind, wanted, capsys):
    for i in (3, 11, 25):
        (new / f"{i:03d}.png").write_bytes((new / f"{i:03d}.png").read_bytes()[:-60])
    (new / "notes.txt").write_text("no image")
    os.mkfifo(new / "pipe.png")
    (new / "gone.png").symlink_to("nowhere.png")
    (new / "linked").symlink_to(photographs / "good")
    capsys.readouterr()
    assert main(["score", str(photographs / kind), str(new), "--out", "out"]) == 1
    said = capsys.readouterr().err
    bad = ("003.png", "011.png", "025.png", "notes.txt", "pipe.png", "gone.png", "linked")
    assert all(f"not scored: {new / name}: " in said for name in bad)
    assert said.splitlines()[-1].startswith(f"attnad: 7 of {N + 4} images could not be scored; ")
    assert scored() == {f"{i:03d}.png" for i in range(N)} - set(bad)
    assert scores() == pytest.approx({name: wanted[kind][name] for name in scored()}, rel=1e-4)
    assert Path("out/report.html").read_text(encoding="utf-8").count("<li class") == N - 3


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("kind", ["whole", "tiles"])
def test_stopped_in_the_middle_the_same_command_goes_on(photographs, new, kind, stop, wanted, capsys):
    arguments = ["score", str(photographs / kind), str(new), "--out", "out"]
    process = processes.Process(target=score_and_stop, args=(arguments, stop, Path("log").absolute()))
    process.start()
    process.join(PATIENCE)
    done = scored()
    assert 10 <= len(done) < N
    if stop == signal.SIGKILL:
        assert process.exitcode == -stop
    else:
        assert process.exitcode == 130
        last = Path("log").read_text().strip().splitlines()[-1]
        assert f"stopped; {len(done)} of {N} images are scored, in out/scores.csv; run the same command again" in last
    drawn = {row["file"]: Path("out", row["map"]).stat().st_mtime_ns for row in rows()}
    assert main(arguments) == 0
    assert f"{len(done)} of {N} images are scored already" in capsys.readouterr().out
    assert {row["file"]: Path("out", row["map"]).stat().st_mtime_ns for row in rows() if row["file"] in drawn} == drawn
    assert scores() == pytest.approx(wanted[kind], rel=1e-4)
    assert scored() == {path.name for path in new.iterdir()}
    assert not Path("out", "maps", ".writing").exists()


def test_a_full_disk_loses_maps_before_scores(photographs, new, capsys, monkeypatch):
    def full(out: Path, number: int, *others: object) -> str:
        if number > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out))
        return write(out, number, *others)

    write = scoring.write_map
    with monkeypatch.context() as patched:
        patched.setattr(scoring, "write_map", full)
        assert main(["score", str(photographs / "whole"), str(new), "--out", "out"]) == 1
    assert "run the same command again, what was saved is kept" in capsys.readouterr().err
    assert len(rows()) == 16, "scores that were known are lost"
    assert [bool(row["map"]) for row in rows()] == [True] * 5 + [False] * 11
    assert main(["score", str(photographs / "whole"), str(new), "--out", "out"]) == 0
    assert f"5 of {N} images are scored already" in capsys.readouterr().out
    assert len(scored()) == N


def test_the_folder_holds_what_was_asked_for_last(photographs, new):
    command = ["score", str(photographs / "whole"), "--out", "out"]
    assert main([*command, *(str(new / f"{i:03d}.png") for i in range(10)), "--maps", "npy"]) == 0
    first = {row["file"]: row["score"] for row in rows()}
    assert len(list(Path("out/maps").iterdir())) == 20
    assert main([*command, *(str(new / f"{i:03d}.png") for i in (8, 9, 10))]) == 0
    assert {Path(row["file"]).name for row in rows()} == {"008.png", "009.png", "010.png"}
    assert {path.stem for path in Path("out/maps").iterdir()} == {Path(row["map"]).stem for row in rows()}
    # A photograph that changed under its name is scored again.
    shutil.copy(new / "030.png", new / "008.png")
    assert main([*command, *(str(new / f"{i:03d}.png") for i in (8, 9, 10))]) == 0
    now = {row["file"]: row["score"] for row in rows()}
    assert now[str(new / "008.png")] != first[str(new / "008.png")]
    assert now[str(new / "009.png")] == first[str(new / "009.png")]


def test_each_photograph_counts_once(photographs, new, capsys):
    twice = [new, new / "000.png", new / "." / "001.png", photographs / "new" / ".." / "new" / "002.png"]
    Path("linked").symlink_to(new)
    assert main(["score", str(photographs / "whole"), *map(str, twice[:3]), "linked/005.png", "--out", "out"]) == 0
    assert f"of {N} images look anomalous" in capsys.readouterr().out
    assert len(scored()) == N


def test_what_a_network_drive_leaves_is_no_photograph(photographs, new):
    for name in ("@eaDir/000.png/SYNOPHOTO_THUMB_M.png", "#recycle/x.png", "@Recycle/x.png", "$RECYCLE.BIN/x.png"):
        (new / name).parent.mkdir(parents=True)
        shutil.copy(new / "000.png", new / name)
    assert main(["score", str(photographs / "whole"), str(new), "--out", "out"]) == 0
    assert scored() == {f"{i:03d}.png" for i in range(N)}


def test_a_folder_has_one_command_and_one_run(photographs, new, capsys):
    assert main(["score", str(photographs / "whole"), str(new), "--out", "out"]) == 0
    assert "choose another --out" in fails(capsys, "score", photographs / "tiles", new, "--out", "out")
    with FileLock("out/.lock"):
        assert "in use by another attnad score" in fails(capsys, "score", photographs / "whole", new, "--out", "out")
    assert "would be scored" in fails(capsys, "score", photographs / "whole", new, "--out", new / "out")
    assert not (new / "out").exists()
    Path("mine").mkdir()
    Path("mine/scores.csv").write_text("my own")
    assert "scores of another command" in fails(capsys, "score", photographs / "whole", new, "--out", "mine")
    assert Path("mine/scores.csv").read_text() == "my own"


def test_a_word_where_all_are_flagged(photographs, new, capsys):
    command = ["score", str(photographs / "whole"), str(new), "--out", "out"]
    assert main([*command, "--threshold", "0"]) == 0
    assert f"All {N} are flagged. Rather than {N} defects, that is another light, " in capsys.readouterr().out
    least = min(float(row["score"]) for row in rows())
    assert main([*command, "--threshold", str(least)]) == 0  # at the threshold one passes
    said = capsys.readouterr().out
    assert "All" not in said
    assert f"{N - 1} of {N} images look anomalous" in said
    assert sum(row["anomalous"] == "yes" for row in rows()) == N - 1


def test_the_page_shows_the_worst_and_the_table_all(photographs, new, monkeypatch):
    monkeypatch.setattr(scoring, "SHOWN", 6)
    monkeypatch.setattr(scoring, "FLAGGED_SHOWN", 12)
    for threshold, shown in (("1e9", 6), ("0", 12)):
        assert main(["score", str(photographs / "whole"), str(new), "--out", "out", "--threshold", threshold]) == 0
        page = Path("out/report.html").read_text(encoding="utf-8")
        assert page.count("<li class") == shown
        assert f"the worst {shown} of {N}; scores.csv has all" in page
        assert len(rows()) == N
        assert rows()[0]["file"] in page


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.HEIC", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "is HEIC, which Pillow cannot read; save it as JPEG or PNG"),
        ("a.jpg", b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "is HEIC, which Pillow cannot read; save it as JPEG or PNG"),
        ("a.mp4", b"\0\0\0\x20ftypisom\0\0\2\0isomiso2", "is a film; save its pictures as JPEG or PNG"),
        ("a.npy", b"\x93NUMPY\x01\x00", "is a NumPy array; save it as PNG or TIFF"),
        ("a.zip", b"PK\x03\x04\x14\0", "is a ZIP archive; unpack it, and put its images here"),
        ("a.pdf", b"%PDF-1.7", "is a PDF; save its pictures as JPEG or PNG"),
        ("a.dcm", bytes(128) + b"DICM", "is DICOM; save its picture as PNG or TIFF"),
        ("a.png", b"", "is empty (0 bytes)"),
    ],
)
def test_what_a_file_of_another_kind_is(photographs, tmp_path, name, content, said, capsys):
    (tmp_path / name).write_bytes(content)
    assert said in fails(capsys, "score", photographs / "whole", tmp_path / name, "--out", "out")
    assert not Path("out").exists()


def test_raw_files_are_not_their_previews(photographs, capsys):
    """Many are TIFF with a small preview in front, which Pillow would give without a word."""
    Image.new("RGB", (160, 120)).save("preview.tiff")
    for ending in ("dng", "NEF", "cr2"):
        shutil.copy("preview.tiff", f"a.{ending}")
        assert "raw file; develop it" in fails(capsys, "score", photographs / "whole", f"a.{ending}", "--out", "out")
