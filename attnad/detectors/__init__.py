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

and nothing else is asked of it: `attnad.run.run` owns the folder, the held-out images, the region
and the threshold. An image score that is made of the map alone has its place in `attnad.run.region.FROM_MAP`.
"""

from __future__ import annotations

from typing import Any

from attnad.detectors.adapted import Adapted
from attnad.detectors.baselines import BASELINES
from attnad.detectors.dcgan import DCGAN
from attnad.detectors.guided import Guided
from attnad.detectors.map import AttentionMap
from attnad.detectors.neighbours import Neighbours
from attnad.detectors.paper import Paper
from attnad.detectors.strong import Strong

DETECTORS: dict[str, Any] = {
    "quick": Paper, "paper": Paper, "strong": Strong, "gaussian": Strong, "map": AttentionMap,
    "guided": Guided, "neighbours": Neighbours, "adapted": Adapted, "dcgan": DCGAN, **BASELINES,
}  # fmt: skip


def recipe(name: str, data: str) -> Any:
    """Give the configuration of any detector's recipe for a data set. Raises ValueError on another name."""
    if name not in DETECTORS:
        *others, last = DETECTORS
        raise ValueError(f"there is no recipe {name!r}; use {', '.join(others)} or {last}")
    return DETECTORS[name].recipe(name, data)
