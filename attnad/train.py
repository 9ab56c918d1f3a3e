"""The two training loops: `train_attention` (stage 1), then `train_adgan` (stage 2).

Training sees normal images only, as one uint8 tensor on the device. It stops after a fixed number of epochs and the
last weights are used; there is no test data here to choose an epoch by.

More than 300 lines: both stages' steps stand in the paper's order, to be read beside each other.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from attnad.augmentations import synthesize
from attnad.config import ADGANConfig, AttentionConfig, PaperConfig
from attnad.errors import TrainingError
from attnad.losses import (
    adversarial_loss,
    anomaly_adversarial_loss,
    attention_loss,
    generator_loss,
    non_saturating_loss,
    reconstruction_nll,
    total_loss,
)
from attnad.models import ADGAN, AttentionNetwork, Discriminator, pair
from attnad.training.epochs import run_epochs
from attnad.training.graph import capture
from attnad.training.state import SAVE_SECONDS, State


def pick_device(name: str = "auto") -> torch.device:
    """Choose the device: CUDA, else MPS, else the CPU, unless `name` says which.

    Raises TrainingError where the named device is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        probe = torch.zeros(1, device=name)
        probe.item()  # a device that holds no values, such as "meta", is none to train on
        return probe.device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise TrainingError(f"device {name!r} cannot be used here ({reason}); try --device auto or cpu") from error


def to_float(images: Tensor) -> Tensor:
    """uint8 images 0 ... 255 to float images in [0, 1], channels last in memory."""
    return (images.float() / 255).contiguous(memory_format=torch.channels_last)


@contextmanager
def seeded(seed: int):
    """Draw initial weights from `seed`, leaving the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which reseeds every GPU too
        yield


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 on CUDA, else float32; losses are computed in float32 either way.

    Without a cache of cast weights: one kept from before would be no part of a recorded step.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda", cache_enabled=False)


def adam(parameters: Iterable[nn.Parameter], stage: AttentionConfig | ADGANConfig) -> torch.optim.Adam:
    """Adam with the stage's values; on CUDA one kernel that counts its steps there, so that it can be recorded."""
    parameters = list(parameters)
    cuda = parameters[0].is_cuda
    return torch.optim.Adam(parameters, stage.learning_rate, (stage.beta1, 0.999), fused=cuda or None, capturable=cuda)


def _normal_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)


ATTENTION_TERMS = ("L_D", "L_adv", "L_adv_ano", "L_G", "L_att")


def attention_step(
    network: AttentionNetwork,
    discriminator: Discriminator,
    optimizer_g: torch.optim.Optimizer,
    optimizer_d: torch.optim.Optimizer,
    stage: AttentionConfig,
    x: Tensor,
    x_ano: Tensor,
    a_ano: Tensor,
    noise: Tensor,
) -> Tensor:
    """Train D1, then G1, on one batch: x and x_ano [n, 3, s, s] in [0, 1], a_ano [n, 1, s, s], G1's noise for both.

    Returns the losses before the step, in the order of ATTENTION_TERMS: [5], detached. Source: eqs. (1) to (5).
    """
    a_nor, n, both = torch.ones_like(a_ano), len(x), torch.cat([x, x_ano])
    with autocast(x.device):
        out = network(both, noise)
    x_re, a_gen = out.x_re.float(), out.a_gen.float()
    fake = pair(x_re, a_gen)

    # Discriminator D1: both games at once, eqs. (1) and (2); a game of weight 0 is not played.
    adversarial = stage.adv_weight != 0 or stage.adv_ano_weight != 0
    l_d = l_adv = l_adv_ano = torch.zeros((), device=x.device)
    if adversarial:
        real = torch.cat([pair(x, a_nor), pair(x_ano, a_ano)])
        with autocast(x.device):
            d_real, d_fake = discriminator(torch.cat([real, fake.detach()])).float().chunk(2)
        if stage.adv_weight != 0:
            l_d = l_d - adversarial_loss(d_real[:n], d_fake[:n])
        if stage.adv_ano_weight != 0:
            l_d = l_d - anomaly_adversarial_loss(d_real[n:], d_fake[n:])
        optimizer_d.zero_grad()
        l_d.backward()
        optimizer_d.step()

    # Generator G1, eq. (5).
    if adversarial:
        discriminator.requires_grad_(False)
        with autocast(x.device):
            d_fake = discriminator(fake).float()
        discriminator.requires_grad_(True)
        l_adv, l_adv_ano = non_saturating_loss(d_fake[:n]), non_saturating_loss(d_fake[n:])
    seen = 2 * n if stage.reconstruct_anomalies else n
    mean, log_variance = out.mean.float(), out.log_variance.float()
    l_g = generator_loss(both[:seen], x_re[:seen], mean[:seen], log_variance[:seen], kl_weight=stage.kl_weight)
    l_att = attention_loss(a_gen[:n], a_nor, a_gen[n:], a_ano)
    weights = (stage.adv_ano_weight, stage.adv_weight, stage.g_weight, stage.att_weight)
    optimizer_g.zero_grad()
    total_loss(l_adv_ano, l_adv, l_g, l_att, weights=weights).backward()
    optimizer_g.step()
    return torch.stack([l_d, l_adv, l_adv_ano, l_g, l_att]).detach()


@torch.no_grad()
def renew_statistics(network: nn.Module, batches: Iterable[tuple[Tensor, ...]]) -> None:
    """Set the running means and variances of batch norm to their averages over batches, each one call's arguments.

    The network is in training mode, and learns nothing; what keeps its statistics, being in evaluation mode, keeps
    them. PyTorch's `update_bn` would empty those too. Source: D34; Izmailov et al. 2018, section 3.2.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d) and m.training]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
    for batch in batches:
        with autocast(batch[0].device):
            network(*batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def train_attention(
    config: PaperConfig,
    images: Tensor,
    *,
    device: torch.device,
    folder: Path | None = None,
    save_seconds: float = SAVE_SECONDS,
    progress: bool = True,
) -> tuple[AttentionNetwork, Discriminator]:
    """Train stage 1 on normal images, resuming from `folder` where it holds a state.

    Takes uint8 images [n, 3, s, s]; returns G1 and D1 in evaluation mode, on the device. With a folder, writes
    attention.state.safetensors as it goes and a line an epoch and term into log.csv.
    Raises TrainingError on a loss that is not finite, CheckpointError on a state of other data or another model.
    Source: section 3.2, eqs. (1) to (5).
    """
    stage, augment = config.attention, config.augment
    with seeded(config.seed):
        network, discriminator = AttentionNetwork(stage), Discriminator(4, config.size, stage.width)
    network = network.to(device).to(memory_format=torch.channels_last).train()
    discriminator = discriminator.to(device).to(memory_format=torch.channels_last).train()
    optimizer_g = adam((p for p in network.parameters() if p.requires_grad), stage)
    optimizer_d = adam(discriminator.parameters(), stage)
    generator = torch.Generator(device).manual_seed(config.seed)

    images = images.to(device)
    state = State(
        folder, "attention", {"network": network, "discriminator": discriminator}, {"g": optimizer_g, "d": optimizer_d},
        generator, images, save_seconds,
    )  # fmt: skip
    steps = max(1, len(images) // stage.batch)  # a last, smaller batch is left out of this epoch

    def draw(chosen: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = to_float(images[chosen])
        x_ano, a_ano = synthesize(x, augment, generator)
        return x, x_ano, a_ano, _normal_noise(network.latent_shape(torch.cat([x, x_ano])), generator)

    def step_on(chosen: Tensor) -> Tensor:
        return attention_step(network, discriminator, optimizer_g, optimizer_d, stage, *draw(chosen))

    step_of = capture(step_on, generator, state.tensors)
    run_epochs(step_of, state, ATTENTION_TERMS, epochs=stage.epochs, batch=stage.batch, steps=steps, progress=progress)
    if stage.renew_statistics and stage.epochs:  # after the last state, so that a resumed training does the same
        order = torch.randperm(len(images), generator=generator, device=device)
        drawn = map(draw, order[: steps * stage.batch].split(stage.batch))
        renew_statistics(network, ((torch.cat([x, x_ano]), noise) for x, x_ano, _, noise in drawn))
    return network.eval(), discriminator.eval()


@torch.no_grad()
def draw_maps(network: AttentionNetwork, x: Tensor) -> Tensor:
    """Attention maps of images [n, 3, s, s] in [0, 1], from the latent's mean: float [n, 1, s, s], 1 = normal."""
    with autocast(x.device):
        return network(x).a_gen.float()


def attention_maps(network: AttentionNetwork, images: Tensor, *, batch: int = 64) -> Tensor:
    """Attention maps of uint8 images [n, 3, s, s], a batch at a time: float [n, 1, s, s], 1 = normal."""
    return torch.cat([draw_maps(network, to_float(part)) for part in images.split(batch)])


ADGAN_TERMS = ("L_D", "L_adv", "L_R")


def discriminator_of(adgan: ADGAN) -> nn.ModuleDict:
    """F_img and D2: what judges an image, and what is averaged over the steps."""
    return nn.ModuleDict({"features": adgan.features, "discriminator": adgan.discriminator})


class MovingAverage(AveragedModel):
    """The average of a module's weights over the steps: theirs after the first, then moved by 1 - decay of the way.

    Buffers are copied. PyTorch's own decides on the host whether a step is the first, which cannot be recorded; the
    values are the same, and so are the names in a state.
    """

    def __init__(self, module: nn.Module, decay: float, device: torch.device | None = None):
        super().__init__(module, device)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, module: nn.Module) -> None:
        first = self.n_averaged == 0
        share = first + (1 - self.decay) * ~first
        for averaged, value in zip(self.module.parameters(), module.parameters(), strict=True):
            averaged.lerp_(value, share)  # with a share of 1 the value itself, to the bit
        for kept, buffer in zip(self.module.buffers(), module.buffers(), strict=True):
            kept.copy_(buffer)
        self.n_averaged += 1


def adgan_step(
    adgan: ADGAN,
    average: MovingAverage,
    optimizer_g: torch.optim.Optimizer,
    optimizer_d: torch.optim.Optimizer,
    stage: ADGANConfig,
    x: Tensor,
    a_gen: Tensor,
    anomalous: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Train D2, its moving average and G2 on one batch: x [n, 3, s, s] in [0, 1] and its maps [n, 1, s, s].

    `anomalous` are further fakes, synthetic anomalies and their maps of the same shapes. Returns the losses before the
    step, in the order of ADGAN_TERMS: [3], detached. Source: section 3.3, eq. (6).
    """
    with autocast(x.device):
        f_nor = adgan.masked(x, a_gen).float()  # eq. (6)
        f_gen = adgan.generate(f_nor.detach()).float()

        # Discriminator D2: masked features of normal images are real, generated ones fake.
        fakes = [f_gen.detach()]
        if anomalous is not None:
            fakes.append(adgan.masked(*anomalous).float())
        logits = adgan.discriminator(torch.cat([f_nor, *fakes])).float().split(len(x))
    l_d = -torch.stack([adversarial_loss(logits[0], fake) for fake in logits[1:]]).mean()
    optimizer_d.zero_grad()
    l_d.backward()
    optimizer_d.step()
    average.update_parameters(discriminator_of(adgan))

    # Generator G2.
    adgan.discriminator.requires_grad_(False)
    with autocast(x.device):
        d_fake = adgan.discriminator(f_gen).float()
    adgan.discriminator.requires_grad_(True)
    l_adv, l_r = non_saturating_loss(d_fake), reconstruction_nll(f_nor.detach(), f_gen)
    optimizer_g.zero_grad()
    (l_adv + stage.reconstruction_weight * l_r).backward()
    optimizer_g.step()
    return torch.stack([l_d, l_adv, l_r]).detach()


def train_adgan(
    config: PaperConfig,
    images: Tensor,
    network: AttentionNetwork,
    *,
    device: torch.device,
    folder: Path | None = None,
    save_seconds: float = SAVE_SECONDS,
    progress: bool = True,
) -> ADGAN:
    """Train stage 2 on normal images under the frozen attention network, resuming where `folder` holds a state.

    Takes uint8 images [n, 3, s, s] and G1 in evaluation mode; returns ADGAN in evaluation mode, its F_img and D2
    replaced by their moving averages. With a folder, writes adgan.state.safetensors and lines into log.csv.
    Raises as `train_attention` does. Source: section 3.3, eq. (6).
    """
    stage, augment = config.adgan, config.augment
    network.eval()
    with seeded(config.seed):
        adgan = ADGAN(network.encoder, config.attention, config.size)
    adgan = adgan.to(device).to(memory_format=torch.channels_last).train()
    adgan.features.requires_grad_(stage.train_features).train(stage.train_features)
    judge = discriminator_of(adgan)
    average = MovingAverage(judge, stage.ema, device)
    optimizer_g = adam([*adgan.encoder.parameters(), *adgan.decoder.parameters()], stage)
    optimizer_d = adam((p for p in judge.parameters() if p.requires_grad), stage)
    generator = torch.Generator(device).manual_seed(config.seed)

    images = images.to(device)
    state = State(
        folder, "adgan", {"adgan": adgan, "average": average}, {"g": optimizer_g, "d": optimizer_d},
        generator, images, save_seconds,
    )  # fmt: skip
    maps = attention_maps(network, images)  # G1 is frozen: its maps of the normal images never change
    steps = max(1, len(images) // stage.batch)

    def step_on(chosen: Tensor) -> Tensor:
        x, anomalous = to_float(images[chosen]), None
        if stage.synthetic_fakes:
            x_ano, _ = synthesize(x, augment, generator)
            anomalous = x_ano, draw_maps(network, x_ano)
        return adgan_step(adgan, average, optimizer_g, optimizer_d, stage, x, maps[chosen], anomalous)

    step_of = capture(step_on, generator, state.tensors)
    run_epochs(step_of, state, ADGAN_TERMS, epochs=stage.epochs, batch=stage.batch, steps=steps, progress=progress)
    judge.load_state_dict(average.module.state_dict())
    return adgan.eval()
