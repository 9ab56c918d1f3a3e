"""The paper's tables as lists of runs: what is trained, with which seeds, under which name.

A run is a configuration, and its folder is named after it, so that a run that several tables need is trained once,
a finished one is skipped and an interrupted one goes on. Nothing is chosen by its test results: all is fixed here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

from attnad.config import BASELINES
from attnad.data.cifar10 import CIFAR10_CLASSES
from attnad.data.textures import CHOSEN_ON, TEXTURES
from attnad.detectors import override, recipe
from attnad.metrics import METRICS

MVTEC_CATEGORIES = (
    "bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut", "pill", "screw", "tile",
    "toothbrush", "transistor", "wood", "zipper",
)  # fmt: skip


class Variant(NamedTuple):
    """One kind of run in a table: what differs from the recipe, and the rows it gives, {method: {metric: key}}.

    A key leads into what `attnad.run.run.evaluate_run` returns, dots into its inner tables. `recipe` is that of
    a detector beside the paper's, where the variant is one.
    """

    overrides: dict[str, Any]
    rows: dict[str, dict[str, str]]
    recipe: str | None = None


def _by_score(name: str) -> dict[str, str]:
    return {"image_auroc": f"image_auroc_by_score.{name}"}


_IMAGE = {name: name for name in METRICS if not name.startswith("pixel") and name != "aupro"}
_ALL = {name: name for name in METRICS}
_STUDY = {
    "pixel_auroc": "pixel_auroc",
    "image_auroc": "image_auroc",
    "image_auroc_defect": "by_kind.defect.image_auroc",
    "image_auroc_other": "by_kind.other.image_auroc",
    "image_auroc_by_attention": "image_auroc_by_score.attention",
}

_ADGAN = {"adgan.synthetic_fakes": False, "image_score": "adgan"}  # section 3.3 as it is printed
_FAKES = {"adgan.synthetic_fakes": True, "image_score": "adgan"}  # the other reading (D17)
_NO_GAMES = {"attention.adv_weight": 0.0, "attention.adv_ano_weight": 0.0}
_RECTANGLES = {"augment.whole_share": 0.0}
_PRETRAINED = {"attention.encoder": "efficientnet-lite0"}
_STAGE1 = {"adgan.epochs": 0, "adgan.synthetic_fakes": False, "image_score": "attention"}  # no stage 2 is needed
BASELINE = "nearest neighbours (frozen features)"
GAUSSIAN = "one Gaussian a place (frozen features)"
ADAPTED = "nearest neighbours (adapted features)"


def _dcgan(*steps: str, **overrides: Any) -> Variant:
    """A row of table 1: a GAN on images, and as fakes x'_ano made by these steps of hard augmentation (D25)."""
    switches = {f"augment.{step}": step in steps for step in ("rotation", "permutation", "jitter")}
    return Variant(switches | overrides, {}, "dcgan")


def _named(variants: dict[str, Variant], metrics: dict[str, str]) -> list[Variant]:
    return [variant._replace(rows={name: metrics}) for name, variant in variants.items()]


# What each deviation from the paper does, on the embedded textures: method -> what differs from the recipe.
TEXTURE_STUDY: dict[str, dict[str, Any]] = {
    "as the recipe says": {},
    "unit weights (as printed)": {
        "attention.adv_weight": 1.0, "attention.adv_ano_weight": 1.0, "attention.g_weight": 1.0,
        "attention.att_weight": 1.0, "attention.kl_weight": 1.0,
    },
    "adversarial losses five times as heavy": {"attention.adv_weight": 0.05, "attention.adv_ano_weight": 0.05},
    "no adversarial losses": _NO_GAMES,
    "rectangles of 2 to 40 %": {"augment.box_area": (0.02, 0.4)},
    "rectangles only": _RECTANGLES,
    "batch statistics as training leaves them": {"attention.renew_statistics": False},
    "ADGAN without synthetic fakes": {"adgan.synthetic_fakes": False},
    "ADGAN trains its features": {"adgan.train_features": True},
    "ADGAN with a slow moving average (0.99)": {"adgan.ema": 0.99},
    "ADGAN without moving average": {"adgan.ema": 0.0},
}  # fmt: skip

# What keeps the maps of recipe `quick` from real defects, on MVTec AD: stage 1 alone.
DEFECT_STUDY: dict[str, dict[str, Any]] = {
    "as the recipe says": {},
    "pretrained encoder": _PRETRAINED,
    "pretrained encoder, frozen": _PRETRAINED | {"attention.freeze_encoder": True},
    "the same encoder with random weights": {"attention.encoder": "efficientnet-lite0-random"},
    "pretrained encoder, no adversarial losses": _PRETRAINED | _NO_GAMES,
    "no adversarial losses": _NO_GAMES,
    "rectangles only": _RECTANGLES,
    "pretrained encoder, rectangles only": _PRETRAINED | _RECTANGLES,
    "40 epochs": {"attention.epochs": 40},
    "pretrained encoder, 40 epochs": _PRETRAINED | {"attention.epochs": 40},
    "pretrained encoder, rectangles only, 40 epochs": _PRETRAINED | _RECTANGLES | {"attention.epochs": 40},
}

_APART = "one Gaussian a place, levels apart"
_TAUGHT = {
    "and a judge a level, taught by noise": Variant({"stain_share": 0.0}, {}, "discriminators"),
    "discriminators: taught by noise and stains": Variant({}, {}, "discriminators"),
    "judges taught by stains alone": Variant({"stain_share": 1.0}, {}, "discriminators"),
}
# From features without training to recipe `discriminators`, one change at a time; last the stage 1 that it gave up.
BEYOND = {
    "nearest neighbours": Variant({}, {}, "neighbours"),
    "one Gaussian a place, levels joined (PaDiM)": Variant({"per_level": False}, {}, "gaussian"),
    _APART: Variant({}, {}, "gaussian"),
    **_TAUGHT,
    "attention map with skips (stage 1 alone)": Variant({}, {}, "map"),
    "judges taught by noise, on features times that map (eq. 6)": Variant({"stain_share": 0.0}, {}, "guided"),
}
# Two cores tune an encoder at half the size in less time than they teach a pyramid on a frozen one (D32).
_TUNED = {"tune": 0.1, "schedule": "one-cycle"}
TUNED = "attention map with skips, its encoder tuned"

# Does the check that needs no labelled defect go with the figures that do? Stage 1 alone, longer and longer.
_CHECK = {"synthetic_image_auroc": "synthetic.image_auroc", "synthetic_pixel_auroc": "synthetic.pixel_auroc"}
UNLABELLED = {
    **{f"quick, stage 1, {n} epochs": Variant(_STAGE1 | {"attention.epochs": n}, {}) for n in (1, 2, 4, 10, 20)},
    "one Gaussian a place": Variant({}, {}, "gaussian"),
    "discriminators": Variant({}, {}, "discriminators"),
}

_BASELINES = _named({method: Variant({}, {}, name) for name, method in BASELINES.items()}, _ALL)

TABLES: dict[str, list[Variant]] = {
    "table1": _named(
        {
            "base": _dcgan(),
            "rotate": _dcgan("rotation"),
            "perm": _dcgan("permutation"),
            "jitter": _dcgan("jitter"),
            "rotate+perm": _dcgan("rotation", "permutation"),
            "rotate+perm+jitter": _dcgan("rotation", "permutation", "jitter"),
            "semi (128 real anomalies)": _dcgan(real_anomalies=128),
        },
        {"image_auroc": "image_auroc"},
    ),
    "table2": [
        Variant({}, {BASELINE: {"image_auroc": "image_auroc"}}, "neighbours"),
        Variant({}, {GAUSSIAN: {"image_auroc": "image_auroc"}}, "gaussian"),
        Variant({}, {ADAPTED: {"image_auroc": "image_auroc"}}, "adapted"),
        Variant(_ADGAN, {"ADGAN": _by_score("adgan")}),
        Variant(_FAKES, {"ADGAN + synthetic fakes": _by_score("adgan")}),
    ],
    "table3": [
        Variant({}, {BASELINE: _ALL}, "neighbours"),
        Variant({}, {GAUSSIAN: _ALL}, "gaussian"),
        Variant(_ADGAN, {"ADGAN": _ALL, "attention mean": _by_score("attention")}),
        Variant(_FAKES, {"ADGAN + synthetic fakes": _IMAGE}),  # stage 1, and so every map, is the same
    ],
    "table4": [
        Variant(_STAGE1 | {"attention.att_weight": 0.0}, {"L_adv^ano only": {"pixel_auroc": "pixel_auroc"}}),
        Variant(_STAGE1 | {"attention.adv_ano_weight": 0.0}, {"L_att only": {"pixel_auroc": "pixel_auroc"}}),
        Variant(_STAGE1, {"L_adv^ano + L_att": {"pixel_auroc": "pixel_auroc"}}),
    ],
    "table5": [
        Variant(
            _ADGAN,
            {
                "reconstruction loss (no ADGAN)": _by_score("reconstruction"),
                "stage-1 discriminator (no ADGAN)": _by_score("discriminator"),
                "attention mean": _by_score("attention"),
                "ADGAN": _by_score("adgan"),
            },
        ),
        Variant(_FAKES, {"ADGAN + synthetic fakes": _by_score("adgan")}),
    ],
    "textures": [Variant(overrides, {name: _STUDY}) for name, overrides in TEXTURE_STUDY.items()],
    "defects": [
        Variant(_STAGE1 | overrides, {name: {"pixel_auroc": "pixel_auroc", "aupro": "aupro", **_by_score("attention")}})
        for name, overrides in DEFECT_STUDY.items()
    ],
    "beyond": _named(BEYOND | {f"{TUNED} at 128 pixels": Variant(_TUNED | {"size": 128}, {}, "map")}, _ALL),
    "surfaces": _named(BEYOND | {TUNED: Variant(_TUNED, {}, "map")}, _ALL),
    "choices": _named({_APART: BEYOND[_APART], **_TAUGHT}, _ALL),
    "unlabelled": _named(UNLABELLED, _CHECK | {"image_auroc": "image_auroc", "pixel_auroc": "pixel_auroc"}),
    "rivals": _BASELINES,
    "rivals-mvtec": _BASELINES,
    "rivals-cifar10": [variant._replace(rows=dict.fromkeys(variant.rows, _IMAGE)) for variant in _BASELINES],
}

# The data set of each table; None where each class is a data set of its own.
DATA = {
    "table1": "cifar10", "table2": "cifar10", "table3": None, "table4": None, "table5": "cifar10",
    "textures": "textures", "defects": None, "beyond": None, "surfaces": "textures", "choices": "textures",
    "unlabelled": None,
    "rivals": "textures", "rivals-mvtec": None, "rivals-cifar10": "cifar10",
}  # fmt: skip
CLASSES = {
    "table1": CIFAR10_CLASSES, "table2": CIFAR10_CLASSES, "table3": MVTEC_CATEGORIES, "table4": MVTEC_CATEGORIES,
    "table5": CIFAR10_CLASSES, "textures": ("brick",), "defects": MVTEC_CATEGORIES,
    "beyond": MVTEC_CATEGORIES, "surfaces": TEXTURES, "choices": CHOSEN_ON, "rivals": TEXTURES,
    "rivals-mvtec": MVTEC_CATEGORIES, "rivals-cifar10": CIFAR10_CLASSES, "unlabelled": ("textures", *MVTEC_CATEGORIES),
}  # fmt: skip
PAPER_METRICS = {
    "image AUROC": "image_auroc",
    "pixel AUROC": "pixel_auroc",
    "classification accuracy": "balanced_accuracy",
}


class Job(NamedTuple):
    """A run that a table needs, and the rows that it gives."""

    table: str
    name: str  # of the class or category
    variant: Variant
    config: Any  # of the detector
    overrides: str = ""  # values that are neither the recipe's nor the variant's nor in a column of their own, as JSON


def jobs(
    table: str,
    *,
    classes: Sequence[str],
    seeds: Sequence[int],
    recipe_name: str = "quick",
    overrides: dict[str, Any] | None = None,
) -> list[Job]:
    """List a table's runs, one for each seed, variant and class; `overrides` apply before those of the variants.

    In a table of the paper's detector, others beside it, such as the baseline, keep their own values.
    """
    mixed, planned = any(variant.recipe is None for variant in TABLES[table]), []
    for variant, seed, name in product(TABLES[table], seeds, classes):
        data = DATA[table] or name
        config = recipe(variant.recipe or recipe_name, data)
        given = overrides if mixed == (variant.recipe is None) else None
        config = replace(config, normal_class=None if data == name else name, seed=seed)
        config = override(override(config, given or {}), variant.overrides)
        planned.append(Job(table, name, variant, config, _told(given)))
    return planned


# Values that rows tell in columns of their own: encoder, size, epochs.
_COLUMNS = ("attention.encoder", "encoder", "size", "attention.epochs", "adgan.epochs", "epochs")


def _told(overrides: dict[str, Any] | None) -> str:
    """Overrides that no other column of a row tells, as JSON; "" without any."""
    told = {name: value for name, value in (overrides or {}).items() if name not in _COLUMNS}
    return json.dumps(told, sort_keys=True) if told else ""
