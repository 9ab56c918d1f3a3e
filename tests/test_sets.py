"""The development sets: what is measured, and kept where a command is stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
from made import few_crops

from attnad.cli import main
from attnad.errors import DataError
from attnad.study import sets
from attnad.study.moved import MOVED
from attnad.study.records import read_records


@pytest.fixture
def few(monkeypatch) -> None:
    """Few crops, and two changes."""
    few_crops(monkeypatch)
    monkeypatch.setattr(sets, "MOVED", {name: MOVED[name] for name in ("as is", "shift 8")})


def reproduce(results: Path, *more: str) -> int:
    return main(["reproduce", "sets", "--results", str(results), "--device", "cpu", "--seeds", "0", *more])


def test_rows_are_written_whole_and_what_is_there_is_not_measured_again(few, tmp_path, monkeypatch, capsys):
    chosen = ["--classes", "brick", "--detectors", "gaussian", "neighbours"]
    learn = sets.learn

    def killed(config, *rest):
        if config.recipe == "neighbours":
            raise KeyboardInterrupt
        return learn(config, *rest)

    monkeypatch.setattr(sets, "learn", killed)
    assert reproduce(tmp_path, *chosen) == 130
    first = (tmp_path / "sets.csv").read_text()
    monkeypatch.setattr(sets, "learn", learn)
    assert reproduce(tmp_path, *chosen) == 0
    text = (tmp_path / "sets.csv").read_text()
    assert text.startswith(first)
    rows = read_records(tmp_path / "sets.csv", sets.COLUMNS)
    assert [(row["detector"], row["moved"]) for row in rows] == [
        (name, moved) for name in ("gaussian", "neighbours") for moved in ("as is", "shift 8")
    ]
    for row in rows:
        assert (row["set"], row["size"], row["promised"], row["n_train"]) == ("brick", "64", "0.05", "22")
        assert (row["n_good"], row["n_bad"]) == ("8", "18")
        assert all(
            0 <= float(row[name]) <= 1 for name in ("image_auroc", "pixel_auroc", "aupro", "false_alarms", "found")
        )
        assert (row["milliseconds"] != "") == (row["moved"] == "as is")
        assert float(row["fit_seconds"]) > 0
    monkeypatch.setattr(sets, "learn", None)  # nothing is left to fit
    assert reproduce(tmp_path, *chosen) == 0
    assert (tmp_path / "sets.csv").read_text() == text
    printed = capsys.readouterr().out
    assert "brick, gaussian, seed 0" in printed
    assert "a choice needs two sets or more" in printed


def test_a_variant_stands_under_its_own_name(few, tmp_path):
    assert reproduce(
        tmp_path, "--classes", "brick", "--detectors", "gaussian", "--set", "shrink=0.1", "--size", "32"
    ) == 0  # fmt: skip
    assert {row["detector"] for row in read_records(tmp_path / "sets.csv", sets.COLUMNS)} == {
        "gaussian shrink=0.1 size=32"
    }


def test_folders_are_looked_for_in_three_places_and_what_is_not_there_is_named(tmp_path, capsys):
    for name in ("pill", "sets/kolektor", "mvtec_ad/bottle"):
        (tmp_path / name).mkdir(parents=True)
    there = sets.sets_there(None, tmp_path)
    assert there == ["kolektor", "bottle", "pill", *sets.TURNED, *sets.EMBEDDED]
    printed = capsys.readouterr().out
    assert printed == f"left out, for they are not below {tmp_path}: deeppcb, casting, elpv_poly, potato_leaf\n"
    assert sets.place("kolektor", tmp_path) == (str(tmp_path / "sets" / "kolektor"), None)
    assert sets.place("pill_turned", tmp_path) == sets.place("pill", tmp_path)
    assert sets.place("retina", tmp_path) == ("textures", "retina")
    with pytest.raises(DataError, match=r"casting: no folder of that name is in .*; name its folder: --data-root"):
        sets.place("casting", tmp_path)
    with pytest.raises(DataError, match="there is no set 'botle'; choose among kolektor, "):
        sets.sets_there(["botle"], tmp_path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sets", "--jobs", "2", "--recipe", "paper"], "attnad reproduce sets does not take --recipe, --jobs"),
        (["table5", "--detectors", "strong"], "table5 has its own detectors; leave --detectors out"),
        (["sets", "--classes", "brick", "--detectors", "strongest"], "there is no recipe 'strongest'"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, capsys, arguments, said):
    assert main(["reproduce", *arguments, "--results", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "sets.csv").exists()


def test_a_table_with_other_columns_or_damage_is_refused_and_kept(tmp_path):
    path = tmp_path / "sets.csv"
    for text, said in (("set,detector\na,b\n", "is damaged"), ("x\n", "has not the columns"), ("", "is damaged")):
        path.write_text(text)
        with pytest.raises(DataError, match=f"sets.csv: {said}.*move it away"):
            read_records(path, sets.COLUMNS)
        assert path.read_text() == text
