"""What the tests of several files make: images, folders of them, networks and runs with random weights, maps.

And what they read of a run's folder, and of a command that fails.
"""

from __future__ import annotations

import csv
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from attnad.cli import main
from attnad.data import textures
from attnad.detectors import recipe
from attnad.detectors.paper import Paper
from attnad.models import ADGAN, AttentionNetwork, Discriminator
from attnad.report.report import HEAD, card, row, table, write_map, write_page
from attnad.run.run import Run

WEIGHTS = ("attention.safetensors", "adgan.safetensors")
NAMES = ["defect/scratch", "good", "<img src=x onerror=alert(1)>", "other/grass"]


def write_images(folder: Path, images: np.ndarray, suffix: str = "") -> None:
    """Write uint8 images [n, height, width, 3] into a new folder as 000.png, 001.png and so on."""
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:03d}{suffix}.png")


def write_set(folder: Path, *, normal: int) -> None:
    """A set laid out as MVTec AD, without masks: bricks to learn from, and six good and six dark ones to judge."""
    good, painted, _ = textures.held_out_crops("brick", 64)
    write_images(folder / "train" / "good", textures.train_crops("brick", 64)[:normal])
    write_images(folder / "test" / "good", good[:6])
    write_images(folder / "test" / "dark", painted[:6] // 3)


def few_crops(patch: pytest.MonkeyPatch, train: int = 24, good: int = 8, defect: int = 2, other: int = 4) -> None:
    """Make the embedded textures smaller, so that a run on them takes seconds: crops a texture, defects of a kind."""
    for name, n in {"N_TRAIN": train, "N_GOOD": good, "N_DEFECT": defect, "N_OTHER": other}.items():
        patch.setattr(textures, name, n)


def random_run(width: int = 8) -> Run:
    """A run of 32 pixels with random weights and batch statistics, so that every layer matters."""
    config = recipe("quick", "textures")
    attention = replace(config.attention, width=width, latent=4)
    config = replace(config, size=32, attention=attention, seed=7)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network, discriminator = AttentionNetwork(attention), Discriminator(4, 32, width)
        adgan = ADGAN(network.encoder, attention, 32)
        for parameter in network.parameters():
            if parameter.ndim == 4:
                torch.nn.init.kaiming_normal_(parameter)  # the networks' own start gives a map that is almost constant
        for module in (network, adgan):
            for name, buffer in module.named_buffers():
                if "running_mean" in name:
                    buffer.normal_(std=0.3)
                elif "running_var" in name:
                    buffer.uniform_(1, 4)
    return Run(config, Paper(network.eval(), discriminator.eval(), adgan.eval()), {"threshold": 0.125})


def random_images(n: int = 4) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def explored(size: int = 16) -> dict:
    """Four images, colours in the third; the first map is 0.8 on the true defect and 0.4 beside it."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 255, (4, 1, size, size), generator=generator, dtype=torch.uint8).repeat(1, 3, 1, 1)
    images[2, 0] = 255
    maps, masks = torch.full((4, size, size), 0.1), torch.zeros(4, size, size, dtype=torch.bool)
    masks[0, 4:8, 4:8] = True
    maps[0, 4:8, 4:12] = 0.4
    maps[0, 4:8, 4:6] = 0.8
    return {
        "images": images,
        "maps": maps,
        "masks": [masks[0], masks[1], None, None],
        "scores": [2.0, -1.0, 3.0, 0.5],
        "names": NAMES,
    }


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int, height: int = 16, width: int | None = None, seed: int = 0, channels: int = 3) -> torch.Tensor:
    return torch.rand(n, channels, height, width or height, generator=rng(seed))


def small(seed: int = 0, channels: int = 3) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(2, channels, 3), nn.BatchNorm2d(channels), nn.Flatten(), nn.Linear(channels, 1))


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and buffer a value that no other one has, so that a mix-up shows."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        if value.ndim > 1:
            value.copy_(torch.randn(value.shape, generator=generator) * value[0].numel() ** -0.5)
        elif value.ndim == 1:  # of batch norm; variances and scales are positive
            about = 1 if name.endswith(("running_var", "weight")) else 0
            value.copy_(torch.rand(value.shape, generator=generator) * 0.8 - 0.4 + about)
    return module


def seeded(build, seed: int = 0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def random_set(seed, levels):
    """Six 7x8 images, the last two good; `levels` distinct map values, so ties within and between the classes."""
    rng = np.random.default_rng(seed)
    masks = rng.random((6, 7, 8)) < 0.2
    masks[4:] = False
    maps = rng.integers(0, levels, masks.shape) + masks * (levels // 4)
    return masks, maps.astype(np.float32)


def weights(folder: Path) -> list[str]:
    """What stands for a run's weights: pytest would compare megabytes for an hour before it says that they differ."""
    return [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in WEIGHTS]


def losses(folder: Path) -> list[list[str]]:
    with open(folder / "log.csv", newline="") as file:
        return [row[:4] for row in csv.reader(file)]  # without the seconds


def fails(capsys, *arguments: str | Path, status: int = 2) -> str:
    """Run a command that must end in a single line for the person, with the status of nothing done; returns it."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == status
    printed = capsys.readouterr()
    lines = printed.err.strip().splitlines()
    assert lines[-1].startswith("attnad: ")
    assert "Traceback" not in printed.err
    assert printed.out == ""
    return lines[-1]


def write_report(out: Path, *, paths, images, sizes, maps, scores, threshold, title, notes) -> Path:
    """The files of a report on n images, as `attnad score` leaves them without its own records; returns the page.

    images is uint8 [n, 3, s, s], sizes their original (width, height), maps float [n, s, s] in [0, 1].
    """
    scores = [float(score) for score in scores]
    rows, cards = [], []
    for i in sorted(range(len(paths)), key=lambda i: -scores[i]):
        file = write_map(out, i + 1, paths[i], maps[i], sizes[i])
        rows.append(row(paths[i], scores[i], "", threshold, maps[i], file))
        cards.append(card(paths[i], images[i], maps[i], sizes[i], scores[i], rows[-1][-2]))
    (out / "scores.csv").write_text(table([HEAD, *rows]), encoding="utf-8", newline="")
    return write_page(out, cards, scores, threshold, title, notes)
