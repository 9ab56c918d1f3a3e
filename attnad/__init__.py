"""Attention map-guided two-stage anomaly detection: the package under the book.

What a few lines need is offered here, and imported when it is first used: `attnad.Detector`, `attnad.load` and the
others of `OFFERED`. Everything else is in its module.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

OFFERED = {
    "Detector": "detector", "load": "detector",
    "load_train": "data", "load_test": "data", "load_images": "data", "recipe": "detectors",
    "train_run": "run.run", "load_run": "run.run", "evaluate_run": "run.run",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in OFFERED:
        raise AttributeError(f"module 'attnad' has no attribute {name!r}")
    return getattr(import_module(f"attnad.{OFFERED[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *OFFERED])
