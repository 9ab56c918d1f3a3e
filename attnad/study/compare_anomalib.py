"""Detectors of anomalib (Akcay et al. 2022) and ours beside each other: same images, same encoder, one run.

    pip install anomalib
    python -m attnad.study.compare_anomalib ~/mvtec_ad/bottle ~/mvtec_ad/pill

Each learns from all normal images and judges the test set; then one image at a time, for its time. anomalib's PaDiM
keeps 100 channels of strides 4, 8 and 16, its PatchCore one patch in a hundred of strides 8 and 16; its SuperSimpleNet
(Rolih et al. 2024) is trained on these two strides, for STEPS steps. All have EfficientNet-Lite0 with ImageNet's
weights, which all of ours use. Writes book/results/beside.csv.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from attnad.data import load_test, load_train
from attnad.detectors import detector_class, recipe
from attnad.errors import SettingError, remedy
from attnad.features.backbones import load_lite0_weights
from attnad.metrics import auroc
from attnad.study.results import current_commit
from attnad.train import to_float
from attnad.training.machine import machine_facts
from attnad.training.state import FitOptions

Predict = Callable[[Tensor], tuple[Tensor, Tensor]]  # uint8 images [n, 3, s, s] to image scores [n] and maps [n, s, s]
OURS = ("discriminators", "gaussian", "neighbours")  # strong stands beside them in sets.csv
STEPS = 200  # of SuperSimpleNet, on 16 images each: anomalib's 300 epochs take hours on two processor cores
THEIRS = ("anomalib PaDiM", "anomalib PatchCore", f"anomalib SuperSimpleNet, {STEPS} steps")
HEADER = (
    "data", "detector", "size", "image_auroc", "pixel_auroc", "fit_seconds", "milliseconds", "anomalib", "torch",
    "device", "threads", "commit", "date",
)  # fmt: skip


def fit_ours(name: str, images: Tensor, device: torch.device) -> Predict:
    """Fit one of our detectors to normal images, uint8 [n, 3, s, s]."""
    config = replace(recipe(name, "beside"), size=images.shape[-1])
    with tempfile.TemporaryDirectory() as folder:
        detector = detector_class(name).fit(config, images, Path(folder), FitOptions(device, progress=False))

    def predict(x: Tensor) -> tuple[Tensor, Tensor]:
        scores = detector.score(x)
        return scores.image[config.image_score], scores.maps

    return predict


def fit_theirs(name: str, images: Tensor, device: torch.device, seed: int = 0) -> Predict:
    """Fit one of anomalib's detectors to the same. Raises SettingError where anomalib is not installed."""
    anomalib_version()
    from anomalib.models.components import TimmFeatureExtractor
    from anomalib.models.image.padim.torch_model import PadimModel
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel
    from anomalib.models.image.supersimplenet import torch_model as supersimplenet

    torch.manual_seed(seed)  # anomalib draws channels, patches, weights and noise from the global generators
    np.random.seed(seed)  # noqa: NPY002 (the one that it draws from)
    lite0, strides = "tf_efficientnet_lite0", {4: "blocks.1", 8: "blocks.2", 16: "blocks.4"}
    model: Any
    if name == "anomalib PaDiM":
        model = PadimModel(lite0, [strides[4], strides[8], strides[16]], pre_trained=False, n_features=100)
    elif name == "anomalib PatchCore":
        model = PatchcoreModel([strides[8], strides[16]], lite0, pre_trained=False)
    else:
        empty = partial(TimmFeatureExtractor, pre_trained=False)  # it would fetch weights, and has no word against that
        with patch.object(supersimplenet, "TimmFeatureExtractor", empty):
            model = supersimplenet.SupersimplenetModel(backbone=lite0, layers=[strides[8], strides[16]])
    weights = load_lite0_weights()
    (body,) = (part.feature_extractor for part in model.modules() if isinstance(part, TimmFeatureExtractor))
    body.load_state_dict({name: weights[name] for name in body.state_dict()})
    model.to(device).train()

    def prepared(x: Tensor) -> Tensor:
        return (to_float(x.to(device)) - 127 / 255) / (128 / 255)

    if isinstance(model, supersimplenet.SupersimplenetModel):
        train_supersimplenet(model, prepared, images)
    else:
        for part in images.split(16):
            model(prepared(part))
        if isinstance(model, PadimModel):
            model.fit()
        else:
            model.subsample_embedding(0.01)
    model.eval()

    def predict(x: Tensor) -> tuple[Tensor, Tensor]:
        found = [model(prepared(part)) for part in x.split(16)]
        scores = torch.cat([each.pred_score for each in found]).flatten().cpu()
        return scores, torch.cat([each.anomaly_map for each in found])[:, 0].cpu()

    return predict


@torch.enable_grad()
def train_supersimplenet(model: Any, prepared: Callable[[Tensor], Tensor], images: Tensor) -> None:
    """Train SuperSimpleNet as anomalib does without anomalous images, in fewer steps: the same losses and rates.

    Its noise, an absolute 0.015, was set for a wide ResNet-50. EfficientNet-Lite0's features vary several hundred times
    as much, and with it nothing is learned; so it is a quarter of their deviation.
    """
    from anomalib.models.image.supersimplenet.loss import SSNLoss

    with torch.no_grad():
        features = model.feature_extractor(prepared(images[:16]))
        model.anomaly_generator.noise_std = 0.25 * features.std((0, 2, 3)).mean().item()
    losses = SSNLoss()
    optimizer = torch.optim.AdamW(
        [
            {"params": model.adaptor.parameters(), "lr": 1e-4},
            {"params": model.segdec.parameters(), "lr": 2e-4, "weight_decay": 1e-5},
        ]
    )
    rates = torch.optim.lr_scheduler.MultiStepLR(optimizer, [STEPS * 8 // 10, STEPS * 9 // 10], gamma=0.4)
    for _ in range(STEPS):
        x = prepared(images[torch.randperm(len(images))[:16]])
        no_defect = torch.zeros(len(x), *x.shape[-2:], device=x.device)
        found, score, mask, label = model(x, no_defect, no_defect[:, 0, 0])
        loss = losses(pred_map=found, pred_score=score, target_mask=mask, target_label=label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()


def anomalib_version() -> str:
    """Name the version of anomalib that is installed. Raises SettingError where none is."""
    try:
        return version("anomalib")
    except PackageNotFoundError as error:
        raise SettingError(f"to set anomalib beside ours needs other packages: {remedy('anomalib')}") from error


def milliseconds(predict: Callable[[Tensor], Any], images: Tensor) -> float:
    """The median time of one image at a time, in milliseconds, of up to forty less the first ten."""
    times = []
    for image in images[:40].split(1):
        started = time.perf_counter()
        predict(image)
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times[10:])


@torch.no_grad()
def beside(folder: Path, *, size: int = 256, device: str = "cpu") -> list[dict[str, Any]]:
    """Fit, predict with and time each detector on a data set laid out as MVTec AD: a row of HEADER's columns each.

    Raises SettingError where anomalib is not installed.
    """
    release = anomalib_version()
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
        predict = (fit_ours if name in OURS else fit_theirs)(name, images, where)
        fitted = time.perf_counter() - started
        scores, maps = predict(test.images)
        figures = {
            "image_auroc": f"{auroc(test.labels.numpy(), scores.numpy()):.4f}",
            "pixel_auroc": f"{auroc(test.masks[known].flatten().numpy(), maps[known].flatten().numpy()):.4f}",
            "fit_seconds": f"{fitted:.1f}",
            "milliseconds": f"{milliseconds(predict, test.images):.1f}",
        }
        rows.append(common | {"detector": name} | figures)
        print(f"{folder.name}, {name}: " + ", ".join(f"{k} {v}" for k, v in figures.items()), flush=True)
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Carry out `python -m attnad.study.compare_anomalib`."""
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
