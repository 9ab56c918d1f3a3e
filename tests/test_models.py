"""The networks of both stages: shapes, ranges, and what each may and may not do."""

from __future__ import annotations

import pytest
import torch
from made import images, randomize, seeded
from torch import nn

from attnad.config import AttentionConfig
from attnad.losses import masked_features
from attnad.models import (
    ADGAN,
    AttentionNetwork,
    Discriminator,
    ResNet18,
    pair,
)

TINY = AttentionConfig(encoder="resnet18", width=4, latent=3)
LITE0 = AttentionConfig(encoder="efficientnet-lite0", width=4, latent=3)

SIZES = [32, 64, 96, 256]


# The attention network


@pytest.mark.parametrize("size", SIZES)
def test_attention_network_shapes_and_ranges(size):
    network = seeded(lambda: AttentionNetwork(TINY))
    x = images(2, size)
    with torch.no_grad():
        out = network(x, torch.ones(network.latent_shape(x)))
    assert out.x_re.shape == x.shape
    assert out.a_gen.shape == (2, 1, size, size)
    assert out.mean.shape == out.log_variance.shape == network.latent_shape(x) == (2, 3, size // 16, size // 16)
    for part in (out.x_re, out.a_gen):
        assert 0 <= part.min() < part.max() <= 1


def test_attention_network_on_lite0(lite0):
    network = seeded(lambda: AttentionNetwork(LITE0))
    for name, value in network.encoder.state_dict().items():
        assert torch.equal(value, lite0.state_dict()[name])
    out = network.eval()(images(1, 64, 96))
    assert out.x_re.shape == (1, 3, 64, 96)
    assert out.mean.shape == (1, 3, 4, 6)


@pytest.mark.parametrize(("height", "width"), [(40, 40), (32, 40), (100, 96)])
def test_sizes_that_do_not_fit_are_refused(height, width):
    with pytest.raises(ValueError, match=f"{height}x{width}.*multiples of 16"):
        AttentionNetwork(TINY)(images(1, height, width))


def test_without_noise_the_network_is_deterministic():
    network = seeded(lambda: AttentionNetwork(TINY)).eval()
    x = images(2, 32)
    first, second = network(x), network(x)
    zero = network(x, torch.zeros(network.latent_shape(x)))
    noisy = network(x, torch.ones(network.latent_shape(x)))
    for a, b, c in zip(first, second, zero, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c)
    assert not torch.equal(noisy.x_re, first.x_re)
    assert torch.equal(noisy.mean, first.mean)
    assert torch.equal(noisy.log_variance, first.log_variance)


def test_the_latent_is_the_gaussian_that_the_outputs_name():
    """What enters the decoder has the mean and the variance that `mean` and `log_variance` say."""
    network = seeded(lambda: AttentionNetwork(TINY)).eval()
    network.to_latent.bias.data += torch.tensor([1.0, -1.0, 0.5, 0.0, 1.0, -2.0])
    seen = []
    network.decoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    n = 4000
    x = images(1, 16).expand(n, -1, -1, -1)
    with torch.no_grad():
        encoded = network.encoder(x[:1]).expand(n, -1, -1, -1)
        network.encoder.forward = lambda x: encoded  # the same image each time: encode it once
        out = network(x, torch.randn(network.latent_shape(x), generator=torch.Generator().manual_seed(1)))
    (z,) = seen
    std = (0.5 * out.log_variance[0]).exp()
    assert ((z.mean(0) - out.mean[0]) / std).abs().max() < 4.5 * n**-0.5
    assert (z.std(0) / std - 1).abs().max() < 4.5 * (2 * n) ** -0.5
    assert std.max() / std.min() > 2


def test_a_wild_latent_stays_finite():
    network = seeded(lambda: AttentionNetwork(TINY)).eval()
    network.to_latent.bias.data[3:] = 1e4
    x = images(1, 32)
    out = network(x, torch.ones(network.latent_shape(x)))
    assert out.log_variance.exp().isfinite().all()
    assert out.x_re.isfinite().all()


def test_a_frozen_encoder_keeps_weights_and_batch_statistics():
    network = seeded(
        lambda: AttentionNetwork(AttentionConfig(encoder="resnet18", width=4, latent=3, freeze_encoder=True))
    )
    network.train()
    before = {k: v.clone() for k, v in network.encoder.state_dict().items()}
    decoder = network.decoder[1].running_mean.clone()
    out = network(images(2, 32))
    (out.x_re.sum() + out.a_gen.sum()).backward()
    assert all(p.grad is None for p in network.encoder.parameters())
    assert all(torch.equal(v, before[k]) for k, v in network.encoder.state_dict().items())
    assert not torch.equal(network.decoder[1].running_mean, decoder), "the decoder's statistics must move"
    assert all(p.grad is not None for p in [*network.to_latent.parameters(), *network.decoder.parameters()])
    assert network.decoder.training
    assert not network.encoder.training


def test_a_free_encoder_learns():
    network = seeded(lambda: AttentionNetwork(TINY)).train()
    before = network.encoder.bn1.running_mean.clone()
    out = network(images(2, 32), torch.ones(2, 3, 2, 2))
    (out.x_re.sum() + out.a_gen.sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.encoder.parameters())
    assert not torch.equal(network.encoder.bn1.running_mean, before)
    assert network.encoder.training


# Discriminators


@pytest.mark.parametrize("size", [16, *SIZES, 48, 80])
def test_discriminators_give_a_logit_for_each_image(size):
    discriminator = seeded(lambda: Discriminator(4, size, 4)).eval()
    x = images(3, size)
    with torch.no_grad():
        logits = discriminator(pair(x, x[:, :1]))
        alone = torch.cat([discriminator(pair(x[i : i + 1], x[i : i + 1, :1])) for i in range(3)])
    assert logits.shape == (3,)
    torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-5)  # no image depends on its batch
    assert logits.unique().numel() == 3
    channels = [layer.out_channels for layer in discriminator.layers if isinstance(layer, nn.Conv2d)]
    left = size // 2 ** (len(channels) - 1)  # what the halvings leave of the size
    assert left in (3, 4, 5)
    assert discriminator.layers[-1].kernel_size == (left, left)
    assert channels == [4, 8, 16, 32, 32, 32][: len(channels) - 1] + [1]


def test_a_discriminator_refuses_another_size():
    with pytest.raises(RuntimeError):
        Discriminator(4, 32, 4)(torch.rand(2, 4, 64, 64))


def test_pair_puts_the_map_behind_the_image():
    x, a = images(2, 16), images(2, 16, seed=1)[:, :1]
    both = pair(x, a)
    assert torch.equal(both[:, :3], x)
    assert torch.equal(both[:, 3:], a)


def test_spectral_norm_holds():
    discriminator = seeded(lambda: Discriminator(4, 32, 8)).train()
    layers = [layer for layer in discriminator.layers if isinstance(layer, nn.Conv2d)]
    with torch.no_grad():
        for seed, layer in enumerate(layers):
            original = layer.parametrizations.weight.original
            original.copy_(7 * torch.randn(original.shape, generator=torch.Generator().manual_seed(seed)))
        for _ in range(40):
            discriminator(torch.rand(1, 4, 32, 32))
    discriminator.eval()
    for layer in layers:
        largest = torch.linalg.svdvals(layer.weight.flatten(1))[0].item()
        assert largest == pytest.approx(1, abs=0.05)


# ADGAN


@pytest.mark.parametrize("size", SIZES)
def test_adgan_shapes(size):
    encoder = seeded(lambda: ResNet18(4))
    adgan = seeded(lambda: ADGAN(encoder, TINY, size)).eval()
    x = images(2, size)
    with torch.no_grad():
        f_nor = adgan.masked(x, torch.rand(2, 1, size, size))
        f_gen = adgan.generate(f_nor)
        assert adgan.discriminator(f_nor).shape == (2,)
    assert f_nor.shape == f_gen.shape == (2, adgan.features.out_channels, size // 2, size // 2)
    assert f_nor.min() >= 0
    assert f_gen.min() >= 0


def test_f_img_is_the_encoders_first_two_convolutions():
    encoder = randomize(ResNet18(4)).eval()
    adgan = seeded(lambda: ADGAN(encoder, TINY, 32)).eval()
    x = images(2, 32)
    with torch.no_grad():
        y = torch.relu(encoder.bn1(encoder.conv1((x - encoder.mean) / encoder.std)))
        block = encoder.layer1[0]
        y = torch.relu(block.bn1(block.conv1(y)))
        torch.testing.assert_close(adgan.features(x), y)
        a_gen = torch.rand(2, 1, 32, 32)
        torch.testing.assert_close(adgan.masked(x, a_gen), masked_features(y, a_gen))
        encoder.conv1.weight.zero_()  # a copy: what happens to the encoder later is not its business
        torch.testing.assert_close(adgan.features(x), y)
    assert sum(isinstance(layer, nn.Conv2d) for layer in adgan.features.layers) == 2


def test_adgan_on_lite0(lite0):
    adgan = seeded(lambda: ADGAN(lite0, LITE0, 64)).eval()
    x = images(1, 64)
    with torch.no_grad():
        block = lite0.body.blocks[0][0]
        y = lite0.body.bn1(lite0.body.conv_stem((x * 255 - 127) / 128))
        y = block.bn1(block.conv_dw(y))
        f_img = adgan.features(x)
        torch.testing.assert_close(f_img, y, rtol=1e-3, atol=1e-3)
        assert f_img.shape == (1, adgan.features.out_channels, 32, 32)
        assert f_img.min() >= 0
        assert adgan.generate(f_img).shape == f_img.shape


def test_a_map_of_zeros_leaves_no_feature_and_a_map_of_ones_all():
    adgan = seeded(lambda: ADGAN(ResNet18(4), TINY, 32)).eval()
    x = images(2, 32)
    with torch.no_grad():
        assert adgan.masked(x, torch.zeros(2, 1, 32, 32)).abs().max() == 0
        assert torch.equal(adgan.masked(x, torch.ones(2, 1, 32, 32)), adgan.features(x))
        half = torch.ones(2, 1, 32, 32)
        half[..., 16:] = 0
        f_nor = adgan.masked(x, half)
    assert f_nor[..., 8:].abs().max() == 0
    assert f_nor[..., :8].abs().max() > 0
