"""Steps as CUDA graphs: they do nothing that a graph forbids, the recording leaves no trace, and the losses stay.

On the processor a stand-in takes the graph's place that runs the step at each replay. What it cannot show is CUDA's own
doing: `test_gpu.py` does, on a GPU.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from attnad import train
from attnad.config import ADGANConfig, AttentionConfig, PaperConfig
from attnad.features import places
from attnad.train import train_adgan, train_attention
from attnad.training import graph
from attnad.training.graph import RecordedStep, capture

CPU = torch.device("cpu")
ENCODERS = ["resnet18", "efficientnet-lite0-random"]
CONFIG = PaperConfig(
    size=32,
    attention=AttentionConfig(width=4, latent=4, epochs=2, batch=4),
    adgan=ADGANConfig(epochs=2, batch=4, synthetic_fakes=True, train_features=True),
)


def config(encoder: str = "resnet18", **changes) -> PaperConfig:
    """The configuration with another encoder; changes are fields of both stages."""
    stage1, stage2 = replace(CONFIG.attention, encoder=encoder, **changes), replace(CONFIG.adgan, **changes)
    return replace(CONFIG, attention=stage1, adgan=stage2)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(0, 256, (10, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()


def train_both(config: PaperConfig, images: Tensor, device: torch.device = CPU, **more) -> dict[str, Tensor]:
    """All weights after both stages."""
    more = {"device": device, "progress": False, "save_seconds": 0} | more
    network, discriminator = train_attention(config, images, **more)
    adgan = train_adgan(config, images, network, **more)
    return {
        f"{part}.{name}": value
        for part, module in {"network": network, "discriminator": discriminator, "adgan": adgan}.items()
        for name, value in module.state_dict().items()
    }


# --- what a graph forbids --------------------------------------------------------------------------------------------


class Watch(TorchDispatchMode):
    """Refuses each operation that a graph forbids; PyTorch itself tags those that look at values.

    What is none on the processor is not seen: a tensor's `.cpu()`, `.numpy()` and `.tolist()`. The GPU's tests do.
    """

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        keywords = keywords or {}
        looks = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(operation.tags)
        if operation is torch.ops.aten.index.Tensor:  # its shape depends on values where it takes a mask
            looks = any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in arguments[1])
        from_host = operation is torch.ops.aten.lift_fresh.default  # torch.tensor(...) of Python's numbers
        moves = operation is torch.ops.aten._to_copy.default and keywords.get("device", arguments[0].device) != (
            arguments[0].device
        )
        assert not looks, f"{operation} looks at values"
        assert not from_host, f"{operation} brings values from the host"
        assert not moves, f"{operation} moves a tensor to another device"
        return operation(*arguments, **keywords)


def fused_adam(parameters, stage) -> torch.optim.Adam:
    """Adam as it is on CUDA; the processor's usual one reads its count of steps back."""
    return torch.optim.Adam(list(parameters), stage.learning_rate, (stage.beta1, 0.999), fused=True)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_steps_do_nothing_that_a_graph_forbids(images, encoder, monkeypatch):
    watched = []

    def watch(step, *_):
        def under_watch(chosen: Tensor) -> Tensor:
            watched.append(len(chosen))
            with Watch():
                return step(chosen)

        return under_watch

    monkeypatch.setattr(train, "capture", watch)
    monkeypatch.setattr(train, "adam", fused_adam)
    train_both(config(encoder), images)
    assert watched == [4] * 8, "two epochs of two steps in each stage"


@pytest.mark.parametrize(
    "forbidden",
    [
        lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: x.nonzero(), lambda x: torch.tensor([1.0]) * x,
        lambda x: x.to("meta"), lambda x: 1 if x.sum() > 0 else 0, lambda x: torch.unique(x),
        lambda x: x[:, int(x[0, 0])], lambda x: torch.equal(x, x),
    ],
)  # fmt: skip
def test_what_a_graph_forbids_is_noticed(forbidden):
    with pytest.raises(AssertionError, match=r"^aten\..* (looks at values|from the host|to another device)"), Watch():
        forbidden(torch.ones(2, 2))


def test_a_usual_optimiser_would_be_noticed(images, monkeypatch):
    monkeypatch.setattr(train, "capture", lambda step, *_: lambda chosen: watched(step, chosen))

    def watched(step, chosen):
        with Watch():
            return step(chosen)

    with pytest.raises(AssertionError, match=r"looks at values|from the host"):
        train_attention(config(), images, device=CPU, progress=False)


# --- what a recording leaves -----------------------------------------------------------------------------------------


@pytest.fixture
def stand_in(monkeypatch) -> list[RecordedStep]:
    """Record steps on the processor, with a stand-in for CUDA's graph; gives the recorded steps."""
    recorded: list[RecordedStep] = []

    class Graph:
        def register_generator_state(self, generator: torch.Generator) -> None:
            assert generator is recorded[-1].generator

        def replay(self) -> None:
            recorded[-1].losses.copy_(recorded[-1].step(recorded[-1].chosen))

    @contextmanager
    def record(graph, stream):
        yield

    stream = SimpleNamespace(wait_stream=lambda other: None)
    cuda = SimpleNamespace(
        CUDAGraph=Graph, graph=record, Stream=lambda device: stream, current_stream=lambda device: stream,
        stream=lambda stream: nullcontext(),
    )  # fmt: skip

    def always(*arguments):
        recorded.append(RecordedStep(*arguments))
        return recorded[-1]

    monkeypatch.setattr(graph, "torch", SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(train, "capture", always)
    monkeypatch.setattr(places, "capture", always)
    return recorded


def test_on_the_processor_the_step_is_taken_as_it_is(images):
    def step(chosen: Tensor) -> Tensor:
        return chosen

    assert capture(step, torch.Generator(), dict) is step


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_recording_leaves_no_trace_in_weights_statistics_optimisers_or_draws(images, encoder, request):
    eager = train_both(config(encoder), images)
    steps = request.getfixturevalue("stand_in")
    recorded = train_both(config(encoder), images)
    assert len(steps) == 2
    assert eager.keys() == recorded.keys()
    assert [name for name in eager if not torch.equal(eager[name], recorded[name])] == []


def test_training_resumes_through_a_recording(images, tmp_path, stand_in):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    expected = train_both(config(epochs=3), images, folder=whole)
    for epochs in (1, 3):
        again = train_attention(config(epochs=epochs), images, device=CPU, folder=parts, save_seconds=0, progress=False)
    network = again[0]
    for epochs in (1, 3):
        adgan = train_adgan(
            config(epochs=epochs), images, network, device=CPU, folder=parts, save_seconds=0, progress=False
        )
    for part, module in {"network": network, "discriminator": again[1], "adgan": adgan}.items():
        assert all(torch.equal(value, expected[f"{part}.{name}"]) for name, value in module.state_dict().items())


def test_a_finished_stage_is_not_recorded_again(images, tmp_path, stand_in):
    for _ in range(2):
        train_attention(config(), images, device=CPU, folder=tmp_path, progress=False)
    assert [step.graph is None for step in stand_in] == [False, True]


def train_discriminator() -> dict[str, Tensor]:
    """Weights of a judge of recipe `discriminators` after three steps, and its losses set aside."""
    torch.manual_seed(0)
    judge, real = places.PatchDiscriminator(6, 1.5, 8), torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(0)
    settings = {
        "steps": 3,
        "batch": 16,
        "learning_rate": 1e-2,
        "generator": generator,
        "others": 3 * real,
        "share": 0.5,
    }
    losses = places.train_discriminator(judge, real, 1.5, **settings)
    return {"losses": torch.tensor(losses)} | judge.state_dict()


def test_a_recording_leaves_no_trace_in_a_judge_of_places(request):
    eager = train_discriminator()
    (recorded, steps) = (request.getfixturevalue("stand_in"), train_discriminator())
    assert len(recorded) == 1
    assert all(torch.equal(eager[name], steps[name]) for name in eager)


def test_batches_of_another_size_are_refused(images, stand_in):
    train_attention(config(), images, device=CPU, progress=False)
    with pytest.raises(ValueError, match="was recorded for 4 images, not 3; record another for them"):
        stand_in[0](torch.arange(3))
