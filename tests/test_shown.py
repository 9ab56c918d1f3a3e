"""Names that strangers gave to files: on a terminal each is one line of printable text, whatever it holds."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from unicodedata import category

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import images
from PIL import Image

import attnad.report.follow
from attnad.cli import main
from attnad.data import load_images
from attnad.data.images import all_of
from attnad.errors import DataError, shown

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="such names are refused there")

FORGED = "passed      0.01  fake.png"
NASTY = [
    f"a\n{FORGED}",
    f"b\r{FORGED}",
    "c\x1b[2J\x1b[1;1H\x1b]0;title\a",
    "d\u202egnp.exe",
    "e\u2028line\u2029line\x85line\x0bline",
    os.fsdecode(b"f\xff\xfe"),
    "g\u200b\u2066",
]


@given(st.text(st.characters()))
def test_any_text_is_one_line_once_and_for_all(text):
    assert all(c.isprintable() or category(c) == "Zs" for c in shown(text))
    assert shown(shown(text)) == shown(text)
    shown(text).encode()
    if text.isprintable():
        assert shown(text) == text


def test_letters_of_every_script_stay():
    assert shown("Prüfling №3 – 検査\u3000– צילום.png") == "Prüfling №3 – 検査\u3000– צילום.png"


def test_a_line_of_an_error_is_one_line_also_from_another_process():
    first, second = DataError(f"a\n{FORGED}: is empty"), DataError("b: is damaged")
    both = all_of([all_of([first, second], 2), second], 5)
    assert str(both).count("\n") == 1 + 2 + 1, "lines that are meant stay"
    assert str(pickle.loads(pickle.dumps(both))) == str(both)
    assert FORGED not in str(both).splitlines()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shown")
    photographs(folder / "good", 12)
    recipe = ["--recipe", "gaussian", "--size", "32", "--min-side", "64", "--channels", "8"]
    assert main(["train", str(folder / "good"), *recipe, "--out", str(folder / "run")]) == 0
    return folder / "run"


def photographs(folder: Path, n: int) -> None:
    folder.mkdir(parents=True)
    for i, image in enumerate((255 * images(n, 32)).byte().permute(0, 2, 3, 1).numpy()):
        Image.fromarray(image).save(folder / f"{i:02d}.png")


def nasty(folder: Path, *, damaged: bool) -> None:
    """Photographs of nasty names, or files of such names that are none."""
    photographs(folder, len(NASTY))
    for path, name in zip(sorted(folder.iterdir()), NASTY, strict=True):
        path.rename(folder / f"{name}.png")
        if damaged:
            (folder / f"{name}.png").write_bytes(b"no image")


def lines(out: str) -> list[str]:
    """What a terminal was given, each line of which must be text and none what a name forged."""
    bad = [c for c in out if not c.isprintable() and c not in "\n\r"]  # the progress bar's own
    assert not bad, sorted(map(ascii, set(bad)))
    assert "\rpassed" not in out
    found = [line.rpartition("\r")[2] for line in out.split("\n")]
    assert not [line for line in found if line.startswith(FORGED)]
    return found


def scored(run: Path, folder: Path, out: Path) -> None:
    assert main(["score", str(run), str(folder), "--out", str(out)]) in (0, 1, 2)


def trained(run: Path, folder: Path, out: Path) -> None:
    recipe = ["--recipe", "gaussian", "--size", "32", "--min-side", "64", "--channels", "8"]
    assert main(["train", str(folder), *recipe, "--out", str(out)]) == 2


def evaluated(run: Path, folder: Path, out: Path) -> None:
    shutil.copytree(run.parent / "good", out / "train/good")
    shutil.copytree(run.parent / "good", out / "test/good")
    for name in NASTY:
        photographs(out / "test" / name, 2)
    assert main(["evaluate", str(run), str(out), "--normal-class", "good"]) == 0
    shutil.copytree(folder / NASTY[1], out / "ground_truth" / NASTY[0])
    assert main(["evaluate", str(run), str(out), "--normal-class", "good"]) == 2


def followed(run: Path, folder: Path, out: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        looks = iter(range(9))

        def sleep(_: float) -> None:
            look = next(looks)
            if look == 1:
                next(folder.glob("*/*")).unlink()
            elif look == 4:
                raise KeyboardInterrupt

        patch.setattr(attnad.report.follow, "SETTLED", 0)
        patch.setattr(attnad.report.follow, "PATIENCE", 0)
        patch.setattr(attnad.report.follow.time, "sleep", sleep)
        assert main(["score", str(run), str(folder), "--follow", "--out", str(out)]) == 0


@pytest.mark.parametrize("damaged", [False, True], ids=["photographs", "damaged"])
@pytest.mark.parametrize("command", [scored, trained, evaluated, followed])
def test_no_name_forges_a_line(command: Callable, damaged: bool, run: Path, tmp_path: Path, capsys):
    if command is trained and not damaged:
        (tmp_path / "new" / NASTY[0]).mkdir(parents=True)
    nasty(tmp_path / "new" / NASTY[1], damaged=damaged)
    os.mkfifo(tmp_path / "new" / f"{NASTY[2]}.png")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        command(run, tmp_path / "new", tmp_path / "out")
    said = capsys.readouterr()
    assert [line for line in lines(said.out) + lines(said.err) if "\\x1b" in line or "\\n" in line]
    for warning in told:
        assert str(warning.message).isprintable()


def test_a_file_that_the_system_names_is_named_in_one_line(tmp_path, capsys, run):
    out = tmp_path / "file\nattnad: all is well"
    out.write_text("")
    assert main(["score", str(run), str(run.parent / "good"), "--out", str(out)]) == 1
    assert [line for line in lines(capsys.readouterr().err) if line.startswith("attnad: all is well")] == []


def test_an_error_in_python_is_in_one_line_too(tmp_path):
    path = tmp_path / NASTY[0]
    path.write_bytes(b"")
    with pytest.raises(DataError) as raised:
        load_images([path], size=32)
    assert str(raised.value).isprintable()
