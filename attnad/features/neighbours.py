"""Distances to the nearest of stored features, and which features to store (Roth et al. 2022, PatchCore)."""

from __future__ import annotations

import torch
from torch import Tensor

PROJECTED = 48  # dimensions in which distances are compared while features are chosen


def nearest_distance(queries: Tensor, stored: Tensor, *, chunk: int = 1024) -> Tensor:
    """Euclidean distance of each query [m, c] to the nearest of the stored features [k, c]: [m].

    Works through `chunk` queries at a time, so that memory stays near chunk * k numbers.
    """
    squares = stored.square().sum(1)
    nearest = [(squares - 2 * part @ stored.T).amin(1) for part in queries.split(chunk)]  # |q - s|^2 less |q|^2
    return (torch.cat(nearest) + queries.square().sum(1)).clamp(min=0).sqrt()


def k_centers(features: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Choose k features of [n, c] so that the farthest from all chosen is as near as can be, greedily: indices [<= k].

    Distances are those of a random projection to `PROJECTED` dimensions. Source: Roth et al. 2022, algorithm 1 (Sener &
    Savarese 2018); the projection after Johnson & Lindenstrauss.
    """
    n, c = features.shape
    device = features.device
    if n <= k:
        return torch.arange(n, device=device)
    points = features @ torch.randn(c, PROJECTED, generator=generator, device=device)
    squares = points.square().sum(1)
    chosen = torch.empty(k, dtype=torch.int64, device=device)
    chosen[0] = torch.randint(n, (), generator=generator, device=device)
    nearest = torch.full_like(squares, torch.inf)
    for i in range(1, k):
        last = chosen[i - 1 : i]
        nearest = torch.minimum(nearest, squares - 2 * (points @ points[last].T)[:, 0] + squares[last])
        chosen[i] = nearest.argmax()
    return chosen
