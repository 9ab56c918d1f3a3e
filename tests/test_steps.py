"""One step of each loop against a reference of its own, loss by loss, and what the loops hand to their steps.

The optimiser is plain gradient descent with a rate of 1, so that a parameter's change is minus its gradient: Adam's
first step would hide every factor. Small residues are float32's rounding; a wrong pair or sign is of order 1.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from attnad import train
from attnad.augmentations import synthesize
from attnad.config import ADGANConfig, AttentionConfig, AugmentConfig, PaperConfig
from attnad.models import ADGAN, AttentionNetwork, Discriminator
from attnad.train import MovingAverage, adgan_step, attention_step, train_adgan, train_attention

N, SIZE = 6, 32
OFF = {"adv_ano_weight": 0.0, "adv_weight": 0.0, "g_weight": 0.0, "att_weight": 0.0, "kl_weight": 0.0}
STAGE1 = AttentionConfig(encoder="resnet18", width=4, latent=3)
GAMES = [
    {"att_weight": 1.0}, {"g_weight": 1.0}, {"g_weight": 1.0, "kl_weight": 1.0}, {"adv_weight": 1.0},
    {"adv_ano_weight": 1.0}, {"adv_weight": 0.7, "adv_ano_weight": 0.2, "g_weight": 3.0, "kl_weight": 0.5,
                              "att_weight": 2.0},
]  # fmt: skip


def draw(seed: int = 0) -> dict[str, Tensor]:
    """A batch: normal images, synthetic anomalies of them with their true maps, and other maps."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand((N, 3, SIZE, SIZE), generator=generator)
    x_ano, a_ano = synthesize(x, AugmentConfig(whole_share=0.3), generator)
    maps = torch.rand((2 * N, 1, SIZE, SIZE), generator=generator)
    return {"x": x, "x_ano": x_ano, "a_ano": a_ano, "maps": maps}


def descent(*modules: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for m in modules for p in m.parameters() if p.requires_grad], lr=1.0)


def is_real(logits: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))


def is_fake(logits: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits))


def assert_same(one: nn.Module, other: nn.Module, before: nn.Module, *, moved: bool) -> None:
    """All tensors of two modules agree, and they have left `before` or not, as said."""
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}")
    changes = [
        (a - b).abs().max() for a, b in zip(one.parameters(), before.parameters(), strict=True) if a.requires_grad
    ]
    assert (max(changes) > 1e-4) == moved


@pytest.fixture(scope="module")
def stage1() -> tuple[AttentionNetwork, Discriminator]:
    torch.manual_seed(0)
    network, discriminator = AttentionNetwork(STAGE1).train(), Discriminator(4, SIZE, 4).train()
    for parameter in discriminator.parameters():
        parameter.data *= 3  # spectral norm takes it out again of the weights; biases keep it
    return network, discriminator


@pytest.mark.parametrize("reconstruct", [True, False])
@pytest.mark.parametrize("game", GAMES, ids=lambda game: "+".join(game))
def test_a_step_of_stage_1_is_equations_1_to_5(stage1, game, reconstruct):
    stage, b = replace(STAGE1, **OFF | game, reconstruct_anomalies=reconstruct), draw()
    w = {name: getattr(stage, name) for name in OFF}
    noise = torch.randn((2 * N, 3, 2, 2), generator=torch.Generator().manual_seed(1))
    g, d = deepcopy(stage1)
    losses = attention_step(g, d, descent(g), descent(d), stage, b["x"], b["x_ano"], b["a_ano"], noise)

    g_ref, d_ref = deepcopy(stage1)
    step_g, step_d = descent(g_ref), descent(d_ref)
    one = torch.ones(N, 1, SIZE, SIZE)
    out = g_ref(torch.cat([b["x"], b["x_ano"]]), noise)
    made = {"normal": (out.x_re[:N], out.a_gen[:N]), "anomalous": (out.x_re[N:], out.a_gen[N:])}
    pairs = {
        "real": (b["x"], one), "real_ano": (b["x_ano"], b["a_ano"]),
        "fake": made["normal"], "fake_ano": made["anomalous"],
    }  # fmt: skip

    def judged(names: list[str], *, detach: bool) -> dict[str, Tensor]:
        both = torch.cat([torch.cat(pairs[name], 1) for name in names])  # one call: spectral norm moves with each
        return dict(zip(names, d_ref(both.detach() if detach else both).chunk(len(names)), strict=True))

    l_d, l_adv, l_adv_ano = torch.zeros(()), torch.zeros(()), torch.zeros(())
    played = bool(w["adv_weight"] or w["adv_ano_weight"])
    if played:
        said = judged(list(pairs), detach=True)
        if w["adv_weight"]:
            l_d = l_d + is_real(said["real"]) + is_fake(said["fake"])
        if w["adv_ano_weight"]:
            l_d = l_d + is_real(said["real_ano"]) + is_fake(said["fake_ano"])
        step_d.zero_grad()
        l_d.backward()
        step_d.step()
        said = judged(["fake", "fake_ano"], detach=False)
        l_adv, l_adv_ano = is_real(said["fake"]), is_real(said["fake_ano"])
    inputs, rebuilt = (b["x"], out.x_re[:N]) if not reconstruct else (torch.cat([b["x"], b["x_ano"]]), out.x_re)
    n = len(inputs)
    posterior = Normal(out.mean[:n], (0.5 * out.log_variance[:n]).exp())
    kl = kl_divergence(posterior, Normal(torch.zeros(()), torch.ones(()))).mean()
    l_g = F.mse_loss(rebuilt, inputs) / 2 + w["kl_weight"] * kl
    l_att = F.mse_loss(made["normal"][1], one) + F.mse_loss(made["anomalous"][1], b["a_ano"])
    total = w["adv_ano_weight"] * l_adv_ano + w["adv_weight"] * l_adv + w["g_weight"] * l_g + w["att_weight"] * l_att
    step_g.zero_grad()
    total.backward()
    step_g.step()

    torch.testing.assert_close(losses, torch.stack([l_d, l_adv, l_adv_ano, l_g, l_att]).detach())
    assert_same(g, g_ref, stage1[0], moved=True)
    assert_same(d, d_ref, stage1[1], moved=played)
    assert not losses.requires_grad
    assert all(p.requires_grad for p in d.parameters()), "D1 must be free again after G1's turn"


@pytest.mark.parametrize("further", [False, True])
@pytest.mark.parametrize("train_features", [False, True])
@pytest.mark.parametrize("weight", [0.0, 3.0])
def test_a_step_of_stage_2_is_a_gan_on_masked_features(stage1, further, train_features, weight):
    stage = ADGANConfig(reconstruction_weight=weight, train_features=train_features, ema=0.75)
    torch.manual_seed(1)
    start = ADGAN(stage1[0].encoder, STAGE1, SIZE).train()
    start.features.requires_grad_(train_features).train(train_features)
    b = draw(2)
    fakes = (b["x_ano"], b["maps"][N:]) if further else None

    adgan = deepcopy(start)
    average = MovingAverage(train.discriminator_of(adgan), stage.ema, torch.device("cpu"))
    steps = descent(adgan.encoder, adgan.decoder), descent(adgan.features, adgan.discriminator)
    for _ in range(2):  # the average begins at the second step
        losses = adgan_step(adgan, average, *steps, stage, b["x"], b["maps"][:N], fakes)

    ref = deepcopy(start)
    step_g, step_d = descent(ref.encoder, ref.decoder), descent(ref.features, ref.discriminator)
    judges = []
    for _ in range(2):

        def masked(x: Tensor, a: Tensor) -> Tensor:  # eq. (6), a feature to the mean of the 2 x 2 pixels under it
            return ref.features(x) * F.interpolate(a, scale_factor=0.5, mode="area")

        real, wrong = masked(b["x"], b["maps"][:N]), [masked(*fakes)] if fakes else []
        made = ref.decoder(ref.encoder(real.detach()))
        d_real, *d_fake = ref.discriminator(torch.cat([real, made.detach(), *wrong])).split(N)
        l_d = is_real(d_real) + is_fake(torch.cat(d_fake))  # groups of one size: their mean is the mean of all
        step_d.zero_grad()
        l_d.backward()
        step_d.step()
        judges.append({k: v.detach().clone() for k, v in train.discriminator_of(ref).named_parameters()})
        l_adv, l_r = is_real(ref.discriminator(made)), F.mse_loss(made, real.detach()) / 2
        step_g.zero_grad()
        (l_adv + weight * l_r).backward()
        step_g.step()

    torch.testing.assert_close(losses, torch.stack([l_d, l_adv, l_r]).detach(), rtol=1e-4, atol=1e-5)
    assert_same(adgan, ref, start, moved=True)
    if train_features:
        assert_same(adgan.features, ref.features, start.features, moved=True)
    for name, value in average.module.named_parameters():
        torch.testing.assert_close(value, 0.75 * judges[0][name] + 0.25 * judges[1][name], rtol=1e-3, atol=2e-5)
    assert all(p.requires_grad for p in adgan.discriminator.parameters())


def test_the_moving_average_is_pytorchs_to_the_bit(stage1):
    for decay in (0.0, 0.9, 0.99, 1.0):
        torch.manual_seed(0)
        adgan = ADGAN(stage1[0].encoder, STAGE1, SIZE)
        judge = train.discriminator_of(adgan)
        ours, theirs = (
            MovingAverage(judge, decay, torch.device("cpu")),
            AveragedModel(judge, multi_avg_fn=get_ema_multi_avg_fn(decay)),
        )
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        for _ in range(4):
            for value in judge.state_dict().values():
                value.copy_(torch.randn(value.shape) if value.is_floating_point() else value + 1)
            ours.update_parameters(judge)
            theirs.update_parameters(judge)
            for one, other in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
                assert torch.equal(one, other)


# --- what the loops hand over ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Images that can be told apart by their mean."""
    noise = torch.randint(0, 20, (10, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(0))
    return (noise + 20 * torch.arange(10)[:, None, None, None]).byte()


def which(x: Tensor) -> list[int]:
    """Numbers of the fixture's images in a batch of floats."""
    return ((255 * x.mean((1, 2, 3)) - 9.5) / 20).round().int().tolist()


CONFIG = PaperConfig(
    size=SIZE, augment=AugmentConfig(whole_share=0.3), attention=replace(STAGE1, epochs=2, batch=3),
    adgan=ADGANConfig(epochs=2, batch=3, synthetic_fakes=True),
)  # fmt: skip


def spy(monkeypatch, name: str) -> list[tuple]:
    """Keep the arguments of each call of a step, and carry it out."""
    calls, step = [], getattr(train, name)

    def kept(*arguments):
        calls.append(arguments)
        return step(*arguments)

    monkeypatch.setattr(train, name, kept)
    return calls


def test_each_epoch_of_stage_1_sees_each_image_once_with_anomalies_made_of_it(images, monkeypatch):
    calls = spy(monkeypatch, "attention_step")
    train_attention(CONFIG, images, device=torch.device("cpu"), progress=False)
    assert len(calls) == 6
    seen = [which(call[5]) for call in calls]
    for epoch in (seen[:3], seen[3:]):
        assert len({i for batch in epoch for i in batch}) == 9, "nine of the ten images fill three batches"
    assert seen[:3] != seen[3:]
    noises = torch.stack([call[8] for call in calls])
    assert noises.shape == (6, 6, 3, 2, 2)
    assert abs(noises.mean()) < 0.15  # 432 values: three standard errors
    assert abs(noises.std() - 1) < 0.15
    for _, _, _, _, stage, x, x_ano, a_ano, _ in calls:
        assert stage == CONFIG.attention
        torch.testing.assert_close(x * 255, (x * 255).round())
        assert ((x == x_ano) | (a_ano == 0)).all(), "outside of its map's hole an anomaly is its image"
        changed = (x != x_ano).any(1, keepdim=True)
        assert (changed & (a_ano == 0)).flatten(1).any(1).all(), "each anomaly differs from its image"


def test_each_step_of_stage_2_gets_the_maps_of_its_own_images(images, monkeypatch):
    torch.manual_seed(0)
    network = AttentionNetwork(STAGE1).train()
    for _ in range(30):  # batch statistics that fit the images, so that their maps differ
        network(images / 255)
    network.eval().attention_head[-1].weight.data *= 10
    maps = train.attention_maps(network, images)
    assert (maps[1:] - maps[:-1]).abs().amax((1, 2, 3)).min() > 0.01
    calls = spy(monkeypatch, "adgan_step")
    train_adgan(CONFIG, images, network, device=torch.device("cpu"), progress=False)
    assert len(calls) == 6
    assert len({i for call in calls[:3] for i in which(call[5])}) == 9
    for _, _, _, _, stage, x, a_gen, (x_ano, a_ano) in calls:
        assert stage == CONFIG.adgan
        with torch.no_grad():
            torch.testing.assert_close(a_gen, network(x).a_gen)
            torch.testing.assert_close(a_ano, network(x_ano).a_gen)
        assert (x_ano != x).flatten(1).any(1).all()
