"""The rule that chooses a detector by sets.csv, written down before the first run.

On a set, a detector has the image AUROC less that of the best of its peers: the mean of what it is with the images as
they are, and of the mean over what they are moved by. The detector with the highest mean over sets is chosen; among
those within TIE of it, the one whose worst set is best. The choice holds where it also wins on sets that took no part
in it: for each set the choice by the others is judged on that set alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import NamedTuple

from attnad.errors import DataError
from attnad.study.moved import MOVED
from attnad.study.records import Row
from attnad.study.summary import Summary

PEERS = ("padim", "patchcore", "neighbours")  # anomalib's, and the line that a detector must justify itself against
THEIRS = PEERS[:2]  # which cannot be chosen
TIE = 0.001
CELLS = (  # of the table: column of sets.csv, 0 as is or 1 moved, decimals
    ("image_auroc", 0, 3), ("image_auroc", 1, 3), ("pixel_auroc", 0, 3), ("pixel_auroc", 1, 3), ("aupro", 0, 3),
    ("false_alarms", 0, 2), ("false_alarms", 1, 2), ("fit_seconds", 0, 0), ("milliseconds", 0, 0),
)  # fmt: skip


class Choice(NamedTuple):
    """Which detector the rule chooses, and by what.

    means and worst: of each detector, peers as well, its mean over sets and its worst set's figure. folds: of each set,
    the choice by the others. left_out: the mean of these, each on its set. holds: whether no other detector has a
    higher mean than that, by more than TIE. incomplete: detectors and sets that have not been measured whole.
    """

    winner: str
    means: dict[str, float]
    worst: dict[str, tuple[str, float]]
    folds: dict[str, str]
    left_out: float
    holds: bool
    incomplete: tuple[str, ...]


def averaged(rows: Iterable[Row], metric: str) -> dict[tuple[str, str], tuple[float | None, float | None]]:
    """A metric by (set, detector), means over seeds: as is, and the mean over what images are moved by.

    None where it was not measured, or not under every change.
    """
    found: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row[metric]:
            found[row["set"], row["detector"]][row["moved"]].append(float(row[metric]))
    moved = [name for name in MOVED if name != "as is"]
    return {
        key: (
            fmean(values["as is"]) if "as is" in values else None,
            fmean(fmean(values[name]) for name in moved) if all(name in values for name in moved) else None,
        )
        for key, values in found.items()
    }


def gaps(rows: Iterable[Row]) -> dict[str, dict[str, float]]:
    """{detector: {set: its image AUROC less the best peer's}}, as the head of this module says.

    Only sets that all peers were measured on, and only what was measured whole.
    """
    auroc = {key: pair for key, pair in averaged(rows, "image_auroc").items() if None not in pair}
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for (name, detector), pair in auroc.items():
        if all((name, peer) in auroc for peer in PEERS):
            best = [max(auroc[name, peer][i] for peer in PEERS) for i in (0, 1)]  # type: ignore[type-var]
            found[detector][name] = fmean(ours - theirs for ours, theirs in zip(pair, best, strict=True))  # type: ignore[operator]
    return dict(found)


def choose(rows: Sequence[Row]) -> Choice:
    """Choose a detector by the rule. Raises DataError where fewer than two sets have all peers and one of ours."""
    by_detector = gaps(rows)
    sets = sorted(by_detector.get(PEERS[0], {}))
    whole = {name: found for name, found in by_detector.items() if len(found) == len(sets)}
    ours = {name: found for name, found in whole.items() if name not in THEIRS}
    if len(sets) < 2:
        raise DataError(
            f"a choice needs two sets or more on which {', '.join(PEERS)} are measured; there are {len(sets)}"
        )
    folds = {left: _best(ours, [name for name in sets if name != left]) for left in sets}
    left_out = fmean(ours[folds[name]][name] for name in sets)
    winner = _best(ours, sets)
    means = {name: fmean(found.values()) for name, found in whole.items()}
    others = [means[name] for name in ours if name != winner]
    partly = {row[column] for row in rows for column in ("set", "detector")} - {*sets, *whole}
    return Choice(
        winner,
        means,
        {name: min(found.items(), key=lambda item: item[1]) for name, found in whole.items()},
        folds,
        left_out,
        all(left_out >= other - TIE for other in others),
        tuple(sorted(partly)),
    )


def _best(found: dict[str, dict[str, float]], sets: Sequence[str]) -> str:
    means = {name: fmean(values[each] for each in sets) for name, values in found.items()}
    level = [name for name, mean in means.items() if mean >= max(means.values()) - TIE]
    return max(level, key=lambda name: min(found[name][each] for each in sets))


def table(rows: Sequence[Row]) -> Summary:
    """What sets.csv says: each detector on each set, as is and moved, the means over all sets, and the choice."""
    sets, detectors = (list(dict.fromkeys(row[name] for row in rows)) for name in ("set", "detector"))
    found = {metric: averaged(rows, metric) for metric in dict.fromkeys(metric for metric, _, _ in CELLS)}
    measured = {metric: {name for name, _ in values} for metric, values in found.items()}  # pixels need masks
    against = gaps(rows)

    def line(label: str, names: Sequence[str], detector: str) -> tuple[str, ...]:
        cells = []
        for metric, moved, decimals in CELLS:
            known = [
                found[metric].get((name, detector), (None, None))[moved] for name in names if name in measured[metric]
            ]
            cells.append(_mean(known, f".{decimals}f"))
        ahead = [against.get(detector, {}).get(name) for name in names if name in against.get(PEERS[0], {})]
        return (label, detector, *cells[:2], _mean(ahead, "+.3f"), *cells[2:])

    lines = [line(name, [name], detector) for name in sets for detector in detectors
             if (name, detector) in found["image_auroc"]]  # fmt: skip
    lines += [line(f"mean of {len(sets)}", sets, detector) for detector in detectors]
    header = (
        "set", "detector", "image AUROC", "image AUROC, moved", "against best peer", "pixel AUROC",
        "pixel AUROC, moved", "AUPRO", "false alarms", "false alarms, moved", "fit s", "ms",
    )  # fmt: skip
    try:
        notes = said(choose(rows))
    except DataError as error:
        notes = (str(error),)
    moves = (
        f"Moved: the mean over {len(MOVED) - 1} changes of the test images. A mean takes every set where there is one."
    )
    return Summary(header, tuple(lines), (moves, *notes))


def said(choice: Choice) -> tuple[str, ...]:
    """The choice in sentences."""
    ranked = sorted(choice.means, key=lambda name: -choice.means[name])
    figures = [
        f"{name} {choice.means[name]:+.4f} (worst {choice.worst[name][0]} {choice.worst[name][1]:+.3f})"
        for name in ranked
    ]
    folds = [f"{name} {winner}" for name, winner in choice.folds.items() if winner != choice.winner]
    verdict = "also wins" if choice.holds else "does not win"
    lines = [
        f"Against the best of {', '.join(PEERS)}, on {len(choice.folds)} sets: {'; '.join(figures)}.",
        f"Chosen: {choice.winner}. It {verdict} on sets left out: {choice.left_out:+.4f}; "
        + (f"by the other sets the choice is another for: {', '.join(folds)}." if folds else "every fold chooses it."),
    ]
    if choice.incomplete:
        lines.append(f"Left out of the choice, not measured whole: {', '.join(choice.incomplete)}.")
    return tuple(lines)


def _mean(values: Sequence[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    return format(fmean(known), form) if known and len(known) == len(values) else "-"
