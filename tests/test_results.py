"""results.csv, and the table beside the paper's that people read."""

from __future__ import annotations

import csv
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from studies import PAPER, processes, row
from waiting import PATIENCE

from attnad.config import PaperConfig
from attnad.data.cifar10 import CIFAR10_CLASSES
from attnad.errors import DataError
from attnad.study.results import KEY, read_results, rows, write_results
from attnad.study.summary import NOT_RUN, Summary, summary
from attnad.study.tables import (
    TABLES,
    Job,
)


def test_rows_from_an_outcome_by_hand():
    names = {"image_auroc": "image_auroc", "aupro": "aupro", "scratch": "by_kind.defect.image_auroc", "none": "x.y"}
    job = Job("table5", "cat", TABLES["table5"][0]._replace(rows={"ours": names}), PaperConfig(data="cifar10", seed=4))
    outcome = {
        "image_auroc": 2 / 3, "aupro": 0.25, "by_kind": {"defect": {"n": 5, "image_auroc": 1.0}}, "n": 30, "n_good": 10,
        "n_pixel_images": 20, "dataset": "CIFAR-10", "commit": "abc",
        "facts": {"torch": "2", "device": "cpu", "threads": 1, "seconds": {"a": 1.25, "b": 2.0}, "date": "today"},
    }  # fmt: skip
    found = rows(job, outcome)
    assert [(r["metric"], r["value"], r["n"]) for r in found] == [
        ("image_auroc", "0.666667", "30"), ("aupro", "0.250000", "20"), ("scratch", "1.000000", "15"),
    ]  # fmt: skip
    assert {(r["seed"], r["seconds"], r["epochs"], r["weights"]) for r in found} == {
        ("4", "3.2", "100+100", "imagenet")
    }
    assert rows(job, outcome | {"aupro": None})[1]["metric"] == "scratch"  # what is undefined has no row


def test_write_results_replaces_and_never_doubles(tmp_path):
    path = tmp_path / "new" / "results.csv"
    write_results(path, [row(seed=0), row(seed=1), row(seed=0, metric="image_ap")])
    write_results(path, [row(seed=1, value="0.900000", date="tomorrow"), row(seed=2), row(seed=2)])
    found = {(r["seed"], r["metric"]): (r["value"], r["date"]) for r in read_results(path)}
    assert found == {
        ("0", "image_auroc"): ("0.500000", "today"), ("0", "image_ap"): ("0.500000", "today"),
        ("1", "image_auroc"): ("0.900000", "tomorrow"), ("2", "image_auroc"): ("0.500000", "today"),
    }  # fmt: skip
    assert len(read_results(path)) == 4
    keys = [tuple(r[name] for name in KEY) for r in read_results(path)]
    assert keys == sorted(keys)  # so that the file changes as little as its figures
    text = path.read_text()
    write_results(path, [])
    assert path.read_text() == text
    assert [p.name for p in path.parent.iterdir() if not p.name.startswith(".")] == ["results.csv"]


@pytest.mark.parametrize("name", list(KEY))
def test_each_part_of_the_key_makes_another_row(tmp_path, name):
    write_results(tmp_path / "results.csv", [row(), row(**{name: "77"})])
    assert len(read_results(tmp_path / "results.csv")) == 2


def test_results_with_other_columns_are_refused_and_kept(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("table,value\ntable5,0.5\n")
    with pytest.raises(DataError, match="move it away"):
        write_results(path, [row()])
    assert path.read_text() == "table,value\ntable5,0.5\n"
    assert read_results(tmp_path / "missing.csv") == []


@pytest.mark.parametrize(
    "change", [slice(-20), slice(0), (b"abc", b"\xff"), (b"0.5", b"0.x"), (b"cat,", b"")], ids=repr
)
def test_damaged_results_are_refused_and_kept(tmp_path, change):
    path = tmp_path / "results.csv"
    write_results(path, [row(), row(seed="7")])
    content = path.read_bytes()
    content = content[change] if isinstance(change, slice) else content.replace(*change, 1)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"results\.csv: is damaged .*; restore it, or move it away"):
        write_results(path, [row()])
    assert path.read_bytes() == content


def write_many(path: Path, start: Any, seed: int, n: int) -> None:
    start.wait(PATIENCE)
    for i in range(n):
        write_results(path, [row(seed=seed, metric=f"m{i}"), row(seed=9, metric=f"m{i}")])


def test_two_processes_that_write_at_once_lose_nothing(tmp_path):
    path, n, start = tmp_path / "results.csv", 25, processes.Barrier(2)
    workers = [processes.Process(target=write_many, args=(path, start, seed, n)) for seed in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(PATIENCE)
    assert [worker.exitcode for worker in workers] == [0, 0]
    found = Counter((r["seed"], r["metric"]) for r in read_results(path))
    assert found == Counter((seed, f"m{i}") for seed in "019" for i in range(n))


# --- the table beside the paper's ------------------------------------------------------------------------------------


@pytest.fixture
def lines(tmp_path) -> Callable[..., dict[tuple[str, str, str], tuple[str, ...]]]:
    """Write rows and read table 5's summary: {(method, run, metric): (seeds, cells ...)}."""

    def read(found: list[dict[str, str]]) -> dict[tuple[str, str, str], tuple[str, ...]]:
        write_results(tmp_path / "results.csv", found)
        table = summary("table5", tmp_path)
        assert all(len(line) == len(table.header) for line in table.rows)
        return {line[:3]: line[3:] for line in table.rows} | {
            ("", "", ""): table.header[4:],
            ("notes",) * 3: table.notes,
        }

    shutil.copy(PAPER, tmp_path)
    return read


KIND = "quick, resnet18 (random), 32 px, epochs 10+4, CIFAR-10"
OURS = ("ADGAN", "1", "image_auroc")


def test_cells_are_mean_and_sample_deviation_over_seeds(lines):
    values = {"cat": (0.80, 0.90, 0.70), "dog": (0.60, 0.65), "ship": (0.5,)}
    found = lines([row(**{"class": c}, seed=s, value=v) for c, vs in values.items() for s, v in enumerate(vs)])
    assert found["", "", ""] == ("mean of all", "cat", "dog", "ship")  # in the order of CIFAR-10
    # 0.1 = sqrt((0.1^2 + 0 + 0.1^2) / 2); 0.035 = 0.05 / sqrt(2); one value has no deviation
    assert found[OURS] == ("1 to 3", "-", "0.800 ± 0.100", "0.625 ± 0.035", "0.500")
    assert found["ADGAN", "paper", "image_auroc"] == ("", "0.823", "-", "-", "-")
    runs, mean, missing = found["notes", "notes", "notes"]
    assert runs == f"Run 1: {KIND}."
    assert "standard deviation" in mean
    assert missing == "Not yet run: airplane, automobile, bird, deer, frog, horse, truck."


def test_the_mean_over_classes_needs_every_class(lines):
    def of_seed(seed: int, first: float, names: tuple[str, ...]) -> list[dict[str, str]]:
        return [row(**{"class": n}, seed=seed, value=first + 0.02 * i) for i, n in enumerate(names)]

    nine = CIFAR10_CLASSES[:9]
    assert lines(of_seed(0, 0.5, nine))[OURS][1] == "-"
    assert lines(of_seed(0, 0.5, CIFAR10_CLASSES))[OURS][1] == "0.590"  # 0.5 + 0.02 * 4.5
    assert lines(of_seed(1, 0.1, nine))[OURS][1] == "0.590"  # seed 1 lacks a class and does not count
    found = lines(of_seed(1, 0.6, CIFAR10_CLASSES))
    assert found[OURS][0] == "2"
    assert found[OURS][1] == "0.640 ± 0.071"  # 0.59 and 0.69
    assert found[OURS][2] == "0.550 ± 0.071"
    assert len(found["notes", "notes", "notes"]) == 2


def test_what_is_not_run_is_said(lines):
    nothing = lines([])
    methods = [method for variant in TABLES["table5"] for method in variant.rows]
    for method in methods:
        assert nothing[method, NOT_RUN, ""] == ("", "-")
    assert nothing["notes", "notes", "notes"] == (f"Not yet run: {', '.join(CIFAR10_CLASSES)}.",)
    some = lines([row()])
    assert OURS in some
    assert ("ADGAN", NOT_RUN, "") not in some
    for method in set(methods) - {"ADGAN"}:
        assert some[method, NOT_RUN, ""] == ("", "-", "-")


def test_other_kinds_of_run_are_never_averaged_together(lines):
    kinds = ({}, {"epochs": "1+1"}, {"size": "64"}, {"dataset": "CIFAR-10 (JPEG)"}, {"encoder": "efficientnet-lite0"})
    found = lines([row(**kind, seed=seed, value=i / 10) for i, kind in enumerate(kinds) for seed in (0, 1)])
    ours = {key[1]: cells for key, cells in found.items() if key[0] == "ADGAN" and key[1] != "paper"}
    assert len(ours) == len(kinds)
    assert sorted(cells[2] for cells in ours.values()) == [f"{i / 10:.3f} ± 0.000" for i in range(len(kinds))]
    (number,) = re.findall(rf"Run (\d): {re.escape(KIND)}\.", " ".join(found["notes", "notes", "notes"]))
    assert found["ADGAN", number, "image_auroc"][2] == "0.000 ± 0.000"


def test_rows_of_other_tables_are_left_out(lines):
    found = lines([row(value=0.25), row(table="table2", value=0.75)])
    assert found[OURS][2] == "0.250"


def test_a_summary_is_text_markdown_and_html():
    table = Summary(("method", "cat|dog"), (("a <b>", "0.5"), ("longer", "-")), ("A note.", "1 < 2."))
    assert table.text().splitlines() == [
        "method  cat|dog",
        "---------------",
        "a <b>   0.5",
        "longer  -",
        "",
        "A note.",
        "1 < 2.",
    ]
    assert table.markdown().splitlines() == [
        "| method | cat\\|dog |", "| --- | --- |", "| a <b> | 0.5 |", "| longer | - |", "", "A note.  ", "1 < 2.  ",
    ]  # fmt: skip
    assert table._repr_html_() == (
        "<table><thead><tr><th>method</th><th>cat|dog</th></tr></thead>"
        '<tbody><tr><td rowspan="1">a &lt;b&gt;</td><td>0.5</td></tr>'
        '<tr><td rowspan="1">longer</td><td>-</td></tr></tbody>'
        "</table><p><small>A note.<br>1 &lt; 2.</small></p>"
    )


def test_a_name_stands_once_beside_its_lines():
    table = Summary(("method", "run"), (("a", "1"), ("a", "2"), ("b", "1"), ("a", "3")), ())
    assert table._repr_html_().endswith(
        '<tbody><tr><td rowspan="2">a</td><td>1</td></tr><tr><td>2</td></tr>'
        '<tr><td rowspan="1">b</td><td>1</td></tr><tr><td rowspan="1">a</td><td>3</td></tr></tbody></table>'
    )


def test_classes_can_be_lines():
    header = ("method", "run", "seeds", "mean of all", "airplane", "truck")
    table = Summary(header, (("a", "paper", "", "0.6", "-", "-"), ("a", "1", "1", "0.5", "0.4", "0.6")), ())
    assert table.transpose().header == ("class", "a, run paper", "a, run 1")
    assert table.transpose().rows == (("airplane", "-", "0.4"), ("truck", "-", "0.6"), ("mean of all", "0.6", "0.5"))
    one = table.transpose(lambda line: line["run"] == "1")
    assert (one.header, one.rows[-1]) == (("class", "a"), ("mean of all", "0.5"))


def test_columns_and_lines_of_a_summary_can_be_selected():
    table = Summary(
        ("method", "metric", "cat"), (("a", "x", "0.1"), ("b", "y", "0.2"), ("c", "x", "0.3")), ("A note.",)
    )
    found = table.select("cat", "method", where=lambda line: line["metric"] == "x")
    assert found == Summary(("cat", "method"), (("0.1", "a"), ("0.3", "c")), ("A note.",))
    assert table.select(*table.header) == table
    with pytest.raises(ValueError, match="there is no column 'dog'; choose among method, metric, cat"):
        table.select("dog")
    with pytest.raises(ValueError, match="there is no column 'run'"):
        table.pivot("cat")
    assert table.metric("y") == Summary(("method", "cat"), (("b", "0.2"),), ("A note.",))


def test_metrics_side_by_side():
    header = ("method", "run", "metric", "seeds", "mean of all", "cat")
    lines = (
        ("a", "paper", "x", "", "0.9", "-"),
        ("a", "1", "x", "3", "-", "0.1"),
        ("a", "1", "y", "3", "-", "0.2"),
        ("b", NOT_RUN, "", "", "-", "-"),
        ("a", "2", "y", "3", "-", "0.3"),
    )
    found = Summary(header, lines, ("A note.",)).pivot("cat")
    assert found.header == ("method", "run", "seeds", "x", "y")
    assert found.rows == (
        ("a", "paper", "", "-", "-"),
        ("a", "1", "3", "0.1", "0.2"),
        ("b", NOT_RUN, "", "-", "-"),
        ("a", "2", "3", "-", "0.3"),
    )
    assert found.notes == ("A note.",)
    kept = Summary(header, lines, ()).metric("y")
    assert kept.rows == (("a", "1", "3", "-", "0.2"), ("b", NOT_RUN, "", "-", "-"), ("a", "2", "3", "-", "0.3"))


@pytest.mark.parametrize("table", list(TABLES))
def test_every_table_can_be_shown_before_anything_has_run(table, tmp_path):
    shutil.copy(PAPER, tmp_path)
    found = summary(table, tmp_path)
    assert found.text()
    assert found.notes[-1].startswith("Not yet run: ")
    with open(PAPER, newline="", encoding="utf-8") as file:
        paper = {r["method"] for r in csv.DictReader(file) if f"table{r['table']}" == table}
    assert paper <= {line[0] for line in found.rows}
    assert {m for v in TABLES[table] for m in v.rows} <= {line[0] for line in found.rows}


@pytest.mark.parametrize(
    ("table", "classes", "method", "printed"),
    [
        ("rivals-mvtec", ("bottle", "pill"), "AE-SSIM", ("0.86", "0.93", "0.91")),
        ("rivals-cifar10", ("airplane", "bird"), "LSA", ("0.641", "-", "-")),
    ],
)
def test_what_the_paper_prints_of_a_baseline_stands_beside_ours(table, classes, method, printed, tmp_path):
    shutil.copy(PAPER, tmp_path)
    metric = "pixel_auroc" if table == "rivals-mvtec" else "image_auroc"
    rows = [row(table=table, **{"class": c}, method=method, metric=metric, value=0.5) for c in classes]
    write_results(tmp_path / "results.csv", rows)
    found = {line[:3]: line[4:] for line in summary(table, tmp_path).rows}
    assert found[method, "paper", metric] == printed
    assert found[method, "1", metric] == ("-", "0.500", "0.500")
