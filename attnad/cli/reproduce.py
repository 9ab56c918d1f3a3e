"""The command `attnad reproduce`."""

import json
from pathlib import Path
from typing import Any, Literal

from attnad.cli.flags import DataRoot, Device
from attnad.config import EncoderName
from attnad.errors import SettingError

Table = Literal[
    "table1", "table2", "table3", "table4", "table5", "textures", "defects", "beyond", "surfaces", "choices",
    "unlabelled", "rivals", "rivals-cifar10", "rivals-mvtec", "all",
]  # fmt: skip


def reproduce(
    table: Table,
    /,
    *,
    classes: tuple[str, ...] | None = None,
    seeds: tuple[int, ...] = (0, 1, 2),
    recipe: Literal["quick", "paper"] = "quick",
    encoder: EncoderName | None = None,
    size: int | None = None,
    epochs: int | None = None,
    adgan_epochs: int | None = None,
    set: tuple[str, ...] = (),
    engine: Literal["local", "ray"] = "local",
    jobs: int = 1,
    minutes: float | None = None,
    jobs_per_gpu: int = 1,
    runs: Path = Path("runs"),
    results: Path = Path("book/results"),
    device: Device = "auto",
    data_root: DataRoot = None,
) -> None:
    """Run what is missing of one of the paper's tables and print it beside the paper's. Finished runs are skipped.

    Args:
        table: The paper's table, or a study of our own: textures, what each deviation from the paper does, on the
            embedded data; defects, what keeps recipe quick from finding real defects, on MVTec AD; beyond, what recipe
            discriminators adds to features without training, on MVTec AD; surfaces, the same on the embedded data;
            choices, what its fakes were chosen on, surfaces that no other table has; unlabelled, whether the check
            without labelled defects goes with the figures that need them; rivals, the systems that the paper compares
            itself with, on the embedded data; rivals-cifar10 and rivals-mvtec, the same on CIFAR-10 and MVTec AD. all:
            every table, the most telling runs first, those alone that results.csv has no rows of.
        classes: Classes or categories; by default all of the table's that are there.
        seeds: Seeds; the table shows mean and standard deviation over them.
        recipe: Where the values of the runs come from, as for attnad train.
        encoder: Another encoder than the recipe's.
        size: Another side of the images than the recipe's, in pixels.
        epochs: Other epochs than the recipe's, of stage 1 where there are two. The rows say how many.
        adgan_epochs: Other epochs of stage 2 than the recipe's. The rows say how many.
        set: Other values than the recipe's, such as attention.kl_weight=1.0. The rows say which.
        engine: One run after the other here, or all at once on a Ray cluster (pip install ray).
        jobs: Runs at once on this machine, each in a process of its own with its share of the cores.
        minutes: Begin only runs that can end within this time, by the seconds of earlier ones; at its end, runs on the
            way save their states and stop. The same command goes on.
        jobs_per_gpu: With Ray: runs that share a GPU.
        runs: Folder of the runs' folders.
        results: Folder of results.csv, and of the paper's figures, paper.csv.
    """
    from attnad.study import engines
    from attnad.study.tables import TABLES

    others = table != "all" and all(variant.recipe for variant in TABLES[table])  # than the paper's
    stage1 = "" if others else "attention."
    given = {f"{stage1}encoder": encoder, "size": size, f"{stage1}epochs": epochs, "adgan.epochs": adgan_epochs}
    overrides: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    for text in set:
        name, equals, value = text.partition("=")
        if not equals:
            raise SettingError(f"--set {text}: give NAME=VALUE, such as attention.kl_weight=1.0")
        try:
            overrides[name.replace("-", "_")] = json.loads(value)
        except ValueError:
            overrides[name.replace("-", "_")] = value  # a word
    engines.reproduce(
        table, classes=classes, seeds=seeds, recipe_name=recipe, overrides=overrides, engine=engine, jobs=jobs,
        minutes=minutes, jobs_per_gpu=jobs_per_gpu, runs=runs, results=results, device=device, data_root=data_root,
    )  # fmt: skip
