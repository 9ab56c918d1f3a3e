"""A detector in four lines: fit on normal images, then ask; in scikit-learn's and PyOD's words."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnad.data import files_sum, load_test
from attnad.data.folders import photographs_at
from attnad.data.images import all_of, read_images
from attnad.detectors import detector_class, override
from attnad.detectors import recipe as recipe_of
from attnad.errors import DataError, SettingError
from attnad.metrics import evaluate_scores
from attnad.report.report import resized_map
from attnad.run.run import Run, evaluate_run, learn, load_run, train_run
from attnad.score import check_images
from attnad.train import pick_device
from attnad.training.state import FitOptions
from attnad.training.storage import save_json

NO_FOLDER = "<images>"  # in place of a data set's name: no file can be meant by it
Images = str | Path | Sequence[str | Path] | Tensor | np.ndarray


class Detector:
    """Learns from normal images alone; then says of others how anomalous they are, and where. Higher = more anomalous.

    `recipe` is a detector's name, such as strong, gaussian, neighbours, quick or paper; `values` replace values of its
    configuration, such as size=128 or seed=1, those of a part as **{"attention.epochs": 5}. `device` is auto, or a
    PyTorch device such as cuda:1. Raises SettingError on a name or a value that is not there.

    Images are a folder or files, or uint8 [n, 3, s, s] or [n, s, s, 3], a tensor or an array, from 0 to 255.

    `run` has what was learned, with its configuration and facts; `threshold_` is the score above which an image is
    flagged, from normal images that the detector was not fitted to.
    """

    def __init__(self, recipe: str = "strong", *, device: str = "auto", progress: bool = True, **values: Any):
        self.recipe, self.device, self.progress, self.values = recipe, device, progress, values
        self._run: Run | None = None
        self._temporary: TemporaryDirectory[str] | None = None
        self._config(NO_FOLDER)

    def fit(self, images: Images, folder: str | Path | None = None) -> Detector:
        """Learn from normal images, and find the threshold on those not fitted to. Returns the detector itself.

        A data set's name, or one folder, is read as `attnad train` reads it. With a `folder`, training into it goes on
        where it was stopped, and is loaded where it was finished; without one it is kept until `save`, or lost.
        Raises DataError, SettingError, WeightsError or TrainingError, each naming the file or value and the remedy.
        """
        into = Path(folder) if folder is not None else self._temporary_folder()
        if isinstance(images, (str, Path)):
            config = self._config(str(images))
            run = train_run(config, into, device=self.device, progress=self.progress)
        elif folder is not None:
            raise SettingError("images in memory, or files one by one, are fitted without a folder; then save(folder)")
        else:
            options = FitOptions(pick_device(self.device), progress=self.progress)
            if isinstance(images, (Tensor, np.ndarray)):
                normal = as_images(images)
                config, files = self._config(NO_FOLDER, size=normal.shape[-1]), ""
            else:
                config, found = self._config(NO_FOLDER), _files(images)
                normal, files = read_images(found, config.size)[0], files_sum(found)
            check_images(normal, config.size)
            save_json(into / "config.json", asdict(config))
            run = learn(config, normal, into, options, files=files)
        self._run = run
        return self

    def _temporary_folder(self) -> Path:
        self._temporary = TemporaryDirectory(prefix="attnad-")  # gone with the detector
        return Path(self._temporary.name)

    def _config(self, data: str, **values: Any) -> Any:
        """The configuration for a data set, checked."""
        try:
            config = override(recipe_of(self.recipe, data), values | self.values)
            detector_class(self.recipe).check(config)
        except ValueError as error:  # of SettingError too
            raise SettingError(str(error)) from error
        return replace(config, data=data)

    @property
    def run(self) -> Run:
        """What was learned. Raises SettingError before `fit`."""
        if self._run is None:
            raise SettingError(f"{self!r} has learned nothing yet; call fit(images), or attnad.load(folder)")
        return self._run

    @property
    def threshold_(self) -> float:
        """An image with a higher score is flagged."""
        return self.run.facts["threshold"]

    def decision_function(self, images: Images) -> np.ndarray:
        """Anomaly scores of images: float [n]. Raises DataError, naming each file that cannot be read."""
        return self._scored(images)[0]

    def predict(self, images: Images) -> np.ndarray:
        """Which images are anomalous, by the threshold: int [n], 1 = anomalous, 0 = normal."""
        return (self.decision_function(images) > self.threshold_).astype(int)

    def p_values(self, images: Images) -> np.ndarray:
        """The share of good images that look as odd as each of these: float [n] in (0, 1], low = anomalous.

        See `attnad.run.calibration.p_values`. Raises CheckpointError on a run of a version that kept nothing for it.
        """
        return self.run.p_values(self.decision_function(images))

    def anomaly_maps(self, images: Images) -> np.ndarray | list[np.ndarray]:
        """Anomaly maps: float32 [n, h, w] in [0, 1], of files at the photographs' own sizes.

        Where the photographs' sizes differ, a list of n maps [h, w]. Raises SettingError where the detector draws none.
        """
        maps = self._scored(images)[1]
        return np.stack(maps) if len({each.shape for each in maps}) == 1 else maps

    def _scored(self, images: Images) -> tuple[np.ndarray, list[np.ndarray]]:
        """Image scores [n], and maps at the sizes of what was given."""
        run = self.run
        if isinstance(images, (Tensor, np.ndarray)):
            run.check_whole()
            scores = run.score(as_images(images))
            maps = [] if scores.maps is None else list(scores.maps.numpy())
            found = run.image_scores(scores).numpy()
        else:
            files = _files(images)
            each = [pair for part in run.score_files(files) for _, pair in part]
            if errors := [one for one in each if isinstance(one, DataError)]:
                raise all_of(errors, len(files))
            good = [one for one in each if not isinstance(one, DataError)]
            found, maps = np.array([one.score for one in good]), [resized_map(one.map, one.size) for one in good]
        return found, maps

    def evaluate(self, images: Images, labels: Any = None, masks: Any = None) -> dict[str, Any]:
        """Metrics (see `attnad.metrics.evaluate_scores`) of labelled images: labels [n], 1 = anomalous.

        masks, where they are known, are bool [n, s, s] at the maps' size. Without labels `images` names a data set with
        a test set, whose metrics come by kind of anomaly too. Raises ValueError where shapes or labels do not fit.
        """
        if labels is None:
            if not isinstance(images, (str, Path)):
                raise SettingError("evaluate needs labels, 1 = anomalous, or a data set with a test set")
            config = self.run.config
            return evaluate_run(self.run, load_test(str(images), size=config.size, normal_class=config.normal_class))
        scores, maps = self._scored(images)
        known = {"masks": np.asarray(masks, bool), "maps": np.stack(maps)} if masks is not None else {}
        return evaluate_scores(np.asarray(labels, bool), scores, threshold=self.threshold_, **known)

    def save(self, folder: str | Path) -> None:
        """Write what was learned into a new folder, for `attnad.load` and every command of `attnad`.

        Raises SettingError where the folder holds something.
        """
        into = Path(folder)
        there = self.run.folder
        assert there, "a run that was fitted or loaded has a folder"
        if into.exists() and any(into.iterdir()):
            raise SettingError(f"{into} is not empty; choose another folder")
        into.mkdir(parents=True, exist_ok=True)
        for path in sorted(there.iterdir(), key=lambda path: path.name == "run.json"):  # which finishes a run
            if path.suffix in (".json", ".csv", ".safetensors", ".png"):
                shutil.copy2(path, into / path.name)

    def __repr__(self) -> str:
        given = "".join(f", {name}={value!r}" for name, value in self.values.items())
        if self._run is None:
            return f"Detector({self.recipe!r}{given})"
        facts = self._run.facts
        n = facts.get("n_normal", facts["n_train"])
        return f"Detector({self.recipe!r}{given}, fitted on {n} photographs, threshold {facts['threshold']:.4g})"

    def _repr_png_(self) -> bytes | None:
        """The same as a picture, in a notebook: scores of normal images it was not fitted to."""
        scores = self._run.facts.get("held_out_scores") if self._run else None
        if not scores:
            return None
        from matplotlib.figure import Figure  # slow, and only for the eye

        figure = Figure(figsize=(6.5, 2.4), layout="constrained")
        axes = figure.subplots()
        axes.hist(scores, bins=min(30, len(scores)), color="#0072B2", label="held-out normal images")
        axes.axvline(self.threshold_, color="black", linestyle="--", label="threshold: what is right of it is flagged")
        axes.set(xlabel="score", ylabel="images")
        figure.suptitle(repr(self), fontsize=9)
        figure.legend(loc="outside lower center", ncols=2, fontsize=8)
        content = io.BytesIO()
        figure.savefig(content, format="png")
        return content.getvalue()


def load(folder: str | Path, *, device: str = "auto") -> Detector:
    """Load what `Detector.save` or `attnad train` has written. Raises CheckpointError as `load_run` does."""
    run = load_run(Path(folder), device=device)
    detector = Detector(run.config.recipe, device=device)
    detector._run = run
    return detector


def as_images(images: Tensor | np.ndarray) -> Tensor:
    """A tensor or array uint8 [n, 3, s, s] or [n, s, s, 3] as a tensor uint8 [n, 3, s, s]; others stay."""
    found = torch.as_tensor(images)
    if found.ndim == 4 and found.shape[1] != 3 and found.shape[3] == 3:
        found = found.permute(0, 3, 1, 2).contiguous()
    return found


def _files(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """Image files at these paths. Raises DataError where there is none or one cannot be read."""
    given = [paths] if isinstance(paths, (str, Path)) else paths
    files, strays = photographs_at([Path(path) for path in given])
    if strays:
        raise all_of([DataError(f"{path}: {problem}") for path, problem in strays.items()], len(files) + len(strays))
    return files
