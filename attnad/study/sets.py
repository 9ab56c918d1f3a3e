"""The development sets: every detector on each of them, as the test images are and moved. Writes sets.csv.

Detectors are recipes of ours, and anomalib's PaDiM and PatchCore on the same encoder. Ours hold out what they set their
threshold by; anomalib's learn from all normal images and have no threshold of their own. `attnad.study.moved.MOVED`
lists the changes, `attnad.study.choice` the rule that chooses.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attnad.data import TestSet, load_test, load_train
from attnad.data.folders import data_root as find_root
from attnad.data.textures import CHOSEN_ON, TEXTURES
from attnad.detectors import override, recipe
from attnad.errors import DataError
from attnad.metrics import evaluate_scores
from attnad.run.run import Run, learn
from attnad.study.choice import THEIRS, table
from attnad.study.compare_anomalib import anomalib_version, fit_theirs, milliseconds
from attnad.study.moved import MOVED, Move, any_pose
from attnad.study.records import Row, add_records, read_records
from attnad.study.results import current_commit
from attnad.train import pick_device
from attnad.training.machine import machine_facts
from attnad.training.state import FitOptions

PHOTOGRAPHS = ("kolektor", "deeppcb", "casting", "elpv_poly", "potato_leaf", "bottle", "pill")
TURNED = {f"{name}_turned": name for name in ("bottle", "pill")}  # parts in any pose, and where they lie in one
EMBEDDED = (*TEXTURES, *CHOSEN_ON)
SETS = (*PHOTOGRAPHS, *TURNED, *EMBEDDED)
PEERS = dict(zip(THEIRS, ("anomalib PaDiM", "anomalib PatchCore"), strict=True))
DETECTORS = ("strong", "gaussian", "neighbours", *PEERS)
SEEDS = (0, 1, 2)
PROMISED = 0.05  # the share of good images that a run's own threshold is to flag
MEASURED = ("image_auroc", "pixel_auroc", "aupro", "promised", "false_alarms", "found", "fit_seconds", "milliseconds")
KEY = ("set", "detector", "seed", "size", "moved")
COLUMNS = (
    *KEY, *MEASURED, "n_train", "n_good", "n_bad", "commit", "torch", "anomalib", "device", "threads", "date",
)  # fmt: skip


class Fitted(NamedTuple):
    """A detector that has learned: judge gives image scores [n] and maps [n, s, s] of uint8 images [n, 3, s, s]."""

    judge: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    threshold: float | None  # None: it has none of its own
    n_train: int


def folder_of(name: str, root: Path | None) -> Path | None:
    """The folder of a set of photographs below the root, in it or in its folders sets or mvtec_ad; None without one."""
    base, name = find_root(root), TURNED.get(name, name)
    return next((p for p in (base / name, base / "sets" / name, base / "mvtec_ad" / name) if p.is_dir()), None)


def sets_there(wanted: Sequence[str] | None, root: Path | None, among: Sequence[str] = SETS) -> list[str]:
    """The sets whose data are there; a line names the others. Raises DataError on an unknown name, and without any."""
    if unknown := [name for name in wanted or () if name not in among]:
        raise DataError(f"there is no set {unknown[0]!r}; choose among {', '.join(among)}")
    names = wanted or among
    there = [name for name in names if name in EMBEDDED or folder_of(name, root)]
    if absent := [name for name in names if name not in there]:
        print(f"left out, for they are not below {find_root(root)}: {', '.join(absent)}", flush=True)
    if not there:
        raise DataError(f"{find_root(root)}: holds none of the sets {', '.join(names)}; name their folder: --data-root")
    return there


def place(name: str, root: Path | None) -> tuple[str, str | None]:
    """The data set and normal class of a set. Raises DataError where it is not there."""
    if name in EMBEDDED:
        return "textures", name
    if (folder := folder_of(name, root)) is None:
        raise DataError(f"{name}: no folder of that name is in {find_root(root)}; name its folder: --data-root")
    return str(folder.absolute()), None


def load_set(name: str, root: Path | None, size: int) -> tuple[Tensor, TestSet]:
    """A set's normal training images, uint8 [n, 3, s, s], and its test set."""
    data, normal = place(name, root)
    images = load_train(data, size=size, normal_class=normal).images
    test = load_test(data, size=size, normal_class=normal)
    if name in TURNED:
        images, _ = any_pose(images, torch.zeros(len(images), size, size, dtype=torch.bool), seed=0)
        turned, masks = any_pose(test.images, test.masks, seed=1)
        test = replace(test, images=turned, masks=masks)
    return images, test


def configuration(name: str, detector: str, seed: int, size: int, values: dict[str, Any]) -> Any:
    """A recipe's configuration for a set, with other values than its own. The data are named, not looked for."""
    data, normal = ("textures", name) if name in EMBEDDED else (name, None)
    config = replace(recipe(detector, data), normal_class=normal, seed=seed, size=size)
    return override(config, values)


def check_detectors(
    detectors: Sequence[str], values: dict[str, Any], names: Sequence[str], *, ours: bool = False
) -> None:
    """Raise SettingError before anything is measured, where a detector or a value is unknown or a package missing.

    With `ours`, peers are unknown.
    """
    for detector in detectors:
        if detector in PEERS and not ours:
            anomalib_version()
        else:
            configuration(names[0], detector, 0, 64, values)


def fit(config: Any, images: Tensor, folder: Path, device: torch.device) -> Run:
    """Learn from normal images, uint8 [n, 3, s, s], as `attnad train` does."""
    return learn(config, images, folder, FitOptions(device, progress=False))


def fitted(
    name: str, detector: str, seed: int, images: Tensor, values: dict[str, Any], folder: Path, device: torch.device
) -> Fitted:
    """Fit a detector, ours or a peer, to normal images, uint8 [n, 3, s, s]; of ours, what it learns is in `folder`."""
    if detector in PEERS:
        return Fitted(fit_theirs(PEERS[detector], images, device, seed), None, len(images))
    run = fit(configuration(name, detector, seed, images.shape[-1], values), images, folder, device)

    def judge(x: Tensor) -> tuple[Tensor, Tensor | None]:
        scores = run.score(x)
        return run.image_scores(scores), scores.maps

    return Fitted(judge, run.facts["threshold"], run.facts["n_train"])


def judged(one: Fitted, test: TestSet, move: Move) -> dict[str, Any]:
    """What a detector finds in a test set after a change of its images: columns of MEASURED, but for the times."""
    images, masks = move(test.images, test.masks)
    scores, maps = one.judge(images)
    labels = test.labels
    found = evaluate_scores(
        labels.numpy(), scores.numpy(), threshold=one.threshold or 0.0, masks=masks.numpy(),
        maps=None if maps is None else maps.numpy(), has_mask=test.has_mask.numpy(),
    )  # fmt: skip
    row: dict[str, Any] = {name: figure(found[name]) for name in ("image_auroc", "pixel_auroc", "aupro")}
    if one.threshold is not None:
        flagged = (scores > one.threshold).float()
        row["promised"] = PROMISED
        row["false_alarms"], row["found"] = (figure(flagged[part].mean().item()) for part in (~labels, labels))
    return row


def figure(value: float | None) -> str:
    """Four decimals; nothing where a figure is undefined."""
    return "" if value is None else f"{value:.4f}"


def label_of(detector: str, values: dict[str, Any], size: int | None = None, photographs: int | None = None) -> str:
    """A detector's name in tables, with what is other than usual.

    That is, of ours, values of the recipe; a side in pixels; the number of photographs that it learns from.
    """
    told = ({} if detector in PEERS else values) | ({"size": size} if size else {})
    few = [f"n={photographs}"] if photographs else []
    return " ".join([detector, *(f"{name}={value}" for name, value in sorted(told.items())), *few])


@torch.no_grad()
def measure_sets(
    path: Path,
    moves: dict[str, Move],
    *,
    names: Sequence[str],
    detectors: Sequence[str],
    seeds: Sequence[int],
    size: int | None = None,
    values: dict[str, Any] | None = None,
    photographs: int | None = None,
    device: str = "auto",
    data_root: Path | None = None,
) -> list[Row]:
    """Fit each detector to each set and judge its test images under each change; returns the table, COLUMNS.

    It learns from all normal images, or from so many `photographs`, which the seed draws.

    The rows of a detector on a set are written as soon as they are all there, and rows that are there stay, so that
    the same command goes on after a stop. `values` are other than a recipe's own, of our detectors.
    """
    where, values = pick_device(device), values or {}
    check_detectors(detectors, values, names)
    done = {tuple(row[name] for name in KEY) for row in read_records(path, COLUMNS)}
    for name in names:
        side = size or (64 if name in EMBEDDED else 256)
        for detector, seed in ((detector, seed) for seed in seeds for detector in detectors):
            key = (name, label_of(detector, values, size, photographs), str(seed), str(side))
            missing = {moved: move for moved, move in moves.items() if (*key, moved) not in done}
            if not missing:
                continue
            images, test = load_set(name, data_root, side)
            if photographs:
                order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
                images = images[order[:photographs].sort().values]
            with tempfile.TemporaryDirectory() as folder:
                started = time.perf_counter()
                one = fitted(name, detector, seed, images, values, Path(folder), where)
                seconds = time.perf_counter() - started
                rows = [{"moved": moved} | judged(one, test, move) for moved, move in missing.items()]
                if rows[0]["moved"] == "as is":
                    rows[0]["milliseconds"] = f"{milliseconds(one.judge, test.images):.1f}"
            facts = machine_facts(where)
            common = dict(zip(KEY, key, strict=False)) | {
                "fit_seconds": f"{seconds:.1f}", "n_train": one.n_train, "n_good": int((~test.labels).sum()),
                "n_bad": int(test.labels.sum()), "commit": current_commit(), "date": facts["date"],
                "anomalib": anomalib_version() if detector in PEERS else "",
                **{fact: facts[fact] for fact in ("torch", "device", "threads")},
            }  # fmt: skip
            add_records(path, COLUMNS, [common | row for row in rows])
            told = ", ".join(f"{row['moved']} {row['image_auroc']}" for row in rows)
            print(f"{name}, {key[1]}, seed {seed}, {seconds:.0f} s: image AUROC {told}", flush=True)
    return read_records(path, COLUMNS)


def reproduce(*, classes: Sequence[str] | None, results: Path, data_root: Path | None, **arguments: Any) -> None:
    """Measure what is missing of the development sets, into sets.csv; print the table and the choice, of these sets."""
    names = sets_there(classes, data_root)
    rows = measure_sets(results / "sets.csv", MOVED, names=names, data_root=data_root, **arguments)
    print(table([row for row in rows if row["set"] in names]).text())
