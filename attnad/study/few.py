"""Few photographs: detectors that learn from 4, 8 or 16 normal photographs of each development set. Writes few.csv.

The rows are those of sets.csv (`attnad.study.sets`), of the test images as they are; a detector's name says how many
photographs it learned from, and the seed which.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from attnad.study.moved import as_is
from attnad.study.records import Row
from attnad.study.sets import PEERS, PHOTOGRAPHS, measure_sets, sets_there
from attnad.study.summary import Summary

NUMBERS = (4, 8, 16)
DETECTORS = ("strong", *PEERS)
SEEDS = (0, 1, 2)


def table(rows: Sequence[Row]) -> Summary:
    """Image and pixel AUROC by number of photographs and detector: means over seeds, then over sets; the worst set."""
    found: dict[tuple[int, str], dict[str, dict[str, list[float]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for row in rows:
        detector, _, number = row["detector"].rpartition(" n=")
        for metric in ("image_auroc", "pixel_auroc"):
            if row[metric]:
                found[int(number), detector][metric][row["set"]].append(float(row[metric]))
    lines = []
    for (n, detector), metrics in sorted(found.items(), key=lambda item: item[0][0]):
        image, pixel = (
            {name: fmean(values) for name, values in metrics[m].items()} for m in ("image_auroc", "pixel_auroc")
        )
        worst = min(image, key=lambda name: image[name])
        pixels = f"{fmean(pixel.values()):.3f}" if pixel else "-"
        lines.append(
            (str(n), detector, str(len(image)), f"{fmean(image.values()):.3f}", f"{worst} {image[worst]:.3f}", pixels)
        )
    return Summary(("photographs", "detector", "sets", "image AUROC", "worst set", "pixel AUROC"), tuple(lines), ())


def reproduce(*, classes: Sequence[str] | None, results: Path, data_root: Path | None, **arguments: Any) -> None:
    """Measure what is missing, into few.csv, and print the table, of these sets."""
    names = sets_there(classes, data_root, PHOTOGRAPHS)
    for n in NUMBERS:
        rows = measure_sets(
            results / "few.csv", {"as is": as_is}, names=names, photographs=n, data_root=data_root, **arguments
        )
    print(table([row for row in rows if row["set"] in names]).text())
