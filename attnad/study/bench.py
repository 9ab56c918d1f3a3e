"""How fast training and scoring are here, beside the usual pipeline of the same models.

Ours is what `attnad train` does: images on the device as one uint8 tensor, augmentation in batches there, channels
last, on CUDA bfloat16 and each step one graph, no wait for the device within an epoch. The usual one is what tutorials
do: a DataLoader whose data set transforms one PIL image after the other, contiguous tensors, losses read after every
step; the step itself is the same, and its images lie in memory too, so that nothing here depends on a disk.
"""

from __future__ import annotations

import csv
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import ColorJitter
from torchvision.transforms.functional import pil_to_tensor

from attnad.config import AugmentConfig, PaperConfig
from attnad.models import ADGAN, AttentionNetwork, Discriminator
from attnad.score import score
from attnad.train import (
    MovingAverage,
    adgan_step,
    attention_step,
    discriminator_of,
    draw_maps,
    train_adgan,
    train_attention,
)
from attnad.training.machine import machine_facts


def bench(
    config: PaperConfig, images: Tensor, *, device: torch.device, epochs: int = 3, workers: int = 2
) -> dict[str, Any]:
    """Measure both pipelines on uint8 images [n, 3, s, s] of the configuration's size.

    Returns images per second by stage ("ours", "usual", "ratio"; the median epoch without the first), milliseconds of
    scoring one batch of 1 and of 32, the peak memory of ours, on CUDA the share of its steps' time in which no kernel
    ran, and the facts of the machine. Normal images are counted; as many synthetic ones come with them in stage 1.
    """
    attention, adgan = replace(config.attention, epochs=1 + epochs), replace(config.adgan, epochs=1 + epochs)
    config = replace(config, attention=attention, adgan=adgan)
    result: dict[str, Any] = {
        "images": len(images), "size": config.size, "recipe": config.recipe, "encoder": attention.encoder,
        "width": attention.width, "epochs": epochs, "workers": workers, **machine_facts(device),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        there = Path(folder)
        network, discriminator = train_attention(config, images, device=device, folder=there, progress=False)
        trained = train_adgan(config, images, network, device=device, folder=there, progress=False)
        ours = _rates(there / "log.csv", len(images), {"attention": attention.batch, "adgan": adgan.batch})
    result["peak_memory_mb"] = round(_peak_memory(device) / 2**20)
    result["scoring_ms"] = {}
    for batch in (1, 32):
        part = images[torch.arange(batch) % len(images)]
        result["scoring_ms"][str(batch)] = round(
            _milliseconds(partial(score, network, discriminator, trained, part)), 2
        )
    if device.type == "cuda":
        seconds = len(images) // attention.batch * attention.batch / ours["attention"]  # of an epoch
        result["share_outside_kernels"] = round(max(0.0, 1 - _kernel_seconds(config, images, device) / seconds), 3)

    usual = {}
    for stage, train in (("attention", _usual_attention), ("adgan", _usual_adgan)):
        data = _UsualData(images, config.augment, anomalies=stage == "attention" or adgan.synthetic_fakes)
        batch = getattr(config, stage).batch
        loader = DataLoader(
            data, batch, shuffle=True, drop_last=True,
            num_workers=workers, pin_memory=device.type == "cuda", persistent_workers=workers > 0,
        )  # fmt: skip
        step, rates = train(config, device, network), []
        for _ in range(1 + epochs):
            started = time.perf_counter()
            for x, x_ano, a_ano in loader:
                step(*(values.to(device, non_blocking=True) for values in (x, x_ano, a_ano)))
            rates.append(len(loader) * batch / (time.perf_counter() - started))
        usual[stage] = statistics.median(rates[1:])
    result["images_per_second"] = {
        stage: {"ours": round(rate, 1), "usual": round(usual[stage], 1), "ratio": round(rate / usual[stage], 2)}
        for stage, rate in ours.items()
    }
    return result


def table(result: dict[str, Any]) -> str:
    """What `bench` found, for a terminal."""
    lines = [
        f"{result['device']}, {result['threads']} threads, torch {result['torch']}",
        f"{result['encoder']}, width {result['width']}, {result['size']} px, {result['images']} images, median of "
        f"{result['epochs']} epochs",
        "",
        f"{'images per second':<24} {'ours':>9} {'usual':>9} {'ratio':>6}",
    ]
    for stage, rate in result["images_per_second"].items():
        lines.append(f"{stage:<24} {rate['ours']:>9.1f} {rate['usual']:>9.1f} {rate['ratio']:>6.2f}")
    lines += ["", *(f"scoring, batch of {n:<7} {ms:>9.2f} ms" for n, ms in result["scoring_ms"].items())]
    lines.append(f"{'peak memory':<24} {result['peak_memory_mb']:>9} MB")
    if "share_outside_kernels" in result:
        lines.append(f"{'time outside of kernels':<24} {100 * result['share_outside_kernels']:>9.1f} %")
    return "\n".join(lines)


def _rates(path: Path, n: int, batches: dict[str, int]) -> dict[str, float]:
    """Images per second of the median epoch, without the first, from a log's seconds."""
    with open(path, newline="", encoding="utf-8") as file:
        seconds = {(line["stage"], int(line["epoch"])): float(line["seconds"]) for line in csv.DictReader(file)}
    medians = {
        stage: statistics.median(s for (name, epoch), s in seconds.items() if name == stage and epoch > 1)
        for stage in batches
    }
    return {stage: n // batch * batch / medians[stage] for stage, batch in batches.items()}


def _milliseconds(call: Callable[[], Any], repeats: int = 20) -> float:
    """The median of a call's milliseconds, after three calls that do not count; the call must wait for its device."""
    times = []
    for _ in range(3 + repeats):
        started = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times[3:])


def _peak_memory(device: torch.device) -> int:
    """Bytes at the highest: allocated on CUDA, else resident in this process since its start."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # here: Windows has none, and does without this command

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _kernel_seconds(config: PaperConfig, images: Tensor, device: torch.device) -> float:
    """Seconds of an epoch of stage 1 in which kernels ran, by PyTorch's profiler: three epochs' less one's, halved.

    So what comes before the first epoch does not count: initial weights, the recording of the step.
    """

    def busy(epochs: int) -> float:
        some = replace(config, attention=replace(config.attention, epochs=epochs))
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            train_attention(some, images, device=device, progress=False)
            torch.cuda.synchronize(device)
        return sum(event.self_device_time_total for event in profile.key_averages()) / 1e6

    return (busy(3) - busy(1)) / 2


# --- the usual pipeline ----------------------------------------------------------------------------------------------


class _UsualData(Dataset):
    """Normal images, each with a synthetic anomaly and its map, made by PIL one at a time (section 3.2.1)."""

    def __init__(self, images: Tensor, config: AugmentConfig, *, anomalies: bool):
        self.images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
        self.config, self.anomalies = config, anomalies
        self.jitter = ColorJitter(config.brightness, config.contrast, config.saturation, config.hue)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, Tensor]:
        image = self.images[i]
        x = pil_to_tensor(image).float() / 255
        if not self.anomalies:
            return x, x, x[:1]
        whole = self._hard(image)
        if random.random() < self.config.whole_share:
            return x, pil_to_tensor(whole).float() / 255, torch.zeros_like(x[:1])
        side, area = image.width, random.uniform(*self.config.box_area)
        width = height = max(1, round(side * area**0.5))
        left, top = random.randint(0, side - width), random.randint(0, side - height)
        box = (left, top, left + width, top + height)
        filling = Image.new("RGB", (width, height)) if random.random() < 0.5 else whole.crop(box)
        image, target = image.copy(), torch.ones_like(x[:1])
        image.paste(filling, box)
        target[:, top : top + height, left : left + width] = 0
        return x, pil_to_tensor(image).float() / 255, target

    def _hard(self, image: Image.Image) -> Image.Image:
        turns = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
        image = image.transpose(random.choice(turns))
        grid = random.choice(self.config.grids)
        side = image.width // grid
        boxes = [(c * side, r * side, (c + 1) * side, (r + 1) * side) for r in range(grid) for c in range(grid)]
        mixed = Image.new("RGB", image.size)
        for box, source in zip(boxes, random.sample(boxes, len(boxes)), strict=True):
            mixed.paste(image.crop(source), box)
        return self.jitter(mixed)


def _usual_attention(config: PaperConfig, device: torch.device, _: AttentionNetwork) -> Callable[..., list[float]]:
    """A step of stage 1 on one batch, its losses read at once, as floats."""
    stage = config.attention
    network = AttentionNetwork(stage, pretrained=False).to(device).train()
    discriminator = Discriminator(4, config.size, stage.width).to(device).train()
    optimizer_g, optimizer_d = (
        torch.optim.Adam((p for p in module.parameters() if p.requires_grad), stage.learning_rate, (stage.beta1, 0.999))
        for module in (network, discriminator)
    )

    def step(x: Tensor, x_ano: Tensor, a_ano: Tensor) -> list[float]:
        noise = torch.randn(network.latent_shape(torch.cat([x, x_ano])), device=device)
        losses = attention_step(network, discriminator, optimizer_g, optimizer_d, stage, x, x_ano, a_ano, noise)
        return [loss.item() for loss in losses]

    return step


def _usual_adgan(config: PaperConfig, device: torch.device, network: AttentionNetwork) -> Callable[..., list[float]]:
    """A step of stage 2 on one batch, its losses read at once, as floats."""
    stage = config.adgan
    network = network.to(memory_format=torch.contiguous_format).eval()
    adgan = ADGAN(network.encoder, config.attention, config.size).to(device).train()
    adgan.features.requires_grad_(stage.train_features).train(stage.train_features)
    average = MovingAverage(discriminator_of(adgan), stage.ema, device)
    generating = [*adgan.encoder.parameters(), *adgan.decoder.parameters()]
    judging = [p for p in discriminator_of(adgan).parameters() if p.requires_grad]
    optimizer_g, optimizer_d = (
        torch.optim.Adam(trained, stage.learning_rate, (stage.beta1, 0.999)) for trained in (generating, judging)
    )

    def step(x: Tensor, x_ano: Tensor, _: Tensor) -> list[float]:
        fakes = (x_ano, draw_maps(network, x_ano)) if stage.synthetic_fakes else None
        losses = adgan_step(adgan, average, optimizer_g, optimizer_d, stage, x, draw_maps(network, x), fakes)
        return [loss.item() for loss in losses]

    return step
