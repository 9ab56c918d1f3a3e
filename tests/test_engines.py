"""Carrying out a table: each run once, whatever stops or fails on the way, on data sets in folders too."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock, Timeout
from made import write_images
from PIL import Image
from studies import NO_GAME, PAPER, PRINTED, RECIPE, TINY, counted, short_study, study

from attnad.cli import main
from attnad.data import load_test, textures
from attnad.detectors import override, recipe
from attnad.errors import DataError, TrainingError
from attnad.metrics import auroc
from attnad.run.run import Run, folder_name, load_run
from attnad.study import engines
from attnad.study.engines import reproduce
from attnad.study.results import COLUMNS, KEY, read_results
from attnad.study.tables import jobs
from attnad.training.storage import load_json, save_json


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def stage1_log(folder: Path) -> list[str]:
    return [line for line in (folder / "log.csv").read_text().splitlines() if line.startswith("attention,")]


def figures(found: list[dict[str, str]]) -> dict[tuple[str, ...], str]:
    """The values by key, without what is new each time, such as the date."""
    return {tuple(row[name] for name in KEY): row["value"] for row in found}


def run_folder(folder: Path, method: str) -> Path:
    with short_study(method):
        (job,) = jobs("textures", classes=["brick"], seeds=[0], overrides=TINY)
    return folder / "runs" / folder_name(job.config)


def test_each_run_leaves_each_of_its_rows_once(first):
    found = read_results(first / "results" / "results.csv")
    metrics = (
        "pixel_auroc", "image_auroc", "image_auroc_defect", "image_auroc_other",
        "image_auroc_by_attention",
    )  # fmt: skip
    wanted = {(method, metric) for method in (RECIPE, PRINTED, NO_GAME) for metric in metrics}
    assert Counter((r["method"], r["metric"]) for r in found) == Counter(wanted)
    n = {"pixel_auroc": "18", "image_auroc_defect": "18", "image_auroc_other": "16"}  # 8 good, 10 defects, 8 others
    for row in found:
        assert row["n"] == n.get(row["metric"], "26")
        assert all(row[name] for name in COLUMNS if name not in ("commit", "overrides"))
        expected = ("textures", "textures", "brick", "quick", "resnet18", "random", "32", "0", "1+1", "cpu")
        names = ("table", "dataset", "class", "recipe", "encoder", "weights", "size", "seed", "epochs", "device")
        assert tuple(row[name] for name in names) == expected


def test_rows_say_what_the_trained_run_scores(first):
    found = {(r["method"], r["metric"]): float(r["value"]) for r in read_results(first / "results" / "results.csv")}
    for method in (RECIPE, NO_GAME):
        with short_study(method):
            trained, test = load_run(run_folder(first, method), device="cpu"), load_test("textures", size=32)
        scores, labels, kinds = trained.score(test.images), test.labels.numpy(), np.array(test.kinds)
        defects = np.array([not kind.startswith("other/") for kind in kinds])
        assert found[method, "image_auroc"] == pytest.approx(auroc(labels, scores.image["adgan"].numpy()), abs=1e-6)
        defect = auroc(labels[defects], scores.image["adgan"].numpy()[defects])
        assert found[method, "image_auroc_defect"] == pytest.approx(defect, abs=1e-6)
        attention = auroc(labels, scores.image["attention"].numpy())
        assert found[method, "image_auroc_by_attention"] == pytest.approx(attention, abs=1e-6)


def test_runs_that_differ_in_stage_2_train_stage_1_once(first):
    one, two, other = (run_folder(first, method) for method in (RECIPE, PRINTED, NO_GAME))
    weights = [(folder / "attention.safetensors").read_bytes() for folder in (one, two, other)]
    assert weights[0] == weights[1] != weights[2]
    assert stage1_log(one) == stage1_log(two) != stage1_log(other)


def test_a_second_time_trains_nothing(first, capsys):
    before, text = times(first / "runs"), (first / "results" / "results.csv").read_text()
    with short_study(RECIPE, PRINTED, NO_GAME) as patch:
        for name in ("detectors.paper.train_attention", "detectors.paper.train_adgan", "run.run.load_train"):
            patch.delattr(f"attnad.{name}")
        found = study(first)
    assert times(first / "runs") == before
    assert (first / "results" / "results.csv").read_text() == text
    assert len(found.rows) == 3 * 5
    printed = capsys.readouterr().out
    assert "[3/3] brick, seed 0, " in printed
    assert printed.endswith(found.text() + "\n")


def test_what_was_trained_but_not_evaluated_is_not_trained_again(first, tmp_path):
    shutil.copytree(run_folder(first, RECIPE), run_folder(tmp_path, RECIPE))
    (run_folder(tmp_path, RECIPE) / "metrics.json").unlink()
    before = times(tmp_path / "runs")
    with short_study(RECIPE):
        study(tmp_path)
    after = times(tmp_path / "runs")
    assert {path: after[path] for path in before if path.suffix == ".safetensors"} == {
        path: time for path, time in before.items() if path.suffix == ".safetensors"
    }
    assert (run_folder(tmp_path, RECIPE) / "metrics.json").exists()
    theirs = figures(read_results(first / "results" / "results.csv"))
    assert figures(read_results(tmp_path / "results" / "results.csv")).items() <= theirs.items()


def test_metrics_are_written_under_the_runs_lock_and_once(first, tmp_path, monkeypatch):
    """Two processes that wait for one run's training may go on at the same time."""
    shutil.copytree(run_folder(first, RECIPE), run_folder(tmp_path, RECIPE))
    path = run_folder(tmp_path, RECIPE) / "metrics.json"
    path.unlink()
    seen, evaluate = [], engines.evaluate_run

    def locked(*arguments: Any) -> dict[str, Any]:
        with pytest.raises(Timeout):
            FileLock(path.with_name(".lock")).acquire(timeout=0)
        seen.append(path.exists())
        return evaluate(*arguments)

    monkeypatch.setattr(engines, "evaluate_run", locked)
    with short_study(RECIPE):
        (job,) = jobs("textures", classes=["brick"], seeds=[0], overrides=TINY)
        engines.measure(job.config, tmp_path / "runs", device="cpu", progress=False)
        assert seen == [False]
        first_one = load_json(path)
        path.unlink()
        train = engines.train_run

        def meanwhile(*arguments: Any, **options: Any) -> Run:
            """Another process has measured the run before this one has its lock."""
            save_json(path, first_one | {"commit": "another"})
            return train(*arguments, **options)

        monkeypatch.setattr(engines, "train_run", meanwhile)
        assert engines.measure(job.config, tmp_path / "runs", device="cpu", progress=False)["commit"] == "another"
    assert seen == [False]


def test_an_interrupted_run_goes_on(first, tmp_path):
    """Stopped in the second run's stage 2: the first run's rows are there, and stage 1 is not trained again."""
    with short_study(RECIPE, NO_GAME) as patch:
        counted(patch, "train_adgan", fail_at=2, error=KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            study(tmp_path)
    assert {r["method"] for r in read_results(tmp_path / "results" / "results.csv")} == {RECIPE}
    done, stopped = run_folder(tmp_path, RECIPE), run_folder(tmp_path, NO_GAME)
    assert not (stopped / "run.json").exists()
    assert (stopped / "attention.state.safetensors").exists()
    before, log = times(done), stage1_log(stopped)

    with short_study(RECIPE, NO_GAME):
        study(tmp_path)
    assert times(done) == before
    assert stage1_log(stopped) == log  # with the seconds that it took the first time
    wanted = {
        key: v for key, v in figures(read_results(first / "results" / "results.csv")).items() if PRINTED not in key
    }
    assert figures(read_results(tmp_path / "results" / "results.csv")) == wanted


def test_a_failing_run_is_reported_and_the_others_run(first, tmp_path, capsys):
    shutil.copytree(first / "runs", tmp_path / "runs")
    with short_study(RECIPE, NO_GAME), pytest.raises(TrainingError, match=r"2 of 4 runs failed") as caught:
        study(tmp_path, classes=["marble", "brick"])
    assert str(caught.value).count("marble, seed 0") == 2
    assert "DataError" in str(caught.value)
    captured = capsys.readouterr()
    assert "[1/4] marble, seed 0" in captured.err
    assert "Traceback" not in captured.err  # the message says it
    found = read_results(tmp_path / "results" / "results.csv")
    assert {(r["class"], r["method"]) for r in found} == {("brick", RECIPE), ("brick", NO_GAME)}


def test_a_run_that_diverges_or_breaks_does_not_stop_the_next(tmp_path, capsys):
    with short_study(RECIPE, NO_GAME) as patch:
        counted(patch, "train_attention", fail_at=1, error=KeyError)
        with pytest.raises(TrainingError, match=f"1 of 2 runs failed:\n.*brick, seed 0, {RECIPE}: KeyError"):
            study(tmp_path)
        assert "Traceback" in capsys.readouterr().err  # a mistake of the program: where it is must be seen
        assert {r["method"] for r in read_results(tmp_path / "results" / "results.csv")} == {NO_GAME}
        before = times(run_folder(tmp_path, NO_GAME))
        study(tmp_path)  # now it is made good
    assert {r["method"] for r in read_results(tmp_path / "results" / "results.csv")} == {RECIPE, NO_GAME}
    assert times(run_folder(tmp_path, NO_GAME)) == before


def test_the_command_fails_with_one_line_for_each_failed_run(tmp_path, capsys):
    folders = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    with short_study(RECIPE):
        status = main(["reproduce", "textures", "--classes", "marble", "--seeds", "0", "--device", "cpu", *folders])
    assert status == 1
    assert "attnad: 1 of 1 runs failed:" in capsys.readouterr().err


# --- data sets in folders --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def categories(tmp_path_factory) -> Path:
    """Two tiny categories of MVTec AD below a root's mvtec_ad."""
    root = tmp_path_factory.mktemp("categories")
    for name, texture in (("bottle", "brick"), ("pill", "gravel")):
        good, painted, _ = textures.held_out_crops(texture, 32)
        masks = np.zeros((4, 32, 32), np.uint8)
        painted[:4, 8:20, 8:20], masks[:, 8:20, 8:20] = 0, 255
        folder = root / "mvtec_ad" / name
        write_images(folder / "train" / "good", textures.train_crops(texture, 32)[:24])
        write_images(folder / "test" / "good", good[:4])
        write_images(folder / "test" / "hole", painted[:4])
        write_images(folder / "ground_truth" / "hole", masks, "_mask")
    return root


def test_table4_runs_on_the_categories_that_are_there(categories, tmp_path):
    shutil.copy(PAPER, tmp_path)
    folders = {"runs": tmp_path / "runs", "results": tmp_path}
    found = reproduce("table4", seeds=[0], overrides=TINY, data_root=categories, device="cpu", **folders)
    ours = read_results(tmp_path / "results.csv")
    methods = ("L_adv^ano only", "L_att only", "L_adv^ano + L_att")
    assert {(r["class"], r["method"]) for r in ours} == {(c, m) for c in ("bottle", "pill") for m in methods}
    assert len(ours) == 6
    for row in ours:
        assert (row["dataset"], row["epochs"], row["metric"]) == ("MVTec AD (32 px)", "1+0", "pixel_auroc")
    assert found.header[-3:] == ("mean of all", "bottle", "pill")
    assert [line[-3] for line in found.rows] == ["0.75", "0.87", "0.92", "-", "-", "-"]  # the paper's, then ours


@pytest.mark.parametrize("part", ["test/hole", "test/good", "ground_truth/hole"])
def test_test_images_that_changed_are_scored_anew(categories, tmp_path, capsys, part):
    shutil.copytree(categories, tmp_path / "data")
    config = override(recipe("quick", "bottle"), TINY)

    def measured() -> tuple[dict[str, Any], str]:
        found = engines.measure(config, tmp_path / "runs", data_root=tmp_path / "data", device="cpu", progress=False)
        return found, capsys.readouterr().out

    before, _ = measured()
    path = tmp_path / "runs" / folder_name(config) / "metrics.json"
    wrong = before | {"n": 1000}  # which scoring does not give
    save_json(path, wrong)
    assert measured() == (wrong, "")
    bottle = tmp_path / "data" / "mvtec_ad" / "bottle"
    Image.new("L", (32, 32), 255).save(min((bottle / part).iterdir()))
    old = {name: value for name, value in wrong.items() if name != "test_files"}  # of an earlier version
    save_json(path, old)
    assert measured() == (old, "")
    save_json(path, wrong)
    found, said = measured()
    assert said == f"bottle: its test images have changed since {path} was written; they are scored anew\n"
    assert (found["n"], found["facts"]) == (8, before["facts"]), "nothing is trained again"
    assert found["pixel_auroc"] != before["pixel_auroc"]
    assert measured() == (found, "") == (load_json(path), "")
    shutil.rmtree(bottle / "test")
    assert measured() == (found, ""), "what was measured stands where the data are no longer"


def test_a_root_without_a_category_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no category of MVTec AD.*--data-root"):
        reproduce("table3", data_root=tmp_path, runs=tmp_path, results=tmp_path)
