"""Detectors of anomalib (Akcay et al. 2022) and ours beside each other: same images, same encoder, one run.

    pip install 'attnad[anomalib]'
    python -m attnad.study.beside ~/mvtec_ad/bottle ~/mvtec_ad/pill

Each learns from all normal images and judges the test set; then one image at a time, for its time. anomalib's PaDiM
keeps 100 channels of strides 4, 8 and 16, its PatchCore one patch in a hundred of strides 8 and 16; both get
EfficientNet-Lite0 with ImageNet's weights, which all of ours use. Writes book/results/beside.csv.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnad.data import load_test, load_train
from attnad.detectors import DETECTORS, recipe
from attnad.errors import SettingError
from attnad.machine import machine_facts
from attnad.metrics import auroc
from attnad.models import load_lite0_weights
from attnad.state import FitOptions
from attnad.study.results import current_commit
from attnad.train import to_float

Judge = Callable[[Tensor], tuple[Tensor, Tensor]]  # uint8 images [n, 3, s, s] to image scores [n] and maps [n, s, s]
OURS = ("strong", "gaussian", "neighbours")
THEIRS = ("anomalib PaDiM", "anomalib PatchCore")
HEADER = (
    "data", "detector", "size", "image_auroc", "pixel_auroc", "fit_seconds", "milliseconds", "anomalib", "torch",
    "device", "threads", "commit", "date",
)  # fmt: skip


def fit_ours(name: str, images: Tensor, device: torch.device) -> Judge:
    """Fit one of our detectors to normal images, uint8 [n, 3, s, s]."""
    config = replace(recipe(name, "beside"), size=images.shape[-1])
    with tempfile.TemporaryDirectory() as folder:
        detector = DETECTORS[name].fit(config, images, Path(folder), FitOptions(device, progress=False))

    def judge(x: Tensor) -> tuple[Tensor, Tensor]:
        scores = detector.score(x)
        return scores.image[config.image_score], scores.maps

    return judge


def fit_theirs(name: str, images: Tensor, device: torch.device) -> Judge:
    """Fit one of anomalib's detectors to the same."""
    from anomalib.models.image.padim.torch_model import PadimModel
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    torch.manual_seed(0)  # anomalib draws PaDiM's channels and PatchCore's patches from the global generators
    np.random.seed(0)  # noqa: NPY002 (the one that it draws from)
    network: dict[str, Any] = {"backbone": "tf_efficientnet_lite0", "pre_trained": False}
    padim = name == "anomalib PaDiM"
    model: Any
    if padim:
        model = PadimModel(layers=["blocks.1", "blocks.2", "blocks.4"], n_features=100, **network)
    else:
        model = PatchcoreModel(layers=["blocks.2", "blocks.4"], **network)
    body = model.feature_extractor.feature_extractor
    weights = load_lite0_weights()
    body.load_state_dict({name: weights[name] for name in body.state_dict()})
    model.to(device).train()

    def batches(x: Tensor) -> list[Tensor]:
        return [(to_float(part.to(device)) - 127 / 255) / (128 / 255) for part in x.split(16)]

    for x in batches(images):
        model(x)
    if padim:
        model.fit()
    else:
        model.subsample_embedding(0.01)
    model.eval()

    def judge(x: Tensor) -> tuple[Tensor, Tensor]:
        found = [model(part) for part in batches(x)]
        scores = torch.cat([each.pred_score for each in found]).flatten().cpu()
        return scores, torch.cat([each.anomaly_map for each in found])[:, 0].cpu()

    return judge


@torch.no_grad()
def beside(folder: Path, *, size: int = 256, device: str = "cpu") -> list[dict[str, Any]]:
    """Fit, judge and time each detector on a data set laid out as MVTec AD: a row of HEADER's columns each.

    Raises SettingError where anomalib is not installed.
    """
    try:
        release = version("anomalib")
    except PackageNotFoundError as error:
        raise SettingError("to set anomalib beside ours takes an extra: pip install 'attnad[anomalib]'") from error
    data, test = str(folder), load_test(str(folder), size=size)
    images = load_train(data, size=size).images
    where = torch.device(device)
    facts = machine_facts(where)
    common = {
        "data": folder.name, "size": size, "anomalib": release, "torch": facts["torch"],
        "device": facts["device"], "threads": facts["threads"], "commit": current_commit(),
        "date": facts["date"],
    }  # fmt: skip
    known = test.has_mask
    rows = []
    for name in (*OURS, *THEIRS):
        started = time.perf_counter()
        judge = (fit_ours if name in OURS else fit_theirs)(name, images, where)
        fitted = time.perf_counter() - started
        scores, maps = judge(test.images)
        times = []
        for image in test.images[:40].split(1):
            started = time.perf_counter()
            judge(image)
            times.append(1000 * (time.perf_counter() - started))
        figures = {
            "image_auroc": f"{auroc(test.labels.numpy(), scores.numpy()):.4f}",
            "pixel_auroc": f"{auroc(test.masks[known].flatten().numpy(), maps[known].flatten().numpy()):.4f}",
            "fit_seconds": f"{fitted:.1f}",
            "milliseconds": f"{statistics.median(times[10:]):.1f}",
        }
        rows.append(common | {"detector": name} | figures)
        print(f"{folder.name}, {name}: " + ", ".join(f"{k} {v}" for k, v in figures.items()), flush=True)
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Carry out `python -m attnad.study.beside`."""
    parser = argparse.ArgumentParser(description="Set anomalib's detectors beside ours, on the same images.")
    parser.add_argument("folders", nargs="+", type=Path, help="data sets laid out as MVTec AD, such as mvtec_ad/bottle")
    parser.add_argument("--size", type=int, default=256, help="side of the images, in pixels")
    parser.add_argument("--device", default="cpu", help="a PyTorch device")
    parser.add_argument("--out", type=Path, default=Path("book/results/beside.csv"), help="the table to write")
    options = parser.parse_args(arguments)
    rows = [row for folder in options.folders for row in beside(folder, size=options.size, device=options.device)]
    with open(options.out, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, HEADER, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
