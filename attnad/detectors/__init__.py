"""Detectors, by the names of their recipes.

A detector is a class with

`config_type`           its configuration: an `attnad.config.DetectorConfig`, with the properties `encoder` and `epochs`
                        for tables
`recipe(name, data)`    the configuration of a recipe for a data set; ValueError on values that do not fit
`check(config)`         ValueError, naming the value, where a configuration makes no sense
`fit(config, images, folder, options)`
                        learn from normal images alone, uint8 [n, 3, s, s], leave in the folder what `load` needs, and
                        go on from what a stopped fit left there; options are `attnad.training.state.FitOptions`
`load(config, folder, device=...)`
                        what `fit` gave; CheckpointError where a file is missing or damaged
`score(images)`         `attnad.score.Scores` of uint8 images [n, 3, s, s]

and nothing else is asked of it: `attnad.run.run` owns the folder, the held-out images, the region and the threshold.
One that judges each image by a fit to the others has `leaves_out = True`: it is fitted to all images, and has after
`fit` the `Scores` of those that were left out, `left_out`, and their indices, `judged`. An image score that is made of
the map alone has its place in `attnad.run.region.FROM_MAP`.
"""

from __future__ import annotations

import difflib
from dataclasses import asdict
from importlib import import_module
from typing import Any

from attnad.config import DETECTORS, from_dict, gaussian_recipe, paper_recipe, strong_recipe
from attnad.errors import SettingError


def detector_class(name: str) -> Any:
    """Import the class of a recipe's detector. Raises SettingError on another name."""
    if name not in DETECTORS:
        *others, last = DETECTORS
        raise SettingError(f"there is no recipe {name!r}; use {', '.join(others)} or {last}")
    module, _, class_ = DETECTORS[name].rpartition(".")
    return getattr(import_module(f"attnad.detectors.{module}"), class_)


def recipe(name: str, data: str) -> Any:
    """Give the configuration of any recipe for a data set. Raises SettingError on another name."""
    if name in ("quick", "paper"):  # these two and the next come without PyTorch, so that help answers at once
        return paper_recipe(name, data)
    if name == "strong":
        return strong_recipe(name, data)
    if name in ("gaussian", "discriminators"):
        return gaussian_recipe(name, data)  # type: ignore[arg-type]  # it is one of the two
    return detector_class(name).recipe(name, data)


def override(config: Any, values: dict[str, Any]) -> Any:
    """Replace values of a configuration, named with a dot inside a part: {"adgan.epochs": 3}.

    Raises SettingError on a name that is not there and on a value of another type.
    """
    table = asdict(config)
    for name, value in values.items():
        part, _, field = name.rpartition(".")
        inner = table.get(part) if part else table
        if not isinstance(inner, dict) or field not in inner:
            names = [
                f"{k}.{f}" if isinstance(v, dict) else k
                for k, v in table.items()
                for f in (v if isinstance(v, dict) else [0])
            ]
            near = difflib.get_close_matches(name, names, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise SettingError(f"recipe {config.recipe} has no value {name!r}{hint}")
        inner[field] = value
    try:
        return from_dict(type(config), table)
    except ValueError as error:
        raise SettingError(str(error)) from error
