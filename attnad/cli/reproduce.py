"""The command `attnad reproduce`."""

import json
from pathlib import Path
from typing import Any, Literal

from attnad.cli.flags import DataRoot, Device
from attnad.config import EncoderName
from attnad.errors import SettingError

Table = Literal[
    "table1", "table2", "table3", "table4", "table5", "textures", "defects", "beyond", "surfaces", "choices",
    "unlabelled", "rivals", "rivals-cifar10", "rivals-mvtec", "sets", "moved", "few", "calibration",
    "all",
]  # fmt: skip


def reproduce(
    table: Table,
    /,
    *,
    classes: tuple[str, ...] | None = None,
    seeds: tuple[int, ...] | None = None,
    recipe: Literal["quick", "paper"] = "quick",
    encoder: EncoderName | None = None,
    size: int | None = None,
    epochs: int | None = None,
    adgan_epochs: int | None = None,
    set: tuple[str, ...] = (),
    detectors: tuple[str, ...] = (),
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
            itself with, on the embedded data; rivals-cifar10 and rivals-mvtec, the same on CIFAR-10 and MVTec AD. sets:
            our detectors and anomalib's on the development sets, as they are and moved, into sets.csv, and the choice
            that a rule makes by it; moved, the same on four of them, moved more and more, into moved.csv; few, learned
            from 4, 8 and 16 photographs, into few.csv; calibration, promised false alarms against delivered ones, into
            calibration.csv. all: every table before these, the most
            telling runs first, those alone that results.csv has no rows of.
        classes: Classes or categories; by default all of the table's that are there.
        seeds: Seeds; the table shows mean and standard deviation over them. By default 0 1 2, of calibration 0 to 4.
        recipe: Where the values of the runs come from, as for attnad train.
        encoder: Another encoder than the recipe's.
        size: Another side of the images than the recipe's, in pixels.
        epochs: Other epochs than the recipe's, of stage 1 where there are two. The rows say how many.
        adgan_epochs: Other epochs of stage 2 than the recipe's. The rows say how many.
        set: Other values than the recipe's, such as attention.kl_weight=1.0. The rows say which.
        detectors: Of sets, moved, few and calibration: recipes of ours, to which --set applies, and but for the last
            anomalib's padim and patchcore; by default strong, with both, of sets with gaussian and neighbours as well.
        engine: One run after the other here, or all at once on a Ray cluster (pip install ray).
        jobs: Runs at once on this machine, each in a process of its own with its share of the cores.
        minutes: Begin only runs that can end within this time, by the seconds of earlier ones; at its end, runs on the
            way save their states and stop. The same command goes on.
        jobs_per_gpu: With Ray: runs that share a GPU.
        runs: Folder of the runs' folders.
        results: Folder of results.csv, and of the paper's figures, paper.csv.
    """
    values: dict[str, Any] = {}
    for text in set:
        name, equals, value = text.partition("=")
        if not equals:
            raise SettingError(f"--set {text}: give NAME=VALUE, such as attention.kl_weight=1.0")
        try:
            values[name.replace("-", "_")] = json.loads(value)
        except ValueError:
            values[name.replace("-", "_")] = value  # a word

    if table in ("sets", "moved", "few", "calibration"):
        others = {
            "--recipe": recipe != "quick", "--encoder": encoder, "--epochs": epochs, "--adgan-epochs": adgan_epochs,
            "--engine": engine != "local", "--jobs": jobs != 1, "--minutes": minutes,
            "--jobs-per-gpu": jobs_per_gpu != 1, "--runs": runs != Path("runs"),
        }  # fmt: skip
        if given := [flag for flag, value in others.items() if value]:
            raise SettingError(f"attnad reproduce {table} does not take {', '.join(given)}; leave that out")
        from attnad.study import calibration, curves, few, sets

        study = {"sets": sets, "moved": curves, "few": few, "calibration": calibration}[table]
        study.reproduce(
            classes=classes, detectors=detectors or study.DETECTORS, seeds=seeds or study.SEEDS, size=size,
            values=values, results=results, device=device, data_root=data_root,
        )  # fmt: skip
        return

    from attnad.study import engines
    from attnad.study.tables import TABLES

    if detectors:
        raise SettingError(f"attnad reproduce {table} has its own detectors; leave --detectors out")
    stage1 = "" if table != "all" and all(variant.recipe for variant in TABLES[table]) else "attention."
    told = {f"{stage1}encoder": encoder, "size": size, f"{stage1}epochs": epochs, "adgan.epochs": adgan_epochs}
    overrides = {key: value for key, value in told.items() if value is not None} | values
    engines.reproduce(
        table, classes=classes, seeds=seeds or (0, 1, 2), recipe_name=recipe, overrides=overrides, engine=engine,
        jobs=jobs, minutes=minutes, jobs_per_gpu=jobs_per_gpu, runs=runs, results=results, device=device,
        data_root=data_root,
    )  # fmt: skip
