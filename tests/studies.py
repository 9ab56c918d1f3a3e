"""Small studies: tables whose runs take seconds, and what they left."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from made import few_crops

from attnad.detectors import paper
from attnad.study.engines import measure, reproduce
from attnad.study.results import COLUMNS
from attnad.study.summary import Summary
from attnad.study.tables import TABLES

# Forked from a server that has imported all this once: real processes, without seconds of imports for each.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["attnad.study.engines", "timm"])

PAPER = Path(__file__).parents[1] / "book" / "results" / "paper.csv"
TINY = {"size": 32, "attention.width": 4, "attention.latent": 8, "attention.epochs": 1, "adgan.epochs": 1}
RECIPE, PRINTED, NO_GAME = "as the recipe says", "ADGAN without synthetic fakes", "no adversarial losses"


@contextmanager
def short_study(*methods: str) -> Iterator[pytest.MonkeyPatch]:
    """The study on textures with a few of its rows, on a few crops; all else is as it always is."""
    with pytest.MonkeyPatch.context() as patch:
        few_crops(patch, train=40)
        patch.setitem(TABLES, "textures", [v for v in TABLES["textures"] if v.rows.keys() & set(methods)])
        yield patch


def measure_on_few_crops(config: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
    """`engines.measure` on a few crops: in whatever process this is called, where no patch of the test's own holds."""
    with pytest.MonkeyPatch.context() as patch:
        few_crops(patch)
        return measure(config, *arguments, **options)


@pytest.fixture
def small_runs(monkeypatch) -> None:
    """Studies measure on a few crops, in this process and in those that they start."""
    monkeypatch.setattr("attnad.study.engines.measure", measure_on_few_crops)


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


@pytest.fixture(scope="session")
def first(tmp_path_factory) -> Path:
    """Two rows of the study that share stage 1, and one that does not."""
    folder = tmp_path_factory.mktemp("first")
    with short_study(RECIPE, PRINTED, NO_GAME) as patch:
        stage1, stage2 = (counted(patch, name) for name in ("train_attention", "train_adgan"))
        study(folder)
    assert (len(stage1), len(stage2)) == (2, 3)
    return folder


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
