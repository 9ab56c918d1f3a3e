"""Stage 1 of recipe `strong`: an attention network with skip connections, taught by blended anomalies."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from attnad.augmentations import synthesize, synthesize_blended
from attnad.losses import attention_loss, dice_loss, focal_loss
from attnad.models import SkipAttentionNetwork
from attnad.state import SAVE_SECONDS, Log, State
from attnad.train import autocast, seeded, to_float


@dataclass(frozen=True)
class MapConfig:
    """Stage 1 of `strong`: the attention network with skip connections."""

    epochs: int = 0
    """Passes over the normal images; 0 leaves stage 1 out."""
    batch: int = 16
    """Normal images a step; as many synthetic anomalies come with them."""
    learning_rate: float = 1e-3
    """Highest rate of AdamW's one cycle."""
    encoder_rate: float = 0.1
    """The encoder's rate, as a share of that; 0 keeps it frozen."""
    width: int = 64
    """Channels of the feature pyramid."""
    blended: bool = True
    """Learn from blended anomalies, or from the paper's rectangles."""
    focal_weight: float = 10.0
    """Weight of the focal loss; with 0 for this and the next, the paper's squared error, eq. (4)."""
    dice_weight: float = 0.2
    """Weight of the Dice loss."""


def one_cycle(step: int, steps: int, peak: float) -> float:
    """Learning rate of a step: up from a 25th of the peak over the first three tenths, then down to next to nothing.

    Source: Smith & Topin 2019. A function of the step alone, so that a resumed training needs no schedule's state.
    """
    rise = 0.3 * steps
    if step < rise:
        return peak * (1 - 24 / 25 * (1 + math.cos(math.pi * step / rise)) / 2)
    return peak * (1 + math.cos(math.pi * (step - rise) / (steps - rise))) / 2


MAP_TERMS = ("L_focal", "L_dice", "L_att")


def map_step(
    network: SkipAttentionNetwork,
    optimizer: torch.optim.Optimizer,
    stage: MapConfig,
    x: Tensor,
    x_ano: Tensor,
    a_ano: Tensor,
) -> Tensor:
    """Train the attention network on one batch: x and x_ano [n, 3, s, s] in [0, 1], a_ano [n, 1, s, s].

    Returns the losses before the step, in the order of MAP_TERMS: [3], detached.
    """
    with autocast(x.device):
        logits = network(torch.cat([x, x_ano]))
    logits, target = logits.float(), torch.cat([torch.ones_like(a_ano), a_ano])
    a_gen = logits.sigmoid()
    l_focal, l_dice = focal_loss(logits, target), dice_loss(1 - a_gen, 1 - target)
    (a_gen_nor, a_gen_ano), a_nor = a_gen.chunk(2), torch.ones_like(a_ano)
    l_att = attention_loss(a_gen_nor, a_nor, a_gen_ano, a_ano)
    focal_or_dice = stage.focal_weight != 0 or stage.dice_weight != 0
    loss = stage.focal_weight * l_focal + stage.dice_weight * l_dice if focal_or_dice else l_att
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return torch.stack([l_focal, l_dice, l_att]).detach()


def train_map(
    config,
    images: Tensor,
    encoder: nn.Module,
    *,
    device: torch.device,
    folder: Path | None = None,
    save_seconds: float = SAVE_SECONDS,
    progress: bool = True,
) -> SkipAttentionNetwork:
    """Train stage 1 on normal images [n, 3, s, s] uint8, resuming where `folder` holds a state, as train_attention."""
    stage = config.attention
    with seeded(config.seed):
        network = SkipAttentionNetwork(encoder, stage.width)
    network = network.to(device, memory_format=torch.channels_last).train()
    tuned = stage.encoder_rate != 0
    network.encoder.requires_grad_(tuned)
    own = [p for name, p in network.named_parameters() if not name.startswith("encoder.")]
    groups = [{"params": own, "peak": stage.learning_rate}]
    if tuned:
        groups.append({"params": list(network.encoder.parameters()), "peak": stage.learning_rate * stage.encoder_rate})
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-4, fused=device.type == "cuda")
    generator = torch.Generator(device).manual_seed(config.seed)
    images = images.to(device)
    path = folder and folder / "attention.state.safetensors"
    state = State(path, {"network": network}, {"g": optimizer}, generator, images, save_seconds)
    done = state.resume()
    log = Log(folder and folder / "log.csv", "attention", MAP_TERMS, done)
    batch = min(stage.batch, len(images))
    steps = len(images) // batch
    with tqdm(total=stage.epochs * steps, initial=done * steps, desc="attention network", disable=not progress) as bar:
        for epoch in range(done + 1, stage.epochs + 1):
            started, losses = time.perf_counter(), []
            order = torch.randperm(len(images), generator=generator, device=device)
            for step in range(steps):
                for group in optimizer.param_groups:
                    group["lr"] = one_cycle((epoch - 1) * steps + step, stage.epochs * steps, group["peak"])
                if not tuned:
                    network.encoder.eval()
                x = to_float(images[order[step * batch : (step + 1) * batch]])
                x_ano, a_ano = synthesized(x, config, generator)
                losses.append(map_step(network, optimizer, stage, x, x_ano, a_ano))
                state.check(losses, MAP_TERMS, epoch)
                bar.update()
            means = state.finite_mean(losses, MAP_TERMS, epoch)
            bar.set_postfix({term: f"{mean:.3f}" for term, mean in zip(MAP_TERMS, means, strict=True)})
            log.add(epoch, means, time.perf_counter() - started)
            state.save(epoch, last=epoch == stage.epochs)
    return network.eval()


def synthesized(x: Tensor, config, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Synthetic anomalies of the kind that the configuration names, and their target maps."""
    if config.attention.blended:
        return synthesize_blended(x, config.blend, generator)
    return synthesize(x, config.blend.rectangles, generator)
