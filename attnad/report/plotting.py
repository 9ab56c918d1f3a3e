"""Galleries of images and their maps (figures 4 to 7): one column an image, one scale from 0 to 1 for all maps."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:  # matplotlib writes a cache into the user's home as it loads: only where needed
    from matplotlib.figure import Figure

COLOURS = "inferno"  # even steps in lightness, readable by colour-blind eyes too; bright is anomalous
ATTENTION = "attention: 0 anomalous, 1 normal"  # the one scale that is drawn the other way round, dark at 1


def choose(kinds: Sequence[str], n: int, *, seed: int = 0) -> list[int]:
    """Choose up to n images for a gallery: half of them 'good', the others from all kinds of anomalies in turn.

    Returns indices into `kinds`, good ones first; chance by `seed` decides within a kind, never a score.
    Raises ValueError where n is below 1.
    """
    if n < 1:
        raise ValueError(f"cannot draw {n} images; choose 1 or more")
    groups: dict[str, list[int]] = {kind: [] for kind in sorted(set(kinds))}
    for i, kind in enumerate(kinds):
        groups[kind].append(i)
    for group in groups.values():
        random.Random(seed).shuffle(group)
    good = groups.pop("good", [])[: (n + 1) // 2]
    turns = max(map(len, groups.values()), default=0)
    anomalous = [group[turn] for turn in range(turns) for group in groups.values() if turn < len(group)]
    return good + sorted(anomalous[: n - len(good)], key=lambda i: kinds[i])


def overlay(images: Tensor, maps: Tensor) -> Tensor:
    """Lay anomaly maps [n, s, s] in [0, 1], coloured, over uint8 images [n, 3, s, s] in grey: float [n, 3, s, s]."""
    import matplotlib

    colours = torch.from_numpy(matplotlib.colormaps[COLOURS](maps.numpy())[..., :3]).permute(0, 3, 1, 2)
    return (images.float().mean(1, keepdim=True) / 255 + colours.float()) / 2


def gallery(rows: Mapping[str, Tensor], titles: Sequence[str], *, title: str = "", label: str = ATTENTION) -> Figure:
    """Draw one row for each name and tensor of n images' pictures or maps, with a title over each column.

    Pictures are [n, 3, s, s], uint8 or float in [0, 1]; maps are float [n, s, s] in [0, 1], masks bool [n, s, s].
    `label` says what the maps' one scale means. Bright is 1, but 0 with `ATTENTION`, so that bright is anomalous.
    Raises ValueError, naming the row, where there is no image, lengths differ or a value is outside of [0, 1].
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

    if not rows or not titles:
        raise ValueError("there is nothing to draw; give at least one row and one image")
    for name, values in rows.items():
        if len(values) != len(titles):
            raise ValueError(
                f"row {name!r} has {len(values)} images and there are {len(titles)} titles; give one of each"
            )
        if values.is_floating_point() and not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"row {name!r} has values outside [0, 1] or NaN; scale it by what its values mean")

    palette = f"{COLOURS}_r" if label == ATTENTION else COLOURS
    figure = Figure(figsize=(1.3 * len(titles) + 1.2, 1.35 * len(rows) + 0.7), dpi=110, layout="constrained")
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for line, (name, values) in zip(axes, rows.items(), strict=True):
        colours = "gray" if values.dtype == torch.bool else palette
        for ax, picture in zip(line, values, strict=True):
            picture = picture.permute(1, 2, 0) if picture.ndim == 3 else picture
            ax.imshow(picture.numpy(), cmap=colours, vmin=0, vmax=1, interpolation="nearest")
            ax.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, fontsize=10)
    for ax, text in zip(axes[0], titles, strict=True):
        ax.set_title(text, fontsize=10)
    if any(values.ndim == 3 and values.is_floating_point() for values in rows.values()):
        bar = figure.colorbar(ScalarMappable(cmap=palette), ax=axes, fraction=0.03, ticks=[0, 0.5, 1])
        bar.set_label(label, fontsize=10)
        bar.ax.tick_params(labelsize=10)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure
