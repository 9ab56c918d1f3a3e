"""The two training loops: `train_attention` (stage 1), then `train_adgan` (stage 2).

Training sees normal images only, as one uint8 tensor on the device. It stops after a fixed number of epochs and the
last weights are used; there is no test data here to choose an epoch by.
"""

from __future__ import annotations

import csv
import hashlib
import io
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from attnad.augmentations import synthesize
from attnad.checkpoint import (
    CheckpointError,
    load_module,
    load_optimizer,
    load_tensors,
    module_tensors,
    optimizer_tensors,
    save_tensors,
    write_atomically,
)
from attnad.config import RunConfig
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

SAVE_SECONDS = 20.0  # training state is saved at the first end of an epoch this long after the last


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what is kept."""


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
def _seeded(seed: int):
    """Draw initial weights from `seed`, leaving the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which reseeds every GPU too
        yield


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 on CUDA, else float32; losses are computed in float32 either way."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def _normal_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)


def fingerprint(images: Tensor) -> str:
    """SHA-256 of images, in hexadecimal digits: which data a state or a run was trained on."""
    return hashlib.sha256(images.cpu().contiguous().numpy()).hexdigest()


def read_log(path: Path) -> list[list[str]]:
    """Lines of a log.csv without its head: stage, epoch, term, loss, seconds.

    Raises CheckpointError, naming the file, where it is missing or damaged.
    """
    try:
        _, *lines = csv.reader(path.read_text(encoding="utf-8").splitlines())
        for _, epoch, _, loss, seconds in lines:
            int(epoch), float(loss), float(seconds)
    except (OSError, ValueError, csv.Error) as error:
        raise CheckpointError(f"{path} is damaged ({error}); restore it, or remove it to go on") from error
    return lines


def write_log(path: Path, lines: Sequence[Sequence[str]]) -> None:
    """Write a log.csv whole: its head, and lines as `read_log` gives them."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("stage", "epoch", "term", "loss", "seconds"), *lines])
    write_atomically(path, text.getvalue())


class _Log:
    """Losses of each epoch, as lines of RUN/log.csv, written whole each time so that resuming leaves no doubles."""

    def __init__(self, path: Path | None, stage: str, terms: Sequence[str], first_epoch: int):
        self.path, self.stage, self.terms, self.lines = path, stage, terms, []
        if path is not None and path.exists():
            self.lines = [line for line in read_log(path) if line[0] != stage or int(line[1]) <= first_epoch]

    def add(self, epoch: int, losses: Sequence[float], seconds: float) -> None:
        for term, loss in zip(self.terms, losses, strict=True):
            self.lines.append([self.stage, str(epoch), term, f"{loss:.6f}", f"{seconds:.2f}"])
        if self.path is not None:
            write_log(self.path, self.lines)


class _State:
    """All that a loop needs to go on after a kill, in one file: weights, optimisers, generator, epochs done."""

    def __init__(
        self,
        path: Path | None,
        modules: dict[str, nn.Module],
        optimizers: dict[str, torch.optim.Optimizer],
        generator: torch.Generator,
        images: Tensor,
        save_seconds: float,
    ):
        self.path, self.modules, self.optimizers, self.generator = path, modules, optimizers, generator
        self.save_seconds, self.saved_at = save_seconds, time.monotonic()
        self.data = torch.frombuffer(bytearray.fromhex(fingerprint(images)), dtype=torch.uint8)

    def resume(self) -> int:
        """Load the saved state, if there is one, and return the epochs done."""
        if self.path is None or not self.path.exists():
            return 0
        tensors = load_tensors(self.path)
        if missing := {"data", "epoch", "generator"} - tensors.keys():
            raise CheckpointError(f"{self.path} is no training state: it lacks {min(missing)}; choose another --out")
        if tensors["epoch"].shape != ():
            raise CheckpointError(f"{self.path} is of another version; choose another --out")
        if not torch.equal(tensors["data"], self.data):
            raise CheckpointError(
                f"{self.path} was trained on other images than these; restore the data or choose another --out"
            )
        try:
            self.generator.set_state(tensors["generator"])
        except (RuntimeError, TypeError) as error:
            raise CheckpointError(
                f"{self.path} cannot go on with {self.generator.device.type} ({error}); give the --device that it was "
                "trained on, or choose another --out"
            ) from error
        for name, module in self.modules.items():
            load_module(name, module, tensors, self.path)
        for name, optimizer in self.optimizers.items():
            load_optimizer(f"optimizer_{name}", optimizer, tensors, self.path)
        return int(tensors["epoch"])

    def save(self, epoch: int, *, last: bool) -> None:
        """Save the state after an epoch, if it is time to or the epoch is the last.

        Raises TrainingError where a value of the state is not finite: what is saved is always fit to go on with.
        """
        tensors = {"epoch": torch.tensor(epoch), "generator": self.generator.get_state(), "data": self.data}
        for name, module in self.modules.items():
            tensors |= module_tensors(name, module)
        for name, optimizer in self.optimizers.items():
            tensors |= optimizer_tensors(f"optimizer_{name}", optimizer)
        for name, value in tensors.items():
            if value.is_floating_point() and not value.isfinite().all():
                raise self.not_finite(f"{name} is no longer finite after epoch {epoch}")
        if self.path is not None and (last or time.monotonic() - self.saved_at >= self.save_seconds):
            save_tensors(self.path, tensors)
            self.saved_at = time.monotonic()

    def keep(self, losses: list[Tensor], step: Sequence[Tensor], terms: Sequence[str], epoch: int) -> None:
        """Append a step's losses [terms] to an epoch's.

        Raises TrainingError at the step whose loss is not finite. Not on a GPU: to look would be to wait for it at each
        step, so there `finite_mean` looks at the whole epoch.
        """
        losses.append(torch.stack([loss.detach() for loss in step]))
        if losses[-1].device.type == "cpu" and not losses[-1].isfinite().all():
            self.finite_mean(losses, terms, epoch)

    def finite_mean(self, losses: list[Tensor], terms: Sequence[str], epoch: int) -> list[float]:
        """Mean of each term over an epoch's steps [steps, terms]; one transfer from the device.

        Raises TrainingError naming the step and the term where a loss is not finite.
        """
        table = torch.stack(losses).float().cpu()
        for step, term in (~table.isfinite()).nonzero().tolist():
            raise self.not_finite(f"{terms[term]} became {table[step, term].item()} in epoch {epoch}, step {step + 1}")
        return table.mean(0).tolist()

    def not_finite(self, what: str) -> TrainingError:
        """The error that stops training, with what is kept and the remedy."""
        saved = self.path is not None and self.path.exists()
        kept = f"the last good state is in {self.path}" if saved else "no state was saved yet"
        return TrainingError(f"{what}; {kept}. Lower the learning rate or the weights of the losses, in another --out")


ATTENTION_TERMS = ("L_D", "L_adv", "L_adv_ano", "L_G", "L_att")


def train_attention(
    config: RunConfig,
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
    with _seeded(config.seed):
        network, discriminator = AttentionNetwork(stage), Discriminator(4, config.size, stage.width)
    network = network.to(device, memory_format=torch.channels_last).train()
    discriminator = discriminator.to(device, memory_format=torch.channels_last).train()
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer_g = torch.optim.Adam(trained, stage.learning_rate, (stage.beta1, 0.999))
    optimizer_d = torch.optim.Adam(discriminator.parameters(), stage.learning_rate, (stage.beta1, 0.999))
    generator = torch.Generator(device).manual_seed(config.seed)

    images = images.to(device)
    state = _State(
        folder and folder / "attention.state.safetensors",
        {"network": network, "discriminator": discriminator},
        {"g": optimizer_g, "d": optimizer_d},
        generator, images, save_seconds,
    )  # fmt: skip
    done = state.resume()
    log = _Log(folder and folder / "log.csv", "attention", ATTENTION_TERMS, done)
    adversarial = stage.adv_weight != 0 or stage.adv_ano_weight != 0
    zero = torch.zeros((), device=device)
    steps = max(1, len(images) // stage.batch)  # a last, smaller batch is left out of this epoch

    with tqdm(total=stage.epochs * steps, initial=done * steps, desc="attention network", disable=not progress) as bar:
        for epoch in range(done + 1, stage.epochs + 1):
            started, losses = time.perf_counter(), []
            order = torch.randperm(len(images), generator=generator, device=device)
            for step in range(steps):
                x = to_float(images[order[step * stage.batch : (step + 1) * stage.batch]])
                x_ano, a_ano = synthesize(x, augment, generator)
                a_nor, n = torch.ones_like(a_ano), len(x)
                both = torch.cat([x, x_ano])

                with autocast(device):
                    out = network(both, _normal_noise(network.latent_shape(both), generator))
                x_re, a_gen = out.x_re.float(), out.a_gen.float()
                fake = pair(x_re, a_gen)

                # Discriminator D1: both games at once, eqs. (1) and (2); a game of weight 0 is not played.
                l_d = l_adv = l_adv_ano = zero
                if adversarial:
                    real = torch.cat([pair(x, a_nor), pair(x_ano, a_ano)])
                    with autocast(device):
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
                    with autocast(device):
                        d_fake = discriminator(fake).float()
                    discriminator.requires_grad_(True)
                    l_adv, l_adv_ano = non_saturating_loss(d_fake[:n]), non_saturating_loss(d_fake[n:])
                seen = 2 * n if stage.reconstruct_anomalies else n
                mean, log_variance = out.mean.float(), out.log_variance.float()
                l_g = generator_loss(
                    both[:seen], x_re[:seen], mean[:seen], log_variance[:seen], kl_weight=stage.kl_weight
                )
                l_att = attention_loss(a_gen[:n], a_nor, a_gen[n:], a_ano)
                weights = (stage.adv_ano_weight, stage.adv_weight, stage.g_weight, stage.att_weight)
                l_total = total_loss(l_adv_ano, l_adv, l_g, l_att, weights=weights)
                optimizer_g.zero_grad()
                l_total.backward()
                optimizer_g.step()

                state.keep(losses, (l_d, l_adv, l_adv_ano, l_g, l_att), ATTENTION_TERMS, epoch)
                bar.update()
            means = state.finite_mean(losses, ATTENTION_TERMS, epoch)
            bar.set_postfix({term: f"{mean:.3f}" for term, mean in zip(ATTENTION_TERMS, means, strict=True)})
            log.add(epoch, means, time.perf_counter() - started)
            state.save(epoch, last=epoch == stage.epochs)
    return network.eval(), discriminator.eval()


ADGAN_TERMS = ("L_D", "L_adv", "L_R")


@torch.no_grad()
def attention_maps(network: AttentionNetwork, images: Tensor, *, batch: int = 64) -> Tensor:
    """Attention maps of uint8 images [n, 3, s, s], from the latent's mean: float [n, 1, s, s], 1 = normal."""
    maps = []
    for part in images.split(batch):
        with autocast(images.device):
            maps.append(network(to_float(part)).a_gen.float())
    return torch.cat(maps)


def train_adgan(
    config: RunConfig,
    images: Tensor,
    network: AttentionNetwork,
    *,
    device: torch.device,
    anomalies: Tensor | None = None,
    folder: Path | None = None,
    save_seconds: float = SAVE_SECONDS,
    progress: bool = True,
) -> ADGAN:
    """Train stage 2 on normal images under the frozen attention network, resuming where `folder` holds a state.

    Takes uint8 images [n, 3, s, s], G1 in evaluation mode and, for table 1's "semi" only, real anomalies as uint8
    images too; returns ADGAN in evaluation mode, its F_img and D2 replaced by their moving averages. With a folder,
    writes adgan.state.safetensors and lines into log.csv.
    Raises as `train_attention` does. Source: section 3.3, eq. (6).
    """
    stage, augment = config.adgan, config.augment
    network.eval()
    with _seeded(config.seed):
        adgan = ADGAN(network.encoder, config.attention, config.size, pixels=stage.pixels)
    adgan = adgan.to(device, memory_format=torch.channels_last).train()
    adgan.features.requires_grad_(stage.train_features).train(stage.train_features)
    judge = nn.ModuleDict({"features": adgan.features, "discriminator": adgan.discriminator})
    average = AveragedModel(judge, multi_avg_fn=get_ema_multi_avg_fn(stage.ema))
    generating = [*adgan.encoder.parameters(), *adgan.decoder.parameters()]
    judging = [p for p in judge.parameters() if p.requires_grad]
    optimizer_g = torch.optim.Adam(generating, stage.learning_rate, (stage.beta1, 0.999))
    optimizer_d = torch.optim.Adam(judging, stage.learning_rate, (stage.beta1, 0.999))
    generator = torch.Generator(device).manual_seed(config.seed)

    images = images.to(device)
    anomalies = None if anomalies is None else anomalies.to(device)
    state = _State(
        folder and folder / "adgan.state.safetensors",
        {"adgan": adgan, "average": average},
        {"g": optimizer_g, "d": optimizer_d},
        generator, images, save_seconds,
    )  # fmt: skip
    done = state.resume()
    log = _Log(folder and folder / "log.csv", "adgan", ADGAN_TERMS, done)
    maps = attention_maps(network, images)  # G1 is frozen: its maps of the normal images never change
    steps = max(1, len(images) // stage.batch)

    with tqdm(total=stage.epochs * steps, initial=done * steps, desc="ADGAN", disable=not progress) as bar:
        for epoch in range(done + 1, stage.epochs + 1):
            started, losses = time.perf_counter(), []
            order = torch.randperm(len(images), generator=generator, device=device)
            for step in range(steps):
                chosen = order[step * stage.batch : (step + 1) * stage.batch]
                x = to_float(images[chosen])
                with autocast(device):
                    f_nor = adgan.masked(x, maps[chosen]).float()  # eq. (6)
                    f_gen = adgan.generate(f_nor.detach()).float()

                # Discriminator D2: masked features of normal images are real, generated ones fake.
                fakes, anomalous = [f_gen.detach()], []
                if stage.synthetic_fakes:
                    anomalous.append(synthesize(x, augment, generator)[0])
                if anomalies is not None:
                    drawn = torch.randint(len(anomalies), (len(x),), generator=generator, device=device)
                    anomalous.append(to_float(anomalies[drawn]))
                for x_ano in anomalous:
                    with torch.no_grad(), autocast(device):
                        a_gen = x_ano[:, :1] if stage.pixels else network(x_ano).a_gen.float()  # pixels: not looked at
                    with autocast(device):
                        fakes.append(adgan.masked(x_ano, a_gen).float())
                with autocast(device):
                    logits = adgan.discriminator(torch.cat([f_nor, *fakes])).float().split(len(x))
                l_d = -sum(adversarial_loss(logits[0], fake) for fake in logits[1:]) / len(fakes)
                optimizer_d.zero_grad()
                l_d.backward()
                optimizer_d.step()
                average.update_parameters(judge)

                # Generator G2.
                adgan.discriminator.requires_grad_(False)
                with autocast(device):
                    d_fake = adgan.discriminator(f_gen).float()
                adgan.discriminator.requires_grad_(True)
                l_adv, l_r = non_saturating_loss(d_fake), reconstruction_nll(f_nor.detach(), f_gen)
                optimizer_g.zero_grad()
                (l_adv + stage.reconstruction_weight * l_r).backward()
                optimizer_g.step()

                state.keep(losses, (l_d, l_adv, l_r), ADGAN_TERMS, epoch)
                bar.update()
            means = state.finite_mean(losses, ADGAN_TERMS, epoch)
            bar.set_postfix({term: f"{mean:.3f}" for term, mean in zip(ADGAN_TERMS, means, strict=True)})
            log.add(epoch, means, time.perf_counter() - started)
            state.save(epoch, last=epoch == stage.epochs)
    judge.load_state_dict(average.module.state_dict())
    return adgan.eval()
