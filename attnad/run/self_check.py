"""A check that needs no labelled defect: does a detector find synthetic anomalies in normal images it has not seen?

It tells a detector that has learned something from one whose map is the same everywhere, and nothing finer: a real
defect can be harder than these (D31).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attnad.augmentations import synthesize
from attnad.config import AugmentConfig
from attnad.metrics import auroc
from attnad.score import Scores
from attnad.train import to_float

# Rectangles alone, the same for every detector: to turn or permute a whole image makes no anomaly of a texture.
ANOMALIES = AugmentConfig(whole_share=0.0, box_area=(0.005, 0.1))
LEAST, MOST = 40, 100  # synthetic images; where fewer are held out, several of each
ENOUGH = 0.7  # image AUROC, and pixel AUROC, below which a detector has learned too little


def synthetic_check(
    score: Callable[[Tensor], Scores],
    image_score: str,
    held_out: Tensor,
    *,
    threshold: float,
    seed: int,
    region: Tensor | None = None,
    good: Tensor | None = None,
) -> dict[str, Any]:
    """Draw synthetic anomalies into held-out normal images, uint8 [n, 3, s, s], and see what a detector finds of them.

    With a region, bool [s, s], which `score` goes by, they are drawn inside it, and its pixels alone count. `good` [m]
    are scores of normal images that the detector has not seen, where it has seen all of these.
    Returns `n` synthetic images, their `image_auroc` against the images they were made of, the `pixel_auroc` of the
    replaced rectangles within them (None without maps, or where the region is one pixel), and `found`, the share of
    them above the threshold.
    """
    normal = held_out[:MOST]
    several = -(-LEAST // len(normal))
    x = to_float(normal.repeat(several, 1, 1, 1)[:MOST])
    x_ano, a_ano = synthesize(x, ANOMALIES, torch.Generator().manual_seed(seed), region=region)
    good = score(normal).image[image_score] if good is None else good
    scores = score((x_ano * 255).round().to(torch.uint8))
    bad = scores.image[image_score]
    labels = torch.cat([torch.zeros(len(good)), torch.ones(len(bad))]).numpy()
    judged = torch.ones(x.shape[2:], dtype=torch.bool) if region is None else region
    replaced, pixel = (a_ano[:, 0] < 0.5)[:, judged].flatten(), None
    if scores.maps is not None and not replaced.all():
        pixel = auroc(replaced.numpy(), scores.maps[:, judged].flatten().numpy())
    return {
        "n": len(bad),
        "image_auroc": auroc(labels, torch.cat([good, bad]).numpy()),
        "pixel_auroc": pixel,
        "found": (bad > threshold).double().mean().item(),
    }


def describe(check: dict[str, Any]) -> str:
    """Say in a line what a check has found."""
    names = {"image AUROC": check["image_auroc"], "pixel AUROC": check["pixel_auroc"]}
    aurocs = ", ".join(f"{name} {value:.3f}" for name, value in names.items() if value is not None)
    return f"Of {check['n']} synthetic anomalies in normal images it finds {check['found']:.0%} ({aurocs})"


def learned_enough(check: dict[str, Any]) -> bool:
    """Whether a check's AUROCs are high enough for a detector that has learned anything."""
    return all(check[name] is None or check[name] >= ENOUGH for name in ("image_auroc", "pixel_auroc"))
