"""How detectors hold as the camera moves more and more: graded changes of test images. Writes moved.csv.

The rows are those of sets.csv (`attnad.study.sets`); "moved" names a change and how much of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from attnad.study.moved import Move, as_is, blur, gain, gradient, jpeg, light, noise, shift, turn
from attnad.study.records import Row
from attnad.study.sets import PEERS, measure_sets, sets_there
from attnad.study.summary import Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # it writes a cache into the user's home as it loads: only where needed

SETS = ("bottle", "pill", "casting", "kolektor")
DETECTORS = ("strong", *PEERS)
SEEDS = (0, 1, 2)


class Curve(NamedTuple):
    """A change, by how much it is done, and how much of it is none; None where any is a change."""

    move: Callable[[float], Move]
    values: tuple[float, ...]
    none: float | None
    label: str


CURVES = {
    "shift": Curve(shift, (2, 4, 8, 16), 0, "shift, pixels of 256"),
    "turn": Curve(turn, (1, 3, 5, 10), 0, "turn, degrees"),
    "light": Curve(light, (0.7, 0.8, 0.9, 1.1, 1.2, 1.3), 1, "light, times"),
    "gradient": Curve(gradient, (0.05, 0.1, 0.2, 0.3), 0, "gradient of light, share"),
    "cast": Curve(lambda share: gain(1 + share, 1, 1 - share), (0.02, 0.05, 0.1, 0.15), 0, "colour cast, share"),
    "noise": Curve(noise, (1, 2, 4, 8), 0, "noise, grey levels"),
    "blur": Curve(blur, (0.5, 1, 1.5, 2), 0, "blur, pixels of 256"),
    "jpeg": Curve(lambda quality: jpeg(int(quality)), (100, 90, 70, 50, 30), None, "JPEG quality"),
}
GRADED: dict[str, Move] = {
    "as is": as_is,
    **{f"{name} {value:g}": curve.move(value) for name, curve in CURVES.items() for value in curve.values},
}


def points(rows: Sequence[Row], metric: str) -> dict[str, dict[str, dict[float, float]]]:
    """{change: {detector: {how much: the mean of a metric over seeds and sets}}}, of rows of moved.csv."""
    found: dict[tuple[str, str, float], list[float]] = defaultdict(list)
    for row in rows:
        if row[metric]:
            change, _, value = row["moved"].partition(" ")
            places = [(change, float(value))] if change in CURVES else [
                (name, curve.none) for name, curve in CURVES.items() if curve.none is not None
            ]  # fmt: skip
            for name, place in places:
                found[name, row["detector"], place].append(float(row[metric]))
    curves: dict[str, dict[str, dict[float, float]]] = {name: {} for name in CURVES}
    for (name, detector, place), values in sorted(found.items()):
        curves[name].setdefault(detector, {})[place] = fmean(values)
    return curves


def draw(rows: Sequence[Row], metric: str = "image_auroc") -> Figure:
    """Draw a metric of rows of moved.csv, means over sets and seeds, against how much: a panel a change."""
    from matplotlib.figure import Figure

    curves, detectors = points(rows, metric), list(dict.fromkeys(row["detector"] for row in rows))
    colours = dict(zip(detectors, ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9"), strict=False))
    markers = dict(zip(detectors, "osd^vP", strict=False))
    figure = Figure(figsize=(9, 4.6), dpi=110, layout="constrained")
    axes = figure.subplots(2, 4, sharey=True)
    for ax, (name, curve) in zip(axes.flat, CURVES.items(), strict=True):
        for detector, found in curves[name].items():
            ax.plot(
                list(found), list(found.values()), marker=markers[detector], color=colours[detector], markersize=4,
                label=detector,
            )  # fmt: skip
        ax.set_xlabel(curve.label, fontsize=9)
        ax.tick_params(labelsize=8)
    axes[1, 3].invert_xaxis()  # the best quality is no change
    for ax in axes[:, 0]:
        ax.set_ylabel(metric.replace("auroc", "AUROC").replace("_", " "), fontsize=9)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    return figure


def table(rows: Sequence[Row]) -> Summary:
    """A line a change and how much, a column a detector: image AUROC and, where it has a threshold, false alarms."""
    detectors = list(dict.fromkeys(row["detector"] for row in rows))
    found = {metric: points(rows, metric) for metric in ("image_auroc", "false_alarms")}

    def cell(change: str, detector: str, value: float) -> str:
        auroc, alarms = (found[m][change].get(detector, {}).get(value) for m in ("image_auroc", "false_alarms"))
        return "-" if auroc is None else f"{auroc:.3f}" + ("" if alarms is None else f" / {alarms:.2f}")

    lines = [
        (curve.label, f"{value:g}", *(cell(name, detector, value) for detector in detectors))
        for name, curve in CURVES.items()
        for value in sorted({*curve.values} | ({curve.none} if curve.none is not None else set()))
    ]
    sets = dict.fromkeys(row["set"] for row in rows)
    notes = (
        f"Image AUROC / share of good images flagged at the detector's own threshold; means over {', '.join(sets)}.",
    )
    return Summary(("change", "how much", *detectors), tuple(lines), notes)


def reproduce(*, classes: Sequence[str] | None, results: Path, data_root: Path | None, **arguments: Any) -> None:
    """Measure what is missing of the graded changes, into moved.csv, and print the table."""
    names = sets_there(classes, data_root, SETS)
    rows = measure_sets(results / "moved.csv", GRADED, names=names, data_root=data_root, **arguments)
    print(table(rows).text())
