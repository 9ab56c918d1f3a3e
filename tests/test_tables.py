"""What the paper's tables and our own studies run: jobs, configurations and names."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from studies import PAPER

from attnad.config import BASELINES, PaperConfig
from attnad.data import textures
from attnad.data.cifar10 import CIFAR10_CLASSES
from attnad.detectors import detector_class, override, recipe
from attnad.detectors.neighbours import NeighboursConfig
from attnad.errors import SettingError
from attnad.run.run import folder_name
from attnad.study.results import read_results
from attnad.study.tables import (
    BEYOND,
    CLASSES,
    DEFECT_STUDY,
    MVTEC_CATEGORIES,
    PAPER_METRICS,
    TABLES,
    TEXTURE_STUDY,
    UNLABELLED,
    Job,
    jobs,
)

SEEDS = (0, 1, 2)


def all_jobs(table: str, **arguments: Any) -> list[Job]:
    return jobs(table, **{"classes": CLASSES[table], "seeds": SEEDS} | arguments)


def hashes(config: PaperConfig) -> list[str]:
    """What decides stage 1, and what decides all."""
    return folder_name(config).split("-")[-2:]


# --- what is planned -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "names", "variants"),
    [
        ("table1", CIFAR10_CLASSES, 7),
        ("table2", CIFAR10_CLASSES, 5),
        ("table3", MVTEC_CATEGORIES, 4),
        ("table4", MVTEC_CATEGORIES, 3),
        ("table5", CIFAR10_CLASSES, 2),
        ("textures", ("brick",), len(TEXTURE_STUDY)),
        ("defects", MVTEC_CATEGORIES, len(DEFECT_STUDY)),
        ("beyond", MVTEC_CATEGORIES, len(BEYOND) + 1),
        ("surfaces", textures.TEXTURES, len(BEYOND) + 1),
        ("choices", textures.CHOSEN_ON, 4),
        ("rivals", textures.TEXTURES, len(BASELINES)),
        ("rivals-mvtec", MVTEC_CATEGORIES, len(BASELINES)),
        ("rivals-cifar10", CIFAR10_CLASSES, len(BASELINES)),
        ("unlabelled", ("textures", *MVTEC_CATEGORIES), len(UNLABELLED)),
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
        of_book = {*textures.TEXTURES, *textures.CHOSEN_ON}
        data = "cifar10" if names == CIFAR10_CLASSES else "textures" if of_book.issuperset(names) else job.name
        assert (job.config.data, job.config.normal_class) == (data, None if data == job.name else job.name)
        assert isinstance(job.config, NeighboursConfig) == (job.variant.recipe == "neighbours")


def test_every_planned_configuration_is_one_that_training_takes():
    for table in TABLES:
        for name in ("quick", "paper"):
            for job in all_jobs(table, seeds=[0], recipe_name=name):
                detector_class(job.config.recipe).check(job.config)


def test_table1_makes_its_fakes_by_the_rows_switches():
    steps = {
        "base": (), "rotate": ("rotation",), "perm": ("permutation",), "jitter": ("jitter",),
        "rotate+perm": ("rotation", "permutation"), "rotate+perm+jitter": ("rotation", "permutation", "jitter"),
        "semi (128 real anomalies)": (),
    }  # fmt: skip
    planned = all_jobs("table1", classes=["cat"], seeds=[0])
    assert [next(iter(job.variant.rows)) for job in planned] == list(steps)
    for job, wanted in zip(planned, steps.values(), strict=True):
        augment = job.config.augment
        assert {s for s in ("rotation", "permutation", "jitter") if getattr(augment, s)} == set(wanted)
        assert job.config.real_anomalies == (128 if "semi" in next(iter(job.variant.rows)) else 0)
        assert (augment.whole_share, job.config.recipe) == (1.0, "dcgan")


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
    printed, fakes = (j.config for j in all_jobs(table, classes=[name], seeds=[1]) if isinstance(j.config, PaperConfig))
    assert (printed.adgan.synthetic_fakes, fakes.adgan.synthetic_fakes) == (False, True)
    assert replace(printed.adgan, synthetic_fakes=True) == fakes.adgan
    assert hashes(printed)[0] == hashes(fakes)[0]
    assert hashes(printed)[1] != hashes(fakes)[1]
    other = next(j.config for j in all_jobs(table, classes=[name], seeds=[2]) if isinstance(j.config, PaperConfig))
    assert hashes(other)[0] != hashes(printed)[0]


def test_tables_share_runs():
    two, five = ({folder_name(j.config) for j in all_jobs(table)} for table in ("table2", "table5"))
    assert five < two  # table 5 trains nothing of its own
    full = next(j.config for j in all_jobs("table4", classes=["pill"]) if "L_adv^ano + L_att" in j.variant.rows)
    other = next(j.config for j in all_jobs("table3", classes=["pill"]) if "ADGAN" in j.variant.rows)
    assert hashes(full)[0] == hashes(other)[0]


def test_a_row_wins_over_the_command_line():
    given = {"attention.epochs": 3, "adgan.epochs": 2, "size": 64}
    for table, epochs in (("table4", (3, 0)), ("table5", (3, 2))):
        for job in all_jobs(table, seeds=[0], overrides=given):
            assert (job.config.attention.epochs, job.config.adgan.epochs) == epochs
            assert job.config.size == 64


def test_override_reaches_into_parts_and_refuses_unknown_names():
    config = override(PaperConfig(), {"size": 96, "adgan.ema": 0.5, "attention.width": 8})
    assert (config.size, config.adgan.ema, config.attention.width) == (96, 0.5, 8)
    assert replace(config, size=64, adgan=PaperConfig().adgan, attention=PaperConfig().attention) == PaperConfig()
    for name in ("sise", "adgan.emma"):
        with pytest.raises(SettingError):
            override(PaperConfig(), {name: 1})


def test_rows_say_which_values_are_neither_the_recipes_nor_in_a_column():
    values = {"attention.encoder": "efficientnet-lite0", "size": 64, "attention.kl_weight": 1.0}
    ours, printed = jobs("table5", classes=["cat"], seeds=[0], overrides=values)
    assert ours.overrides == printed.overrides == '{"attention.kl_weight": 1.0}'
    assert ours.config.attention.kl_weight == 1.0
    (job,) = jobs("table5", classes=["cat"], seeds=[0])[:1]
    assert job.overrides == ""
    assert {job.config.size for job in jobs("surfaces", classes=["grass"], seeds=[0], overrides={"size": 96})} == {96}
    baseline = jobs("table2", classes=["cat"], seeds=[0], overrides={"attention.kl_weight": 1.0})[0]
    assert (baseline.config.recipe, baseline.overrides) == ("neighbours", "")
    for name, value, said in (
        ("attention.kl_wieght", 1.0, "no value 'attention.kl_wieght'; did you mean attention.kl_weight?"),
        ("attention.kl_weight", "much", "AttentionConfig.kl_weight cannot be 'much'"),
    ):
        with pytest.raises(SettingError, match=said.replace("?", r"\?")):
            jobs("table5", classes=["cat"], seeds=[0], overrides={name: value})


def test_a_folders_name_tells_every_value_apart():
    config = PaperConfig(data="cifar10", normal_class="cat", seed=7)
    name = folder_name(config)
    assert name.startswith("cifar10-cat-quick-seed7-")
    assert folder_name(PaperConfig(data="cifar10", normal_class="cat", seed=7)) == name
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
