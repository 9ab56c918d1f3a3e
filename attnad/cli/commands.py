"""What each command of the command line does: see `attnad.cli.arguments` for what they take."""

from __future__ import annotations

import io
import json
import math
import textwrap
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attnad.cli.arguments import Bench, Evaluate, Export, Figure, Reproduce, Score
from attnad.data import has_test, load_test, load_train
from attnad.data.tiles import Tiles
from attnad.detectors import recipe
from attnad.errors import SettingError, shown
from attnad.metrics import METRICS, expected_false_alarms
from attnad.report.follow import follow
from attnad.report.plotting import choose, gallery, overlay
from attnad.report.scoring import score_files
from attnad.run.export import export_run
from attnad.run.run import Run, data_of, evaluate_run, load_run, train_run
from attnad.run.self_check import ENOUGH, describe, learned_enough
from attnad.study.engines import reproduce as reproduce_table
from attnad.study.results import current_commit
from attnad.study.tables import TABLES
from attnad.train import pick_device
from attnad.training.storage import write_atomically


def train(command: Any) -> None:
    """Carry out `attnad train`."""
    config = command.config_type(**{f.name: getattr(command, f.name) for f in fields(command.config_type)})
    name = "-".join(filter(None, [Path(config.data).name, config.normal_class, config.recipe, f"seed{config.seed}"]))
    out = command.out or Path("runs") / name
    if command.tile is None and command.overlap is not None:
        raise SettingError(f"--overlap {command.overlap} is of tiles; give --tile too")
    tiles = None
    if command.tile is not None:
        tiles = Tiles(command.tile, command.tile // 8 if command.overlap is None else command.overlap)
    try:
        run = train_run(
            config, out, device=command.device, data_root=command.data_root, region=command.region, tiles=tiles
        )
    except KeyboardInterrupt:
        remedy = f"run the same command again to go on from the last saved epoch in {out}"
        raise KeyboardInterrupt(remedy) from None
    seconds = sum(run.facts["seconds"].values())
    print(f"Trained on {run.facts['n_train']} normal images in {seconds:.0f} s on {run.facts['device']}: {out}")
    if copies := run.facts.get("n_copies"):
        print(
            f"{copies} of the {run.facts['n_normal']} images are nearly the same as another: copies teach nothing new. "
            "None is both learned from and held out"
        )
    held_out = len(run.facts.get("held_out_scores", ()))  # none in a run of an earlier version
    if held_out:
        rate = expected_false_alarms(held_out)
        print(
            f"The threshold comes from {held_out} held-out image{'s' * (held_out > 1)}: expect it to flag about one "
            f"good image in {round(1 / rate)}"
        )
    check = run.facts.get("synthetic")  # not in a run of an earlier version
    if check:
        print(describe(check))
    if check and not learned_enough(check):
        names = {f.name for f in fields(config)}
        flag = "--attention.epochs" if "attention" in names else "--epochs" if "epochs" in names else ""
        longer = f" longer ({flag})," if flag else ""
        other = "" if config.recipe == "strong" else ", or take --recipe strong"
        print(
            f"That is too little (an AUROC below {ENOUGH}): it has not learned what is normal, and its scores and maps "
            f"carry next to nothing. Train{longer} on more photographs{other}"
        )
    labelled = tiles is None and has_test(config.data, config.normal_class, command.data_root)
    print(f"Next: attnad {f'evaluate {out}' if labelled else f'score {out} FOLDER --out report'}")


def evaluate(command: Evaluate) -> None:
    """Carry out `attnad evaluate`."""
    run = load_run(command.run, device=command.device)
    config = run.config
    data = command.data or data_of(run, command.run, command.data_root)
    normal_class = command.normal_class or config.normal_class
    test = load_test(data, size=config.size, normal_class=normal_class, root=command.data_root)
    result = {"run": str(command.run), "data": data, "normal_class": normal_class, **evaluate_run(run, test)}
    if command.json is not None:
        command.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(command.json, json.dumps(result, indent=2) + "\n")
    print(_table(run, result))


def _figure(value: Any) -> str:
    return "-" if value is None or (isinstance(value, float) and math.isnan(value)) else f"{value:.3f}"


def _table(run: Run, result: dict[str, Any]) -> str:
    lines = [
        f"{shown(result['data'])}: {result['n']} images, {result['n_pixel_images']} with known masks; "
        f"encoder {result['encoder']}, {run.config.size} px, seed {run.config.seed}",
        "",
    ]
    lines += [f"{name:<20} {_figure(result[name])}" for name in METRICS]
    lines += ["", f"image AUROC by score (the recipe's own is {result['image_score']})"]
    lines += [f"  {name:<18} {_figure(value)}" for name, value in result["image_auroc_by_score"].items()]
    lines += ["", f"{'by kind':<20} {'n':>5}  image  pixel AUROC"]
    for kind, figures in result["by_kind"].items():
        image, pixel = _figure(figures["image_auroc"]), _figure(figures["pixel_auroc"])
        lines.append(f"  {shown(kind):<18} {figures['n']:>5}  {image}  {pixel}")
    return "\n".join(lines)


def score(command: Score) -> None:
    """Carry out `attnad score`."""
    run = load_run(command.run, device=command.device)
    threshold, threshold_from = _threshold(run, command)
    notes = {
        "Run": str(command.run),
        "Trained on": f"{run.facts['n_train']} normal images of {run.config.data}",
        "Image score": run.config.image_score,
        "Encoder": run.config.encoder,
        "Seed": str(run.config.seed),
        "Threshold": threshold_from,
    }
    if check := run.facts.get("synthetic"):  # not in a run of an earlier version
        notes["Check without labels"] = describe(check)
    if run.region is not None:
        notes["Region"] = f"{run.region.facts()['share']:.0%} of the image; the rest counts as normal"
    if run.tiles is not None:
        notes["Tiles"] = f"of {run.tiles.tile} pixels; neighbours share {run.tiles.overlap} or more"
    blank = torch.zeros(1, 3, run.config.size, run.config.size, dtype=torch.uint8)
    if run.score(blank).maps is None:
        raise SettingError(f"{command.run} judges whole images and draws no maps for a report; train it on patches")
    for folder in filter(Path.is_dir, command.images):
        if command.out.resolve().is_relative_to(folder.resolve()):
            raise SettingError(
                f"{command.out} lies in {folder}, and its heat maps would be scored; choose another --out"
            )
    if not command.follow:
        score_files(run, command.images, command.out, threshold=threshold, notes=notes, numbers=command.maps)
        return
    if len(command.images) != 1:
        raise SettingError(f"--follow takes one folder, and {len(command.images)} paths are given; name one")
    name = str(command.run.resolve())
    follow(run, *command.images, command.out, threshold=threshold, name=name, notes=notes, numbers=command.maps)


def _threshold(run: Run, command: Score) -> tuple[float, str]:
    """The threshold that is wanted, and where it comes from."""
    given, rate = command.threshold, command.false_alarms
    if given is not None and rate is not None:
        raise SettingError(f"--threshold {given} and --false-alarms {rate} both say where to flag; give one of them")
    if given is not None:
        if not math.isfinite(given):
            raise SettingError(f"--threshold {given}: give a finite number")
        return given, "given on the command line"
    if rate is not None:
        n = len(run.facts.get("held_out_scores", ()))
        return run.threshold_for(rate), f"for false alarms at a rate of {rate}, by {n} held-out normal images"
    return run.facts["threshold"], run.facts["threshold_from"]


def reproduce(command: Reproduce) -> None:
    """Carry out `attnad reproduce`."""
    values = dict(vars(command))
    others = command.table != "all" and all(variant.recipe for variant in TABLES[command.table])  # than the paper's
    stage1 = "" if others else "attention."
    names = {
        "encoder": f"{stage1}encoder",
        "size": "size",
        "epochs": f"{stage1}epochs",
        "adgan_epochs": "adgan.epochs",
    }
    given = {key: values.pop(name) for name, key in names.items()}
    overrides = {key: value for key, value in given.items() if value is not None}
    for text in values.pop("set"):
        name, equals, value = text.partition("=")
        if not equals:
            raise SettingError(f"--set {text}: give NAME=VALUE, such as attention.kl_weight=1.0")
        try:
            overrides[name.replace("-", "_")] = json.loads(value)
        except ValueError:
            overrides[name.replace("-", "_")] = value  # a word
    reproduce_table(values.pop("table"), recipe_name=values.pop("recipe"), overrides=overrides, **values)


def figure(command: Figure) -> None:
    """Carry out `attnad figure`."""
    runs = [load_run(folder, device=command.device) for folder in command.runs]
    names = command.names or tuple(folder.resolve().name for folder in command.runs)
    if not len(runs) == len(set(names)) == len(names) > 0:
        raise SettingError(f"{len(runs)} runs, called {', '.join(names)}; give one or more, and --names, no name twice")
    for run in runs:
        run.check_whole()
    config = runs[0].config
    for folder, run in zip(command.runs, runs, strict=True):
        if any(getattr(run.config, name) != getattr(config, name) for name in ("data", "normal_class", "size")):
            raise SettingError(f"{folder}: its data or size differ from those of {command.runs[0]}; draw it by itself")
    data = command.data or data_of(runs[0], command.runs[0], command.data_root)
    test = load_test(data, size=config.size, normal_class=config.normal_class, root=command.data_root)
    try:
        drawn = [i for i, known in enumerate(test.has_mask.tolist()) if known or not test.has_mask.any()]
        chosen = [drawn[i] for i in choose([test.kinds[i] for i in drawn], command.columns, seed=command.seed)]
        rows: dict[str, Tensor] = {"image": test.images[chosen]}
        for name, run in zip(names, runs, strict=True):
            scores, label = run.score(rows["image"]), f"\n{textwrap.fill(name, 18)}" if len(runs) > 1 else ""
            if scores.maps is None:
                raise SettingError(f"{name} judges whole images and draws no maps; leave it out")
            if command.reconstruction:
                if scores.x_re is None:
                    raise SettingError(f"{name} reconstructs no images; leave it or --reconstruction out")
                rows[f"reconstruction{label}"] = scores.x_re
            rows[f"attention{label}"] = 1 - scores.maps.clamp(0, 1)
        if len(runs) == 1:
            rows["overlay"] = overlay(rows["image"], rows["attention"])
        if test.has_mask.any():
            rows["ground truth"] = test.masks[chosen]
        encoders = {run.config.encoder for run in runs}
        shared = next(iter(encoders)) if len(encoders) == 1 else None
        title = filter(None, [config.data, config.normal_class, shared, f"{config.size} px"])
        picture = gallery(rows, [test.kinds[i].replace("/", "\n") for i in chosen], title=", ".join(title))
        content = io.BytesIO()
        picture.savefig(content, format=command.out.suffix.lstrip(".") or "png")
    except ValueError as error:
        raise SettingError(f"no figure: {error}") from error
    command.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(command.out, content.getvalue())
    print(f"{len(chosen)} images: {command.out}")


def bench(command: Bench) -> None:
    """Carry out `attnad bench`."""
    from attnad.study.bench import bench as run_bench  # here: torchvision's transforms are slow to import
    from attnad.study.bench import table as bench_table

    config = replace(recipe(command.recipe, "textures"), size=command.size)
    if command.encoder:
        config = replace(config, attention=replace(config.attention, encoder=command.encoder))
    images = load_train("textures", size=command.size).images[: max(0, command.images)]
    batch = max(config.attention.batch, config.adgan.batch)
    if len(images) < batch or command.epochs < 1:
        raise SettingError(f"--images {command.images}, --epochs {command.epochs}: give {batch} or more, and 1 or more")
    device = pick_device(command.device)
    result = run_bench(config, images, device=device, epochs=command.epochs, workers=command.workers)
    if command.json is not None:
        command.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(command.json, json.dumps(result, indent=2) + "\n")
    print(bench_table(result))


def export(command: Export) -> None:
    """Carry out `attnad export`."""
    run = load_run(command.run, device="cpu")
    command.model.parent.mkdir(parents=True, exist_ok=True)
    export_run(run, command.model, commit=current_commit())
    print(f"{command.model}: {command.model.stat().st_size / 1e6:.1f} MB, images of {run.config.size} pixels")


CARRY_OUT: dict[type, Callable[[Any], None]] = {
    Evaluate: evaluate, Score: score, Reproduce: reproduce, Figure: figure, Bench: bench,
    Export: export,
}  # fmt: skip


def carry_out(command: Any) -> None:
    """Carry out a command that `attnad.cli.arguments.parse_arguments` has read."""
    CARRY_OUT.get(type(command), train)(command)
