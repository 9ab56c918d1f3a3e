"""A run: one folder with a configuration, a log, and what a detector has learned from normal images there.

RUN/config.json                    the configuration, written first
RUN/log.csv                        the mean of each loss term, by stage and epoch, where there is training
RUN/*.safetensors                  what the detector has learned, and states to resume from
RUN/run.json                       threshold and facts about the training, written last: the run is finished

More than 300 lines: a run's life, from the claim on its folder to its evaluation, stands in one place.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import AcquireReturnProxy, FileLock, Timeout
from torch import Tensor

from attnad.config import PaperConfig, config_hash, differences, first_name, from_dict, now_called
from attnad.data import TestSet, files_sum, lies_here, load_train, near_copies, normal_files, split_normal
from attnad.data.images import read_each, read_images, to_tensor
from attnad.data.tiles import Tiles
from attnad.detectors import DETECTORS, detector_class
from attnad.detectors.paper import stage1_hash
from attnad.errors import CheckpointError, DataError, SettingError, TrainingError
from attnad.metrics import auroc, evaluate_scores, normal_threshold
from attnad.run import drift
from attnad.run.calibration import p_values, threshold_for
from attnad.run.region import Region, check_region, claim_region, load_region
from attnad.run.self_check import synthetic_check
from attnad.score import Scores, check_images
from attnad.train import pick_device
from attnad.training.machine import machine_facts
from attnad.training.state import SAVE_SECONDS, FitOptions, fingerprint, logged_seconds
from attnad.training.storage import load_json, save_json

BATCH = 16  # photographs that are read and scored at once
LEFT_OUT = "each judged by a fit to the others"


class FileScore(NamedTuple):
    """score: of the image. map: [h, w] in [0, 1], at the run's size or, of tiles, the photograph's. size: its own
    (width, height) in pixels, upright. looks: of the image, as `attnad.run.drift.NAMES` says."""

    score: float
    map: Tensor
    size: tuple[int, int]
    looks: list[float]


@dataclass(frozen=True)
class Run:
    """A finished run: its configuration, its detector, and the facts of run.json."""

    config: Any  # the detector's `config_type`
    detector: Any  # see `attnad.detectors`
    facts: dict[str, Any]
    region: Region | None = None  # what alone is scored
    tiles: Tiles | None = None  # how photographs are cut, where they are
    folder: Path | None = None  # where all this lies

    def score(self, images: Tensor) -> Scores:
        """Score uint8 images [n, 3, s, s] of the run's size, inside its region; see `attnad.score.Scores`.

        Raises SettingError on other images, saying what to pass, and TrainingError where a score is not finite.
        """
        check_images(images, self.config.size)
        scores = self.detector.score(images)
        for name, values in scores.named():
            if not values.isfinite().all():
                raise TrainingError(f"{name} of an image is not finite; train again at a lower learning rate")
        return scores if self.region is None else self.region.inside(scores)

    def score_files(self, paths: Sequence[Path]) -> Iterator[list[tuple[Path, FileScore | DataError]]]:
        """Judge files, in tiles where the run has them, and give them in their order, some at a time.

        A file that cannot be read, or does not fit the run's region or tiles, comes with a DataError in its place.
        """
        if self.tiles is not None:
            yield from ([(path, self._score_tiles(path))] for path in paths)
            return
        for start in range(0, len(paths), BATCH):
            part = paths[start : start + BATCH]
            found = [
                self._fitting(path, each) for path, each in zip(part, read_each(part, self.config.size), strict=True)
            ]
            good = [each for each in found if not isinstance(each, DataError)]
            scored: Iterator[FileScore] = iter(())
            if good:
                images = to_tensor(np.stack([pixels for pixels, _ in good]))
                scores = self.score(images)
                assert scores.maps is not None, "who judges files has asked for maps"
                sizes = [size for _, size in good]
                looks = [[*found, *size] for found, size in zip(self._looks(images).tolist(), sizes, strict=True)]
                scored = map(FileScore, self.image_scores(scores).tolist(), scores.maps, sizes, looks)
            yield [
                (path, each if isinstance(each, DataError) else next(scored))
                for path, each in zip(part, found, strict=True)
            ]

    def _fitting(self, path: Path, found: Any) -> Any:
        """What `read_each` gave of a file, or a DataError where its shape does not fit the run's region."""
        if self.region is not None and not isinstance(found, DataError):
            try:
                self.region.check(path, found[1])
            except DataError as error:
                return error
        return found

    def _score_tiles(self, path: Path) -> FileScore | DataError:
        looks = list[Tensor]()

        def score(tiles: Tensor) -> tuple[Tensor, Tensor]:
            scores = self.score(tiles)
            assert scores.maps is not None, "who judges files has asked for maps"
            looks.append(self._looks(tiles))
            return self.image_scores(scores), scores.maps

        assert self.tiles, "only a run with tiles cuts photographs"
        try:
            pixels = self.tiles.read(path)
        except DataError as error:
            return error
        found, joined = self.tiles.score(pixels, self.config.size, score)
        size = (pixels.shape[1], pixels.shape[0])
        return FileScore(found, joined, size, [*torch.cat(looks).median(0).values.tolist(), *size])

    def _looks(self, images: Tensor) -> Tensor:
        return drift.measure(images, self.facts.get("looks", {}))

    def seen(self, size: tuple[int, int]) -> tuple[int, int]:
        """What of a photograph of this (width, height) becomes one image of the run's size: all of it, or a tile."""
        return size if self.tiles is None else (self.tiles.tile, self.tiles.tile)

    def check_whole(self) -> None:
        """Raise SettingError where the run judges tiles, and no images as a whole."""
        if self.tiles is not None:
            raise SettingError("the run judges photographs in tiles, and only attnad score does; train without --tile")

    def image_scores(self, scores: Scores) -> Tensor:
        """The image score that the run's recipe fixed in advance: [n], higher = more anomalous (D20)."""
        return scores.image[self.config.image_score]

    @property
    def calibration(self) -> list[float]:
        """Scores of good photographs that the detector was not fitted to; none in a run of an earlier version."""
        return self.facts.get("held_out_scores", [])

    @property
    def calibrating(self) -> float:
        """The share of the training photographs that `calibration` comes from: all of them, or a tenth held out."""
        return 1 if "calibrated_on" in self.facts else 0.1

    def p_values(self, scores: Any) -> np.ndarray:
        """The share of good photographs that look as odd: [n] -> [n]; see `attnad.run.calibration.p_values`."""
        return p_values(scores, self.calibration)

    def changed(self, looks: Sequence[Sequence[float]], scores: Any, *, defective: float) -> dict[str, str]:
        """What has changed since training; see `attnad.run.drift.compare`. A run of an earlier version says nothing."""
        if "looks" not in self.facts:
            return {}
        m = len(self.calibration)
        return drift.compare(looks, self.facts["looks"], self.p_values(scores) if m else [], m, defective=defective)

    def threshold_for(self, false_alarms: float) -> float:
        """The threshold that new normal images exceed at a rate; see `attnad.run.calibration.threshold_for`."""
        return threshold_for(self.calibration, false_alarms, share=self.calibrating)


def train_run(
    config: Any,
    folder: Path | None = None,
    *,
    device: str = "auto",
    data_root: Path | None = None,
    stage1: Path | None = None,
    region: Path | None = None,
    tiles: Tiles | None = None,
    save_seconds: float = SAVE_SECONDS,
    progress: bool = True,
) -> Run:
    """Train the detector that `config.recipe` names into a folder, or go on where it stopped, or load it if finished.

    By default the folder is one below runs/, another for each configuration (`folder_name`). Reads normal training
    images only; for the threshold a tenth of them is held out, or each is left out once, copies with their originals.
    Where another process trains the same in that folder, waits for it and loads what it has made, or goes on where it
    was killed.
    `stage1` is the folder of a finished run with the same data, seed and stage 1, whose attention network is taken
    over, not trained again.
    `region` is a mask of what alone is to be scored, see `attnad.run.region`. With `tiles`, photographs are cut first.
    Raises DataError, WeightsError, TrainingError or CheckpointError, each naming the file or value and the remedy.
    """
    try:
        detector_class(config.recipe).check(config)
    except ValueError as error:
        raise TrainingError(str(error)) from error
    if region is not None:
        check_region(config)
    if tiles is not None:
        tiles.check()
        if region is not None:
            raise SettingError("a region is of whole photographs; give --region or --tile")
    chosen = pick_device(device)
    folder = folder or Path("runs") / folder_name(config)
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(config, folder):
        begun = _claim(config, folder)
        marked = claim_region(region, folder, config.size, begun=begun)
        files = normal_files(config.data, config.normal_class, data_root)
        if (folder / "run.json").exists():
            _remove_states(folder)  # a kill may have come before it
            finished = load_run(folder, device=device)
            if finished.tiles != tiles:
                raise TrainingError(f"{folder} holds a run with other tiles, or without; choose another --out")
            check_same(finished.facts, files, config.data, folder)
            return finished
        options = FitOptions(chosen, data_root, stage1, save_seconds, progress)
        if tiles is None:
            normal = load_train(config.data, size=config.size, normal_class=config.normal_class, root=data_root)
            found = files_sum(files)
            return learn(config, normal.images, folder, options, files=found, sizes=normal.sizes, region=marked)
        if not files or config.data == "cifar10":
            raise DataError(f"{config.data}: its images are small; tiles are for a folder of photographs")
        return _learn_tiles(config, files, folder, options, tiles)


def learn(
    config: Any,
    normal: Tensor,
    folder: Path,
    options: FitOptions,
    *,
    files: str = "",
    sizes: Sequence[tuple[int, int]] = (),
    region: Region | None = None,
) -> Run:
    """Train a detector on images in memory, uint8 [n, 3, s, s], all normal, into a folder; see `train_run`.

    `files` is `attnad.data.files_sum` of the files that they were read from, sizes are their (width, height), where
    they are known. Raises TrainingError on fewer than three.
    """
    _check_enough(config.data, len(normal))
    groups = near_copies(normal)
    if not getattr(detector_class(config.recipe), "leaves_out", False):
        images, held_out = split_normal(normal, seed=config.seed, groups=groups)

        def score(run: Run) -> Tensor:
            return run.image_scores(run.score(held_out))

        return _learn(
            config, images, folder, options, groups, len(images), score, held_out, files, sizes, region=region
        )

    if len(groups.unique()) < 3:
        split_normal(normal, seed=config.seed, groups=groups)  # which says that they are copies

    def score_left_out(run: Run) -> Tensor:
        scores = run.detector.left_out
        return run.image_scores(scores if region is None else region.inside(scores))

    options = replace(options, groups=groups)
    return _learn(
        config, normal, folder, options, groups, len(normal), score_left_out, normal, files, sizes, region=region,
        left_out=True,
    )  # fmt: skip


def _learn_tiles(config: Any, paths: Sequence[Path], folder: Path, options: FitOptions, tiles: Tiles) -> Run:
    """Train on tiles of photographs; photographs are held out, not tiles."""
    _check_enough(config.data, len(paths))
    small, sizes = read_images(paths, 32)
    groups = near_copies(small)
    fit, held_out = split_normal(torch.arange(len(paths)), seed=config.seed, groups=groups)
    for i in held_out:
        tiles.read(paths[i])  # one that cannot be used is better known before training
    images = tiles.load([paths[i] for i in fit], config.size)
    shown = tiles.load([paths[i] for i in held_out[:4]], config.size)

    def score(run: Run) -> Tensor:
        return torch.tensor([_score_of(run, paths[i]) for i in held_out])

    return _learn(config, images, folder, options, groups, len(fit), score, shown, files_sum(paths), sizes, tiles=tiles)


def _learn(
    config: Any,
    images: Tensor,
    folder: Path,
    options: FitOptions,
    groups: Tensor,
    n_train: int,
    score_held_out: Callable[[Run], Tensor],
    held_out: Tensor,
    files: str,
    sizes: Sequence[tuple[int, int]],
    *,
    region: Region | None = None,
    tiles: Tiles | None = None,
    left_out: bool = False,
) -> Run:
    """Fit the detector, find its threshold and what else run.json says, and write that."""
    started = time.perf_counter()
    detector = detector_class(config.recipe).fit(config, images, folder, options)
    seconds = logged_seconds(folder / "log.csv") or {"fit": round(time.perf_counter() - started, 1)}
    run = Run(config, detector, {}, region, tiles, folder)
    scores = score_held_out(run)
    threshold = normal_threshold(scores.numpy())
    said = f"95th percentile of {len(scores)} held-out normal images"
    if left_out:
        # The (n + 1) rule: what the highest of fewer than 19 promises is less.
        threshold = max(scores.tolist()) if len(scores) < 19 else threshold_for(scores.tolist(), 0.05)
        said = f"{'highest' if len(scores) < 19 else '95th percentile'} of {len(scores)} normal images, {LEFT_OUT}"
        run = replace(run, detector=replace(detector, left_out=None, judged=None))
    run.facts.update(
        threshold=threshold,
        threshold_from=said,
        held_out_scores=scores.tolist(),
        **({"calibrated_on": LEFT_OUT} if left_out else {}),
        **({"registered": True} if getattr(detector, "registers", False) else {}),
        n_train=n_train,
        n_copies=len(groups) - len(groups.unique()),
        n_normal=len(groups),
        files=files,
        images=fingerprint(images),
        looks=drift.describe_normal(images, sizes),
        synthetic=synthetic_check(
            run.score,
            config.image_score,
            held_out,
            threshold=threshold,
            seed=config.seed,
            region=region.mask if region else None,
            good=scores if left_out else None,
        ),
        seconds=seconds,
        **({"region": region.facts()} if region else {}),
        **({"tiles": asdict(tiles)} if tiles else {}),
        **machine_facts(options.device),
    )
    save_json(folder / "run.json", run.facts)
    _remove_states(folder)
    return run


def folder_name(config: Any) -> str:
    """Name a run's folder: what it is, the hash of what decides its stage 1, the hash of its whole configuration."""
    hashes = [stage1_hash(asdict(config))] if isinstance(config, PaperConfig) else []
    name = [Path(config.data).name, config.normal_class, first_name(config.recipe), f"seed{config.seed}"]
    return "-".join(filter(None, [*name, *hashes, config_hash(config)]))


def _check_enough(data: str, n: int) -> None:
    if n < 3:
        raise TrainingError(f"{data} has {n} normal image{'s' * (n != 1)}; training needs 3 or more")


def check_same(facts: dict[str, Any], files: Sequence[Path], data: str, folder: Path) -> None:
    """Raise TrainingError where a finished run was trained on other files than those that are there now."""
    if facts.get("files") not in (None, files_sum(files)):  # None: of an earlier version
        then = facts.get("n_normal", "others")
        raise TrainingError(
            f"{data} has changed since {folder} was trained: {len(files)} normal images now, {then} then; "
            f"choose another --out, or remove {folder} to train again"
        )


def _score_of(run: Run, path: Path) -> float:
    [[(_, scored)]] = run.score_files([path])
    if isinstance(scored, DataError):
        raise scored
    return scored.score


def _remove_states(folder: Path) -> None:
    for state in folder.glob("*.state.safetensors"):
        state.unlink()


def _lock(config: Any, folder: Path) -> AcquireReturnProxy:
    """Keep a folder to this process; where another trains the same in it, wait and say so, else refuse."""
    lock = FileLock(folder / ".lock")
    try:
        return lock.acquire(timeout=0)
    except Timeout as error:
        path = folder / "config.json"
        if path.exists() and differences(asdict(_load_config(path)), asdict(config)):
            raise TrainingError(
                f"{folder} is in use by another attnad train, with another configuration; choose another --out"
            ) from error
        print(f"{folder} is being trained by another process: waiting for it (Ctrl+C stops waiting)", file=sys.stderr)
        return lock.acquire()


def _claim(config: Any, folder: Path) -> bool:
    """Write config.json; where training has left something, check instead that the folder's own says the same.

    Returns whether it has.
    """
    path = folder / "config.json"
    there = _load_config(path) if path.exists() else None  # a config.json of something else is never written over
    if there is None or not any([*folder.glob("*.safetensors"), *folder.glob("run.json")]):
        save_json(path, asdict(config))
        return False
    if found := differences(asdict(there), asdict(config)):
        raise TrainingError(
            f"{folder} holds a run with another configuration ({'; '.join(found)}); "
            "give the same values to go on with it, or choose another --out"
        )
    return True


def _load_config(path: Path) -> Any:
    try:
        values = now_called(load_json(path))
        name = values.get("recipe") if isinstance(values, dict) else None
        if name not in DETECTORS:
            raise ValueError(f"there is no recipe {name!r}; use the version of attnad that wrote it")
        config = from_dict(detector_class(name).config_type, values)
        detector_class(name).check(config)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; restore it or train again") from error
    return config


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -1e308 <= value <= 1e308  # NaN is not, and 10**400 would be no float


def _is_check(value: Any) -> bool:
    names = ("n", "found", "image_auroc", "pixel_auroc")
    return isinstance(value, dict) and all(
        _is_number(value.get(name)) or (name.endswith("auroc") and value.get(name, 0) is None) for name in names
    )


# What is read of run.json, and whether a value can be that.
_FACTS: dict[str, Callable[[Any], bool]] = {
    "threshold": _is_number,
    "threshold_from": lambda v: isinstance(v, str),
    "n_train": lambda v: type(v) is int,
    "seconds": lambda v: isinstance(v, dict) and all(map(_is_number, v.values())),
    "device": lambda v: isinstance(v, str),
    "n_copies": lambda v: type(v) is int,
    "n_normal": lambda v: type(v) is int,
    "held_out_scores": lambda v: isinstance(v, list) and all(map(_is_number, v)),
    "synthetic": _is_check,
    "looks": drift.is_description,
}
_YOUNGER = ("n_copies", "n_normal", "held_out_scores", "synthetic", "looks")  # than some runs


def load_run(folder: Path, *, device: str = "auto") -> Run:
    """Load a finished run.

    Raises CheckpointError, naming the file and the remedy, where the folder is no finished run, a file is damaged, or
    the weights are of another architecture or version.
    """
    if not (folder / "config.json").exists():
        raise CheckpointError(f"{folder} is not a run: it has no config.json; give a folder made by attnad train")
    config = _load_config(folder / "config.json")
    if not (folder / "run.json").exists():
        raise CheckpointError(f"{folder} is not finished; run the same attnad train command again to go on with it")
    facts = load_json(folder / "run.json")
    for name, fits in _FACTS.items():
        if not (fits(facts[name]) if name in facts else name in _YOUNGER):
            raise CheckpointError(f"{folder / 'run.json'}: {name} is missing or damaged; restore it or train again")
    try:
        tiles = from_dict(Tiles, facts["tiles"]) if "tiles" in facts else None
        if tiles is not None:
            tiles.check()
    except ValueError as error:  # of SettingError too
        raise CheckpointError(f"{folder / 'run.json'}: {error}; restore it or train again") from error
    detector = detector_class(config.recipe).load(config, folder, device=pick_device(device))
    return Run(config, detector, facts, load_region(folder, facts, config.size), tiles, folder)


def data_of(run: Run, folder: Path, root: Path | None) -> str:
    """The data set that the config.json of a run's folder names, where that may be read without being asked for.

    It may where it lies here (`attnad.data.lies_here`) or is, by the sums of its files, what the run was trained on.
    Else the name could be a stranger's, and SettingError says how to ask.
    """
    data, on_network = run.config.data, os.path.splitdrive(run.config.data)[0][:2] in ("//", "\\\\")
    if lies_here(data, root):
        return data
    with suppress(DataError):
        if not on_network and run.facts.get("files") == files_sum(normal_files(data, run.config.normal_class, root)):
            return data
    raise SettingError(
        f"{folder / 'config.json'} names data outside this folder, {data!r}, which are not those that it was trained "
        "on; if you know them, name them yourself: attnad evaluate RUN DATA, or attnad figure --data DATA"
    )


def evaluate_run(run: Run, test: TestSet) -> dict[str, Any]:
    """Score a test set and compute every metric.

    Returns the metrics of `attnad.metrics.evaluate_scores` for the recipe's image score and for the maps; under
    "image_auroc_by_score" the image AUROC of every score (table 5's scenarios among them); under "by_kind" the image
    and pixel AUROC of each kind of anomaly and each group of kinds (the part before a slash) against the good images.
    """
    run.check_whole()
    scores = run.score(test.images)
    labels, masks, has_mask = test.labels.numpy(), test.masks.numpy(), test.has_mask.numpy()
    image = run.image_scores(scores).numpy()
    maps = None if scores.maps is None else scores.maps.numpy()
    arrays = {} if maps is None else {"masks": masks, "maps": maps, "has_mask": has_mask}
    result: dict[str, Any] = evaluate_scores(labels, image, threshold=run.facts["threshold"], **arrays)
    result["image_auroc_by_score"] = {name: _auroc(labels, values.numpy()) for name, values in scores.image.items()}
    result["by_kind"] = {}
    groups = [kind.split("/")[0] for kind in test.kinds if "/" in kind]
    for kind in dict.fromkeys([*groups, *sorted(set(test.kinds) - {"good"})]):
        chosen = torch.tensor([k == "good" or k == kind or k.startswith(f"{kind}/") for k in test.kinds]).numpy()
        known = chosen & has_mask
        result["by_kind"][kind] = {
            "n": int(labels[chosen].sum()),
            "image_auroc": _auroc(labels[chosen], image[chosen]),
            "pixel_auroc": None if maps is None else _auroc(masks[known], maps[known]),
        }
    result["encoder"] = run.config.encoder
    result["image_score"] = run.config.image_score
    result["synthetic"] = run.facts.get("synthetic")  # of normal training images that were held out
    return result


def _auroc(labels: Any, scores: Any) -> float | None:
    """The AUROC, or None where only one class is there."""
    return auroc(labels, scores) if labels.any() and not labels.all() else None
