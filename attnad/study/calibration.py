"""Is the rate of false alarms that a run promises the one that it delivers? Writes calibration.csv.

On each development set a detector learns from few photographs and from all, as `attnad train` does, and flags good
test images at the thresholds of several rates. What chance allows stands beside it: the binomial band of so many test
images, and the beta-binomial one, which also knows that the threshold was drawn, from so many calibration scores.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch

from attnad.errors import SettingError
from attnad.study.records import Row, add_records, read_records
from attnad.study.results import current_commit
from attnad.study.sets import EMBEDDED, check_detectors, configuration, fit, label_of, load_set, sets_there
from attnad.study.summary import Summary
from attnad.train import pick_device
from attnad.training.machine import machine_facts

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # it writes a cache into the user's home as it loads: only where needed

RATES = (0.01, 0.05, 0.1)
NUMBERS = (20, 50, 100)  # of photographs to learn from, beside all
SEEDS = (0, 1, 2, 3, 4)  # a split each: which photographs, and all that is chance in learning
DETECTORS = ("strong",)
COVERED = 0.95  # of a band
KEY = ("set", "detector", "size", "n", "split")
COLUMNS = (
    *KEY, "rate", "delivered", "n_good", "n_calibration", "low", "high", "low_drawn", "high_drawn", "within",
    "n_photographs", "commit", "torch", "device", "threads", "date",
)  # fmt: skip


def bands(rate: float, n_good: int, n_calibration: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Where the share of n_good images lies that are flagged at a rate, in 95 of 100 cases or more: two (low, high).

    First with a threshold that has exactly this rate: binomial. Then with one drawn, the place (1 - rate)(m + 1) among
    m calibration scores: its rate is beta distributed, and the share beta-binomial. Source: Vovk 2012, "Conditional
    validity of inductive conformal predictors", for the beta distribution.
    """
    from scipy.stats import betabinom, binom  # here: their import is slow

    ends, places = ((1 - COVERED) / 2, (1 + COVERED) / 2), n_calibration + 1
    exact, drawn = binom(n_good, rate), betabinom(n_good, rate * places, (1 - rate) * places)
    first, second = ([float(law.ppf(end)) / n_good for end in ends] for law in (exact, drawn))
    return (first[0], first[1]), (second[0], second[1])


@torch.no_grad()
def measure(
    path: Path,
    *,
    names: Sequence[str],
    detectors: Sequence[str],
    splits: Sequence[int],
    size: int | None,
    values: dict[str, Any],
    device: str,
    data_root: Path | None,
) -> list[Row]:
    """Learn and flag, for each set, detector, number of photographs and split; returns the table, COLUMNS.

    Rows are written as each detector is judged, and those that are there stay. A rate that a run refuses, for it has
    too few calibration scores, has a row without figures.
    """
    where = pick_device(device)
    check_detectors(detectors, values, names, ours=True)
    done = {tuple(row[name] for name in KEY) for row in read_records(path, COLUMNS)}
    for name in names:
        side = size or (64 if name in EMBEDDED else 256)
        images, test = load_set(name, data_root, side)
        good = test.images[~test.labels]
        numbers = {str(n): n for n in NUMBERS if n < len(images)} | {"all": len(images)}
        for n, detector, split in ((n, detector, split) for n in numbers for detector in detectors for split in splits):
            key = (name, label_of(detector, values, size), str(side), n, str(split))
            if key in done:
                continue
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(split))
            chosen = images[order[: numbers[n]].sort().values]
            with tempfile.TemporaryDirectory() as folder:
                run = fit(configuration(name, detector, split, side, values), chosen, Path(folder), where)
                scores = run.image_scores(run.score(good))
            facts, m = machine_facts(where), len(run.facts["held_out_scores"])
            common = dict(zip(KEY, key, strict=True)) | {
                "n_good": len(good), "n_calibration": m, "n_photographs": len(chosen), "commit": current_commit(),
                **{fact: facts[fact] for fact in ("torch", "device", "threads", "date")},
            }  # fmt: skip
            rows = [common | {"rate": rate} | _delivered(run, scores, rate, m) for rate in RATES]
            add_records(path, COLUMNS, rows)
            told = ", ".join(f"{row['rate']}: {row.get('delivered', 'too few photographs')}" for row in rows)
            print(f"{name}, {key[1]}, {n} photographs, split {split}: delivered {told}", flush=True)
    return read_records(path, COLUMNS)


def _delivered(run: Any, scores: torch.Tensor, rate: float, m: int) -> dict[str, str]:
    """The columns of a rate; none where the run refuses it."""
    try:
        threshold = run.threshold_for(rate)
    except SettingError:
        return {}
    share = (scores > threshold).float().mean().item()
    (low, high), (low_drawn, high_drawn) = bands(rate, len(scores), m)
    figures = {
        "delivered": share, "low": low, "high": high, "low_drawn": low_drawn, "high_drawn": high_drawn,
    }  # fmt: skip
    inside = low - 1e-6 <= share <= high + 1e-6  # the share is in single precision
    return {name: f"{value:.4f}" for name, value in figures.items()} | {"within": str(int(inside))}


def table(rows: Sequence[Row]) -> Summary:
    """For each detector, number of photographs and rate: what was delivered, over sets and splits."""
    groups: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["detector"], row["n"], row["rate"]].append(row)
    lines, refused = [], []
    for (detector, n, rate), group in groups.items():
        known = [row for row in group if row["delivered"]]
        if len(known) < len(group):
            refused.append(f"{rate} with {n} photographs ({detector}; {len(group) - len(known)} of {len(group)} runs)")
        if not known:
            continue
        by_set: dict[str, list[float]] = defaultdict(list)
        for row in known:
            by_set[row["set"]].append(float(row["delivered"]))
        means = {name: fmean(values) for name, values in by_set.items()}
        worst = max(means, key=lambda name: means[name])
        drawn = [float(row["low_drawn"]) <= float(row["delivered"]) <= float(row["high_drawn"]) for row in known]
        lines.append((
            detector, n, rate, f"{fmean(means.values()):.3f}", f"{worst} {means[worst]:.3f}",
            f"{fmean(int(row['within']) for row in known):.2f}", f"{fmean(drawn):.2f}", str(len(known)),
        ))  # fmt: skip
    header = ("detector", "photographs", "promised", "delivered", "worst set", "within", "within, drawn", "runs")
    notes = [
        "Delivered: the share of good test images flagged, mean over sets. Within: the share of runs in the 95 % band "
        "of chance, binomial; drawn: beta-binomial, for the threshold is drawn as well."
    ]
    if refused:
        notes.append(f"Left out, for there are too few calibration scores: {'; '.join(refused)}.")
    return Summary(header, tuple(lines), tuple(notes))


def draw(rows: Sequence[Row]) -> Figure:
    """Draw promised against delivered, a panel a number of photographs, a mark a set (mean over splits) with its range.

    The grey bands are those of the median number of good test images and of calibration scores: binomial, darker, and
    beta-binomial.
    """
    import numpy as np
    from matplotlib.figure import Figure

    known = [row for row in rows if row["delivered"]]
    numbers, sets = (list(dict.fromkeys(row[name] for row in rows)) for name in ("n", "set"))
    figure = Figure(figsize=(2.4 * len(numbers) + 1.2, 3.4), dpi=110, layout="constrained")
    axes = figure.subplots(1, len(numbers), sharey=True, squeeze=False)[0]
    colours = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")
    for ax, n in zip(axes, numbers, strict=True):
        for place, rate in enumerate(RATES):
            here = [row for row in known if row["n"] == n and float(row["rate"]) == rate]
            if here:
                n_good, m = (int(np.median([int(row[name]) for row in here])) for name in ("n_good", "n_calibration"))
                exact, drawn = bands(rate, n_good, m)
                for (low, high), shade in ((drawn, "#e6e6e6"), (exact, "#bbbbbb")):
                    ax.fill_between([place - 0.42, place + 0.42], low, high, color=shade, linewidth=0)
            ax.plot([place - 0.42, place + 0.42], [rate, rate], color="black", linewidth=1, zorder=2)
            for i, name in enumerate(sets):
                shares = [float(row["delivered"]) for row in here if row["set"] == name]
                if shares:
                    x, colour = place + 0.8 * ((i + 0.5) / len(sets) - 0.5), colours[i % len(colours)]
                    ax.plot([x, x], [min(shares), max(shares)], color=colour, linewidth=1, zorder=3)
                    marker = "osd^vPX"[i // len(colours) % 7]
                    ax.plot(x, fmean(shares), marker, color=colour, markersize=4, zorder=4, label=name)
        ax.set_xticks(range(len(RATES)), [f"{rate:g}" for rate in RATES], fontsize=9)
        ax.set_xlabel("promised", fontsize=9)
        ax.set_title(f"{n} photographs", fontsize=10)
    axes[0].set_ylabel("delivered", fontsize=9)
    legend = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    if legend:
        labels = list(legend)
        figure.legend([legend[name] for name in labels], labels, loc="outside right upper", frameon=False, fontsize=8)
    return figure


def reproduce(
    *, classes: Sequence[str] | None, seeds: Sequence[int], results: Path, data_root: Path | None, **arguments: Any
) -> None:
    """Measure what is missing of the promise, into calibration.csv, and print the table."""
    names = sets_there(classes, data_root)
    rows = measure(results / "calibration.csv", names=names, splits=seeds, data_root=data_root, **arguments)
    print(table(rows).text())
