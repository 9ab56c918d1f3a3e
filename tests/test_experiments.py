"""The paper's tables: which runs they plan, and that reproducing trains each once, loses nothing and averages right."""

from __future__ import annotations

import csv
import multiprocessing
import re
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from attnad import train
from attnad.cli import main
from attnad.config import RunConfig, recipe
from attnad.data import load_test, textures
from attnad.data.cifar10 import CIFAR10_CLASSES
from attnad.detectors import DETECTORS, paper
from attnad.detectors.neighbours import NeighboursConfig
from attnad.detectors.rivals import RIVALS
from attnad.errors import DataError, SettingError, TrainingError
from attnad.metrics import auroc
from attnad.run import load_run
from attnad.study.engines import reproduce
from attnad.study.results import COLUMNS, KEY, read_results, rows, write_results
from attnad.study.summary import NOT_RUN, Summary, summary
from attnad.study.tables import (
    BEYOND,
    CLASSES,
    DEFECT_STUDY,
    MVTEC_CATEGORIES,
    PAPER_METRICS,
    TABLES,
    TEXTURE_STUDY,
    Job,
    folder_name,
    jobs,
    override,
)

# Forked from a server that has imported all this once: real processes, without seconds of imports for each.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["attnad.study.engines"])

PAPER = Path(__file__).parents[1] / "book" / "results" / "paper.csv"
SEEDS = (0, 1, 2)
TINY = {"size": 32, "attention.width": 4, "attention.latent": 8, "attention.epochs": 1, "adgan.epochs": 1}
RECIPE, PRINTED, NO_GAME = "as the recipe says", "ADGAN without synthetic fakes", "no adversarial losses"


def all_jobs(table: str, **arguments: Any) -> list[Job]:
    return jobs(table, **{"classes": CLASSES[table], "seeds": SEEDS} | arguments)


def hashes(config: RunConfig) -> list[str]:
    """What decides stage 1, and what decides all."""
    return folder_name(config).split("-")[-2:]


# --- what is planned -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "names", "variants"),
    [
        ("table1", CIFAR10_CLASSES, 7),
        ("table2", CIFAR10_CLASSES, 3),
        ("table3", MVTEC_CATEGORIES, 3),
        ("table4", MVTEC_CATEGORIES, 3),
        ("table5", CIFAR10_CLASSES, 2),
        ("textures", ("brick",), len(TEXTURE_STUDY)),
        ("defects", MVTEC_CATEGORIES, len(DEFECT_STUDY)),
        ("beyond", MVTEC_CATEGORIES, len(BEYOND)),
        ("surfaces", textures.TEXTURES, len(BEYOND)),
        ("rivals", textures.TEXTURES, len(RIVALS)),
        ("rivals-mvtec", MVTEC_CATEGORIES, len(RIVALS)),
    ],
)
def test_a_table_is_each_class_seed_and_variant_once(table, names, variants):
    planned = all_jobs(table)
    wanted = {(name, seed, variant) for name in names for seed in SEEDS for variant in range(variants)}
    found = [(job.name, job.config.seed, TABLES[table].index(job.variant)) for job in planned]
    assert Counter(found) == Counter(wanted)
    assert len({folder_name(job.config) for job in planned}) == len(planned)  # no two runs in one folder
    for job in planned:
        assert job.table == table
        data = {CIFAR10_CLASSES: "cifar10", MVTEC_CATEGORIES: job.name}.get(names, "textures")
        assert (job.config.data, job.config.normal_class) == (data, None if data == job.name else job.name)
        assert isinstance(job.config, NeighboursConfig) == (job.variant.recipe == "neighbours")


def test_every_planned_configuration_is_one_that_training_takes():
    for table in TABLES:
        for name in ("quick", "paper"):
            for job in all_jobs(table, seeds=[0], recipe_name=name):
                DETECTORS[job.config.recipe].check(job.config)


def test_table1_makes_its_fakes_by_the_rows_switches():
    steps = {
        "base": (), "rotate": ("rotation",), "perm": ("permutation",), "jitter": ("jitter",),
        "rotate+perm": ("rotation", "permutation"), "rotate+perm+jitter": ("rotation", "permutation", "jitter"),
        "semi (128 real anomalies)": (),
    }  # fmt: skip
    planned = all_jobs("table1", classes=["cat"], seeds=[0])
    assert [next(iter(job.variant.rows)) for job in planned] == list(steps)
    for job, wanted in zip(planned, steps.values(), strict=True):
        augment, adgan = job.config.augment, job.config.adgan
        assert {s for s in ("rotation", "permutation", "jitter") if getattr(augment, s)} == set(wanted)
        assert adgan.synthetic_fakes == bool(wanted)
        assert adgan.real_anomalies == (128 if "semi" in next(iter(job.variant.rows)) else 0)
        assert (augment.whole_share, adgan.pixels, job.config.attention.epochs) == (1.0, True, 0)


def test_table4_switches_one_loss_off_in_each_row():
    planned = {next(iter(j.variant.rows)): j.config for j in all_jobs("table4", classes=["pill"], seeds=[0])}
    base = recipe("quick", "pill").attention
    weights = {name: (c.attention.adv_ano_weight, c.attention.att_weight) for name, c in planned.items()}
    assert weights == {
        "L_adv^ano only": (base.adv_ano_weight, 0.0),
        "L_att only": (0.0, base.att_weight),
        "L_adv^ano + L_att": (base.adv_ano_weight, base.att_weight),
    }
    assert min(base.adv_ano_weight, base.att_weight) > 0
    for config in planned.values():  # and nothing else
        assert replace(config.attention, adv_ano_weight=base.adv_ano_weight, att_weight=base.att_weight) == base
        assert config.adgan.epochs == 0
    assert len({hashes(config)[0] for config in planned.values()}) == 3


@pytest.mark.parametrize("table", ["table2", "table3", "table5"])
def test_both_readings_of_the_fakes_share_stage_1(table):
    name = CLASSES[table][0]
    printed, fakes = (j.config for j in all_jobs(table, classes=[name], seeds=[1]) if isinstance(j.config, RunConfig))
    assert (printed.adgan.synthetic_fakes, fakes.adgan.synthetic_fakes) == (False, True)
    assert replace(printed.adgan, synthetic_fakes=True) == fakes.adgan
    assert hashes(printed)[0] == hashes(fakes)[0]
    assert hashes(printed)[1] != hashes(fakes)[1]
    other = next(j.config for j in all_jobs(table, classes=[name], seeds=[2]) if isinstance(j.config, RunConfig))
    assert hashes(other)[0] != hashes(printed)[0]


def test_tables_share_runs():
    two, five = ({folder_name(j.config) for j in all_jobs(table)} for table in ("table2", "table5"))
    assert five < two  # table 5 trains nothing of its own
    full = next(j.config for j in all_jobs("table4", classes=["pill"]) if "L_adv^ano + L_att" in j.variant.rows)
    other = next(j.config for j in all_jobs("table3", classes=["pill"]) if "ADGAN" in j.variant.rows)
    assert hashes(full)[0] == hashes(other)[0]


def test_a_row_wins_over_the_command_line():
    given = {"attention.epochs": 3, "adgan.epochs": 2, "size": 64}
    for table, epochs in (("table1", (0, 2)), ("table4", (3, 0)), ("table5", (3, 2))):
        for job in all_jobs(table, seeds=[0], overrides=given):
            assert (job.config.attention.epochs, job.config.adgan.epochs) == epochs
            assert job.config.size == 64


def test_override_reaches_into_parts_and_refuses_unknown_names():
    config = override(RunConfig(), {"size": 96, "adgan.ema": 0.5, "attention.width": 8})
    assert (config.size, config.adgan.ema, config.attention.width) == (96, 0.5, 8)
    assert replace(config, size=64, adgan=RunConfig().adgan, attention=RunConfig().attention) == RunConfig()
    for name in ("sise", "adgan.emma"):
        with pytest.raises(SettingError):
            override(RunConfig(), {name: 1})


def test_rows_say_which_values_are_neither_the_recipes_nor_in_a_column():
    values = {"attention.encoder": "efficientnet-lite0", "size": 64, "attention.kl_weight": 1.0}
    ours, printed = jobs("table5", classes=["cat"], seeds=[0], overrides=values)
    assert ours.overrides == printed.overrides == '{"attention.kl_weight": 1.0}'
    assert ours.config.attention.kl_weight == 1.0
    (job,) = jobs("table5", classes=["cat"], seeds=[0])[:1]
    assert job.overrides == ""
    assert {job.config.size for job in jobs("beyond", classes=["pill"], seeds=[0], overrides={"size": 96})} == {96}
    baseline = jobs("table2", classes=["cat"], seeds=[0], overrides={"attention.kl_weight": 1.0})[0]
    assert (baseline.config.recipe, baseline.overrides) == ("neighbours", "")
    for name, value, said in (
        ("attention.kl_wieght", 1.0, "no value 'attention.kl_wieght'; did you mean attention.kl_weight?"),
        ("attention.kl_weight", "much", "AttentionConfig.kl_weight cannot be 'much'"),
    ):
        with pytest.raises(SettingError, match=said.replace("?", r"\?")):
            jobs("table5", classes=["cat"], seeds=[0], overrides={name: value})


def test_a_folders_name_tells_every_value_apart():
    config = RunConfig(data="cifar10", normal_class="cat", seed=7)
    name = folder_name(config)
    assert name.startswith("cifar10-cat-quick-seed7-")
    assert folder_name(RunConfig(data="cifar10", normal_class="cat", seed=7)) == name
    for values in ({"augment.hue": 0.1}, {"attention.kl_weight": 0.5}, {"size": 96}):
        assert hashes(override(config, values))[0] != hashes(config)[0]
    for values in ({"adgan.ema": 0.5}, {"image_score": "attention"}):
        assert hashes(override(config, values))[0] == hashes(config)[0]
        assert hashes(override(config, values))[1] != hashes(config)[1]


@pytest.mark.parametrize("table", ["table1", "table4", "table5"])
def test_the_papers_scenarios_are_rows_of_the_table(table):
    paper = {r["method"] for r in read_results(PAPER) if f"table{r['table']}" == table}
    ours = [method for variant in TABLES[table] for method in variant.rows]
    assert paper
    assert paper <= set(ours)
    assert len(ours) == len(set(ours))


def test_the_papers_file_is_read_whole():
    paper = read_results(PAPER)
    assert {r["table"] for r in paper} == {"1", "2", "3", "4", "5"}
    for row in paper:
        table = f"table{row['table']}"
        assert row["metric"] in PAPER_METRICS
        assert row["class"].split(" ")[0] in (*CLASSES[table], "mean")
        assert 0 < float(row["value"]) <= 1


# --- reproducing -----------------------------------------------------------------------------------------------------


@contextmanager
def short_study(*methods: str) -> Iterator[pytest.MonkeyPatch]:
    """The study on textures with a few of its rows, on a few crops; all else is as it always is."""
    with pytest.MonkeyPatch.context() as patch:
        for name, n in {"N_TRAIN": 40, "N_GOOD": 8, "N_DEFECT": 2, "N_OTHER": 4}.items():
            patch.setattr(textures, name, n)
        patch.setitem(TABLES, "textures", [v for v in TABLES["textures"] if v.rows.keys() & set(methods)])
        yield patch


def study(folder: Path, **arguments: Any) -> Summary:
    values = {"seeds": [0], "overrides": TINY, "device": "cpu", "runs": folder / "runs", "results": folder / "results"}
    return reproduce("textures", **values | arguments)


def counted(
    patch: pytest.MonkeyPatch, name: str, *, fail_at: int = 0, error: type[BaseException] = RuntimeError
) -> list:
    """Note each call of a function of `attnad.detectors.paper`; raise at the call number `fail_at` instead."""
    calls, real = [], getattr(paper, name)

    def spy(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs)
        if len(calls) == fail_at:
            raise error("on purpose")
        return real(*args, **kwargs)

    patch.setattr(paper, name, spy)
    return calls


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def stage1_log(folder: Path) -> list[str]:
    return [line for line in (folder / "log.csv").read_text().splitlines() if line.startswith("attention,")]


def figures(found: list[dict[str, str]]) -> dict[tuple[str, ...], str]:
    """The values by key, without what is new each time, such as the date."""
    return {tuple(row[name] for name in KEY): row["value"] for row in found}


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Path:
    """Two rows of the study that share stage 1, and one that does not."""
    folder = tmp_path_factory.mktemp("first")
    with short_study(RECIPE, PRINTED, NO_GAME) as patch:
        stage1, stage2 = (counted(patch, name) for name in ("train_attention", "train_adgan"))
        study(folder)
    assert (len(stage1), len(stage2)) == (2, 3)
    return folder


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
        for name in ("detectors.paper.train_attention", "detectors.paper.train_adgan", "run.load_train"):
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


def write_images(folder: Path, images: np.ndarray, suffix: str = "") -> None:
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:03d}{suffix}.png")


@pytest.fixture(scope="module")
def colours(tmp_path_factory) -> Path:
    """CIFAR-10's layout, 20 training and 3 test images a class; the first pixel says which image it is."""
    root, rng = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for number, name in enumerate(CIFAR10_CLASSES):
        for part, n in (("train", 20), ("test", 3)):
            images = rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
            images[:, 0, 0] = [(number, part == "test", i) for i in range(n)]
            write_images(root / "cifar10" / part / name, images)
    return root


@pytest.fixture(scope="module")
def table1(colours) -> dict[str, Any]:
    """All rows of table 1 for one class, and what stage 2 was shown in each."""
    shown: list[dict[str, Any]] = []
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # there are fewer images than in CIFAR-10
        train_adgan, synthesize = paper.train_adgan, train.synthesize

        def spy_adgan(config: RunConfig, images: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            shown.append({"images": images, "anomalies": kwargs["anomalies"], "made": []})
            return train_adgan(config, images, *args, **kwargs)

        def spy_synthesize(x: torch.Tensor, *args: Any) -> Any:
            shown[-1]["made"].append((x, (found := synthesize(x, *args))[0]))
            return found

        patch.setattr(paper, "train_adgan", spy_adgan)
        patch.setattr(train, "synthesize", spy_synthesize)
        folders = {"runs": colours / "runs", "results": colours / "results"}
        arguments = {"overrides": {"attention.width": 4, "adgan.epochs": 1}, "data_root": colours, "device": "cpu"}
        reproduce("table1", classes=["cat"], seeds=[0], **arguments, **folders)
    methods = [method for variant in TABLES["table1"] for method in variant.rows]
    return dict(zip(methods, shown, strict=True))


def test_table1_gives_its_seven_rows(table1, colours):
    found = read_results(colours / "results" / "results.csv")
    assert sorted(r["method"] for r in found) == sorted(table1)
    for row in found:
        assert (row["dataset"], row["class"], row["metric"], row["n"]) == ("CIFAR-10", "cat", "image_auroc", "30")
        assert (row["epochs"], row["encoder"], row["weights"]) == ("0+1", "resnet18", "random")


def test_semi_sees_128_training_images_of_the_other_classes(table1):
    cat = CIFAR10_CLASSES.index("cat")
    for method, shown in table1.items():
        assert set(shown["images"][:, 0, 0, 0].tolist()) == {cat}
        assert not shown["images"][:, 1, 0, 0].any()
        if not method.startswith("semi"):
            assert shown["anomalies"] is None
            continue
        names = [tuple(name) for name in shown["anomalies"][:, :, 0, 0].tolist()]
        assert len(names) == len(set(names)) == 128
        assert {number for number, _, _ in names} == set(range(10)) - {cat}
        assert not any(is_test for _, is_test, _ in names)
        assert not shown["made"]


@pytest.mark.parametrize("method", ["base", "rotate", "perm", "jitter", "rotate+perm", "rotate+perm+jitter"])
def test_fakes_are_made_by_the_rows_steps_alone(table1, method):
    def turned(x: torch.Tensor) -> torch.Tensor:  # [n, 3, s, s] -> by 90, 180 and 270 degrees: [n, 3, 3, s, s]
        return torch.stack([torch.rot90(x, k, (2, 3)) for k in (1, 2, 3)], 1)

    def sorted_pixels(x: torch.Tensor) -> torch.Tensor:
        return x.flatten(2).sort(2).values

    made = table1[method]["made"]
    assert len(made) == (0 if method == "base" else 1)
    for x, x_ano in made:
        assert x.shape == x_ano.shape
        assert (x != x_ano).flatten(1).any(1).all()
        rotation = torch.isclose(turned(x), x_ano[:, None], atol=1e-5).flatten(2).all(2).any(1).all()
        moved = torch.allclose(sorted_pixels(x), sorted_pixels(x_ano), atol=1e-5)
        assert bool(rotation) == (method == "rotate")
        assert moved == ("jitter" not in method)


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


def test_a_root_without_a_category_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no category of MVTec AD.*--data-root"):
        reproduce("table3", data_root=tmp_path, runs=tmp_path, results=tmp_path)


# --- results.csv -----------------------------------------------------------------------------------------------------


def row(**values: Any) -> dict[str, str]:
    """A row of table 5's ADGAN, but for the values given."""
    defaults = {
        "table": "table5", "dataset": "CIFAR-10", "class": "cat", "method": "ADGAN", "recipe": "quick",
        "encoder": "resnet18", "weights": "random", "size": "32", "seed": "0", "metric": "image_auroc",
        "value": "0.500000", "n": "10000", "epochs": "10+4", "commit": "abc", "torch": "2", "device": "cpu",
        "threads": "1", "seconds": "60.0", "date": "today", "config": "0123", "overrides": "",
    }  # fmt: skip
    assert tuple(defaults) == COLUMNS
    return {name: str(value) for name, value in (defaults | values).items()}


def test_rows_from_an_outcome_by_hand():
    names = {"image_auroc": "image_auroc", "aupro": "aupro", "scratch": "by_kind.defect.image_auroc", "none": "x.y"}
    job = Job("table5", "cat", TABLES["table5"][0]._replace(rows={"ours": names}), RunConfig(data="cifar10", seed=4))
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
    start.wait(30)
    for i in range(n):
        write_results(path, [row(seed=seed, metric=f"m{i}"), row(seed=9, metric=f"m{i}")])


def test_two_processes_that_write_at_once_lose_nothing(tmp_path):
    path, n, start = tmp_path / "results.csv", 25, processes.Barrier(2)
    workers = [processes.Process(target=write_many, args=(path, start, seed, n)) for seed in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
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
