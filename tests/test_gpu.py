"""Training on a GPU with CUDA: a step recorded as a graph has the losses of the same step taken as it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from attnad import train
from attnad.config import ADGANConfig, AttentionConfig, PaperConfig
from attnad.features import places
from attnad.models import AttentionNetwork
from attnad.train import train_adgan, train_attention
from attnad.training.graph import RecordedStep, capture

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA")

ENCODERS = ["resnet18", "efficientnet-lite0-random"]
FULL = PaperConfig(
    size=32,
    attention=AttentionConfig(encoder="resnet18", epochs=5, batch=16, adv_weight=0.01, adv_ano_weight=0.01),
    adgan=ADGANConfig(epochs=5, batch=16, synthetic_fakes=True, train_features=True),
)


@pytest.fixture(scope="module")
def many() -> Tensor:
    return torch.randint(0, 256, (64, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()


def losses_of(encoder: str, images: Tensor, *, recorded: bool, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Losses of 20 steps of each stage on the GPU, [20, 5] and [20, 3]; stage 2 stands on an untrained network."""
    kept: list[Tensor] = []

    def keep(step, *state):
        step = capture(step, *state) if recorded else step
        assert isinstance(step, RecordedStep) == recorded

        def keeping(chosen: Tensor) -> Tensor:
            kept.append(step(chosen).clone())
            return kept[-1]

        return keeping

    full = replace(FULL, seed=seed, attention=replace(FULL.attention, encoder=encoder))
    device = torch.device("cuda")
    torch.manual_seed(0)
    network = AttentionNetwork(full.attention).to(device, memory_format=torch.channels_last).eval()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "capture", keep)
        train_attention(full, images, device=device, progress=False)
        train_adgan(full, images, network, device=device, progress=False)
    assert len(kept) == 40
    return torch.stack(kept[:20]).cpu(), torch.stack(kept[20:]).cpu()


@pytest.mark.parametrize("encoder", ENCODERS)
def test_twenty_steps_of_a_graph_have_the_losses_of_eager_ones(many, encoder):
    """To what two eager trainings differ by, doubled, and one rounding of a loss's terms to bfloat16, 2**-8 of them.

    The kernels and the draws are the same, but sums that run in no fixed order (cuDNN's gradients of weights) differ
    from run to run; Adam's first steps carry each such difference into the weights. Another seed stands for what a
    wrong draw or a state not put back would do.
    """
    eager, again, recorded, other = (
        losses_of(encoder, many, **kind)
        for kind in ({"recorded": False}, {"recorded": False}, {"recorded": True}, {"recorded": False, "seed": 1})
    )
    for stage in (0, 1):
        bound = 2 * (eager[stage] - again[stage]).abs().amax(0) + 2**-8 * eager[stage].abs()
        print(f"{encoder}, stage {stage + 1}: difference and bound by term", flush=True)
        print((eager[stage] - recorded[stage]).abs().amax(0).tolist(), bound.amax(0).tolist(), flush=True)
        assert ((eager[stage] - recorded[stage]).abs() <= bound).all()
        assert ((eager[stage] - other[stage]).abs() > bound).any(1)[0], "the first step of another seed stands out"


def test_training_resumes_on_a_gpu_through_a_graph(many, tmp_path):
    """The generator goes on where it was: the first loss after resuming is that of the training in one piece."""
    device, more = torch.device("cuda"), {"progress": False, "save_seconds": 0}
    logs = {}
    for name, all_epochs in {"whole": (5,), "again": (5,), "parts": (2, 5)}.items():
        (tmp_path / name).mkdir()
        for epochs in all_epochs:
            full = replace(FULL, attention=replace(FULL.attention, epochs=epochs))
            train_attention(full, many, device=device, folder=tmp_path / name, **more)
        lines = (tmp_path / name / "log.csv").read_text().splitlines()[1:]
        logs[name] = torch.tensor([float(line.split(",")[3]) for line in lines]).reshape(5, -1)
    bound = 2 * (logs["whole"] - logs["again"]).abs().amax(0) + 2**-8 * logs["whole"].abs()
    assert ((logs["whole"] - logs["parts"]).abs() <= bound).all()


def test_a_judge_of_places_learns_the_same_through_a_graph(monkeypatch):
    """Recipe `discriminators`' judge: a small network of float32, whose weights differ by rounding alone."""

    def learnt() -> list[Tensor]:
        torch.manual_seed(0)
        judge, real = places.PatchDiscriminator(6, 1.5, 8).cuda(), torch.randn(500, 6).cuda()
        settings = {
            "steps": 50,
            "batch": 64,
            "learning_rate": 1e-3,
            "others": 3 * torch.randn(80, 6).cuda(),
            "share": 0.5,
        }
        places.train_discriminator(judge, real, 1.5, generator=torch.Generator("cuda").manual_seed(0), **settings)
        return [value.detach().cpu() for value in judge.parameters()]

    recorded = learnt()
    monkeypatch.setattr(places, "capture", lambda step, *_: step)
    for one, other in zip(recorded, learnt(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_batches_of_another_size_are_refused_by_a_graph(many):
    total = torch.zeros((), device="cuda")

    def step(chosen: Tensor) -> Tensor:
        total.add_(chosen.sum())
        return total.clone()

    recorded = capture(step, torch.Generator("cuda"), lambda: {"total": total})
    for n in (1, 2, 3):
        assert recorded(torch.ones(4, dtype=torch.long, device="cuda")).item() == 4 * n, "the warm-up leaves no trace"
    with pytest.raises(ValueError, match="was recorded for 4 images, not 3"):
        recorded(torch.ones(3, dtype=torch.long, device="cuda"))
