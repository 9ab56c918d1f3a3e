"""A run: one folder with a configuration, a log, and what training both stages left there.

RUN/config.json                    the configuration, written first
RUN/log.csv                        the mean of each loss term, by stage and epoch
RUN/*.state.safetensors            training state, to resume from; removed when the run is finished
RUN/attention.safetensors          G1 and D1
RUN/adgan.safetensors              F_img, G2 and D2
RUN/run.json                       threshold and facts about the training, written last: the run is finished
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from attnad import __version__
from attnad.checkpoint import (
    CheckpointError,
    load_json,
    load_module,
    load_tensors,
    module_tensors,
    save_json,
    save_tensors,
)
from attnad.config import RunConfig, check, from_dict, to_dict
from attnad.data import TestSet, classes, load_train, split_normal
from attnad.metrics import auroc, evaluate_scores, normal_threshold
from attnad.models import ADGAN, AttentionNetwork, Discriminator
from attnad.score import Scores, score
from attnad.state import SAVE_SECONDS, TrainingError, fingerprint, read_log, write_log
from attnad.train import pick_device, train_adgan, train_attention


@dataclass(frozen=True)
class Run:
    """A finished run: its configuration, its networks in evaluation mode, and the facts of run.json."""

    config: RunConfig
    network: AttentionNetwork
    discriminator: Discriminator
    adgan: ADGAN
    facts: dict[str, Any]

    def score(self, images: Tensor) -> Scores:
        """Score uint8 images [n, 3, s, s] of the run's size; see `attnad.score.Scores`.

        Raises TrainingError where a score is not finite.
        """
        scores = score(self.network, self.discriminator, self.adgan, images)
        for name, values in scores._asdict().items():
            if not values.isfinite().all():
                raise TrainingError(f"{name} of an image is not finite; train again at a lower learning rate")
        return scores

    def image_scores(self, scores: Scores) -> Tensor:
        """The image score that the run's recipe fixed in advance: [n], higher = more anomalous (D20)."""
        return getattr(scores, self.config.image_score)


def train_run(
    config: RunConfig,
    folder: Path,
    *,
    device: str = "auto",
    data_root: Path | None = None,
    stage1: Path | None = None,
    save_seconds: float = SAVE_SECONDS,
    progress: bool = True,
) -> Run:
    """Train both stages into a folder, or go on where it stopped, or load it where it is finished.

    Reads normal training images only; a tenth of them is held out for the threshold. `stage1` is the folder of a
    finished run with the same data, seed and stage 1, whose attention network is taken over rather than trained again.
    Raises DataError, WeightsError, TrainingError or CheckpointError, each naming the file or value and the remedy.
    """
    try:
        check(config)
    except ValueError as error:
        raise TrainingError(str(error)) from error
    chosen = pick_device(device)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout as error:
        raise TrainingError(
            f"{folder} is in use by another attnad train; wait for it or choose another --out"
        ) from error
    with lock:
        _claim(config, folder)
        if (folder / "run.json").exists():
            _remove_states(folder)  # a kill may have come before it
            return load_run(folder, device=device)
        normal = load_train(config.data, size=config.size, normal_class=config.normal_class, root=data_root)
        images, held_out = split_normal(normal.images, seed=config.seed)
        if len(images) < 2:
            raise TrainingError(f"{config.data} has {len(normal.images)} normal images; training needs 3 or more")
        arguments = {"device": chosen, "folder": folder, "save_seconds": save_seconds, "progress": progress}
        if stage1 is None or (folder / "attention.state.safetensors").exists():
            network, discriminator = train_attention(config, images, **arguments)
        else:
            network, discriminator = _take_over(stage1, folder, config, images, chosen)
        anomalies = _real_anomalies(config, data_root) if config.adgan.real_anomalies else None
        adgan = train_adgan(config, images, network, anomalies=anomalies, **arguments)

        save_tensors(
            folder / "attention.safetensors",
            module_tensors("network", network) | module_tensors("discriminator", discriminator),
        )
        save_tensors(folder / "adgan.safetensors", module_tensors("adgan", adgan))
        run = Run(config, network, discriminator, adgan, {})
        threshold = normal_threshold(run.image_scores(run.score(held_out)).numpy())
        run.facts.update(
            threshold=threshold,
            threshold_from=f"95th percentile of {len(held_out)} held-out normal images",
            n_train=len(images),
            images=fingerprint(images),
            seconds=_logged_seconds(folder / "log.csv"),
            **machine_facts(chosen),
        )
        save_json(folder / "run.json", run.facts)
        _remove_states(folder)
        return run


def _remove_states(folder: Path) -> None:
    for state in folder.glob("*.state.safetensors"):
        state.unlink()


def machine_facts(device: torch.device) -> dict[str, Any]:
    """What is to be known of the machine beside a measured figure, and the time."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "instructions": _instructions(),
        "memory_format": "channels last",  # of networks and images, everywhere: see `to_float`
        "torch": torch.__version__,
        "attnad": __version__,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _instructions() -> str:
    """The processor's instructions that PyTorch chose, and what oneDNN was told to keep to, if it was."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA")
    return torch.backends.cpu.get_cpu_capability() + (f", oneDNN up to {limit}" if limit else "")


def _take_over(
    stage1: Path, folder: Path, config: RunConfig, images: Tensor, device: torch.device
) -> tuple[AttentionNetwork, Discriminator]:
    """Load stage 1 from another run, and begin the log with that run's, as if it had been trained here."""
    there = _load_config(stage1 / "config.json")
    if differences := _differences(
        to_dict(replace(there, adgan=config.adgan, image_score=config.image_score)), to_dict(config)
    ):
        raise TrainingError(f"{stage1} has another stage 1 ({'; '.join(differences)}); train it instead")
    if load_json(stage1 / "run.json").get("images") not in (None, fingerprint(images)):  # None: of an earlier version
        raise TrainingError(f"{stage1} was trained on other images than these; restore the data or move that run away")
    if not (folder / "adgan.state.safetensors").exists():
        write_log(folder / "log.csv", [line for line in read_log(stage1 / "log.csv") if line[0] == "attention"])
    return _load_attention(stage1, config, device)


def _real_anomalies(config: RunConfig, data_root: Path | None) -> Tensor:
    """Draw training images of the other classes, for table 1's "semi": uint8 [real_anomalies, 3, s, s]."""
    others = [name for name in classes(config.data, data_root) if name != config.normal_class]
    if config.normal_class is None or not others:
        raise TrainingError(f"{config.data}: real anomalies need a data set of several classes and a normal one")
    load = partial(load_train, config.data, size=config.size, root=data_root)
    images = torch.cat([load(normal_class=name).images for name in others])
    generator = torch.Generator().manual_seed(config.seed)
    return images[torch.randperm(len(images), generator=generator)[: config.adgan.real_anomalies]]


def _claim(config: RunConfig, folder: Path) -> None:
    """Write config.json; where training has left something, check instead that the folder's own says the same."""
    path = folder / "config.json"
    there = _load_config(path) if path.exists() else None  # a config.json of something else is never written over
    if there is None or not any([*folder.glob("*.safetensors"), *folder.glob("run.json")]):
        save_json(path, to_dict(config))
    elif differences := _differences(to_dict(there), to_dict(config)):
        raise TrainingError(
            f"{folder} holds a run with another configuration ({'; '.join(differences)}); "
            "give the same values to go on with it, or choose another --out"
        )


def _differences(there: dict[str, Any], here: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in there.items():
        if isinstance(value, dict):
            found += _differences(value, here[key], f"{prefix}{key}.")
        elif value != here[key]:
            found.append(f"{prefix}{key} is {value!r} there, {here[key]!r} here")
    return found


def _load_config(path: Path) -> RunConfig:
    try:
        config = from_dict(RunConfig, load_json(path))
        check(config)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; restore it or train again") from error
    return config


def _logged_seconds(path: Path) -> dict[str, float]:
    """Seconds of training by stage, over all sittings, from the log's one figure an epoch."""
    if not path.exists():  # neither stage has an epoch
        return {}
    epochs = {(stage, epoch): float(seconds) for stage, epoch, _, _, seconds in read_log(path)}
    stages = dict.fromkeys(stage for stage, _ in epochs)
    return {stage: round(sum(s for (name, _), s in epochs.items() if name == stage), 1) for stage in stages}


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
    kinds = {"threshold": (int, float), "threshold_from": str, "n_train": int, "seconds": dict, "device": str}
    for name, kind in kinds.items():
        if not isinstance(facts.get(name), kind) or (name == "threshold" and not math.isfinite(facts[name])):
            raise CheckpointError(f"{folder / 'run.json'}: {name} is missing or damaged; restore it or train again")
    chosen = pick_device(device)
    network, discriminator = _load_attention(folder, config, chosen)
    adgan = ADGAN(network.encoder, config.attention, config.size, pixels=config.adgan.pixels)
    path = folder / "adgan.safetensors"
    load_module("adgan", adgan, load_tensors(path), path)
    adgan = adgan.to(chosen, memory_format=torch.channels_last).eval()
    return Run(config, network, discriminator, adgan, facts)


def _load_attention(folder: Path, config: RunConfig, device: torch.device) -> tuple[AttentionNetwork, Discriminator]:
    network = AttentionNetwork(config.attention, pretrained=False)
    discriminator = Discriminator(4, config.size, config.attention.width)
    path = folder / "attention.safetensors"
    tensors = load_tensors(path)
    load_module("network", network, tensors, path)
    load_module("discriminator", discriminator, tensors, path)
    network, discriminator = (m.to(device, memory_format=torch.channels_last) for m in (network, discriminator))
    return network.eval(), discriminator.eval()


def evaluate_run(run: Run, test: TestSet) -> dict[str, Any]:
    """Score a test set and compute every metric.

    Returns the metrics of `attnad.metrics.evaluate_scores` for the recipe's image score and for the maps; under
    "image_auroc_by_score" the image AUROC of every score (table 5's scenarios among them); under "by_kind" the image
    and pixel AUROC of each kind of anomaly and each group of kinds (the part before a slash) against the good images.
    """
    scores = run.score(test.images)
    labels, masks, maps = test.labels.numpy(), test.masks.numpy(), scores.maps.numpy()
    image, has_mask = run.image_scores(scores).numpy(), test.has_mask.numpy()
    result: dict[str, Any] = evaluate_scores(
        labels, image, threshold=run.facts["threshold"], masks=masks, maps=maps, has_mask=has_mask
    )
    names = ("adgan", "attention", "reconstruction", "discriminator")
    result["image_auroc_by_score"] = {name: auroc(labels, getattr(scores, name).numpy()) for name in names}
    result["by_kind"] = {}
    groups = [kind.split("/")[0] for kind in test.kinds if "/" in kind]
    for kind in dict.fromkeys([*groups, *sorted(set(test.kinds) - {"good"})]):
        chosen = torch.tensor([k == "good" or k == kind or k.startswith(f"{kind}/") for k in test.kinds]).numpy()
        of_kind = evaluate_scores(
            labels[chosen], image[chosen], threshold=run.facts["threshold"], masks=masks[chosen], maps=maps[chosen],
            has_mask=has_mask[chosen],
        )  # fmt: skip
        result["by_kind"][kind] = {"n": int(labels[chosen].sum())}
        result["by_kind"][kind] |= {name: of_kind[name] for name in ("image_auroc", "pixel_auroc")}
    result["encoder"] = run.config.attention.encoder
    result["image_score"] = run.config.image_score
    return result
