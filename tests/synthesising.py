"""A synthesis widget's images and states, and what a page shows of it."""

from __future__ import annotations

import numpy as np
import torch
from browsing import repainted

from attnad.augmentations import (
    color_jitter,
    cut_and_fill,
    permute_patches,
    random_boxes,
    random_orders,
    rotate,
)
from attnad.config import AugmentConfig
from attnad.widgets.front import coloured

SIDE = 32
PARAMETERS = (
    "quarter_turns", "grid", "order", "brightness", "contrast", "saturation", "hue", "filling", "box", "index",
    "outline",
)  # fmt: skip


def images() -> torch.Tensor:
    """Noise in colour, saturated colours with ties, and grey."""
    noise = torch.randint(0, 256, (1, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    corners = torch.cartesian_prod(*[torch.tensor([0, 128, 255], dtype=torch.uint8)] * 3)  # [27, 3]
    bars = corners[torch.arange(SIDE**2) % 27].T.reshape(1, 3, SIDE, SIDE)
    return torch.cat([noise, bars, noise[:, :1].expand(-1, 3, -1, -1)])


def drawn(seed: int) -> dict:
    """Parameters of one synthetic anomaly, as hard_augmentation draws them, and the ends of the ranges."""
    generator = torch.Generator().manual_seed(seed)
    grid = (1, 2, 4)[seed % 3]
    brightness, contrast, saturation, hue = torch.rand(4, generator=generator).tolist()
    if seed >= 6:
        brightness, contrast, saturation, hue = torch.randint(2, (4,), generator=generator).tolist()
    return {
        "index": seed % 3 if seed < 6 else 1,
        "quarter_turns": seed % 4,
        "grid": grid,
        "order": random_orders(1, grid**2, generator)[0].tolist(),
        "brightness": 0.5 + brightness,
        "contrast": 0.5 + contrast,
        "saturation": 0.5 + saturation,
        "hue": 0.4 * hue - 0.2,
        "filling": "zeros" if seed % 2 else "x'",
        "box": random_boxes(1, SIDE, AugmentConfig(), generator)[0].tolist(),
    }


def expected(state: dict) -> list[np.ndarray]:
    """x, x', x'' and the coloured map as attnad.augmentations makes them: floats 0 ... 255 [s, s, 3]."""
    x = images()[state["index"]][None].float() / 255
    x1 = permute_patches(rotate(x, torch.tensor([state["quarter_turns"]])), torch.tensor([state["order"]]))
    x1 = color_jitter(
        x1, *(torch.tensor([float(state[name])]) for name in ("brightness", "contrast", "saturation", "hue"))
    )
    filling = x1 if state["filling"] == "x'" else torch.zeros_like(x)
    x2, target = cut_and_fill(x, filling, torch.tensor([state["box"]]))
    pictures = [255 * picture[0].permute(1, 2, 0).numpy() for picture in (x, x1, x2)]
    return [*pictures, coloured((255 * (1 - target[0, 0])).numpy().astype(np.uint8), "inferno").astype(float)]


def pictures(page) -> np.ndarray:
    """Pixels of x, x', x'' and the map, once they are painted: [4, s, s, 3]."""
    repainted(page)
    data = page.locator(".frame canvas").evaluate_all(
        "all => all.map((c) => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data])"
    )
    pixels = np.array(data, float).reshape(4, SIDE, SIDE, 4)
    assert (pixels[..., 3] == 255).all(), "only opaque pixels are read back as they were painted"
    return pixels[..., :3]


def state(page) -> dict:
    return page.evaluate("(names) => Object.fromEntries(names.map((n) => [n, model.get(n)]))", list(PARAMETERS))


# --- in the browser --------------------------------------------------------------------------------------------------
