"""Autoencoders with an L2 or a structural-similarity loss: recipes `ae-l2` and `ae-ssim`.

An autoencoder squeezes normal images through few numbers and learns to give them back. What it has never seen it gives
back as something normal, so that a defect is where image and reconstruction differ:

    L_2(x, x') = sum over pixels of (x - x')^2,    m = (x - x')^2 at each pixel
    L_SSIM(x, x') = mean over pixels of 1 - SSIM(x, x'),    m = 1 - SSIM
    SSIM = (2 mu mu' + c1) (2 cov + c2) / ((mu^2 + mu'^2 + c1) (var + var' + c2))

with means, variances and covariance over a window of 11 x 11 pixels: luminance, contrast and structure of two patches
rather than single grey values. Source: Bergmann et al. 2019, "Improving unsupervised defect segmentation by applying
structural similarity to autoencoders"; SSIM: Wang et al. 2004, "Image quality assessment: from error visibility to
structural similarity". See R1 to R4 as well.

R5. The original cuts textures into patches of 128 x 128 and averages overlapping maps; here the image is taken whole.
R6. L2 is a mean over pixels, not a sum, which is the same minimum at another step size.
R7. Its constants c1 = 0.01 and c2 = 0.03 are read as Wang et al.'s K1 and K2: c = (K L)^2, where L = 1 is the range.
R8. SSIM is taken of each colour channel and averaged; the original's images are grey where it matters (not checked).
R9. Windows are uniform, and at the edge of the map the last full window counts.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from attnad.detectors.baselines.networks import decoder, encoder
from attnad.detectors.network import LatentConfig, NetworkDetector, Prediction

WINDOW = 11


def squared_error(x: Tensor, x_re: Tensor) -> Tensor:
    """L2 at each pixel, the mean over channels: [n, c, s, s] twice to [n, s, s]; its mean is the loss (R6)."""
    return (x - x_re).square().mean(1)


def dissimilarity(x: Tensor, x_re: Tensor, *, window: int = WINDOW) -> Tensor:
    """1 - SSIM around each pixel whose window fits, the mean over channels; its mean is the loss.

    Takes images [n, c, s, s] in [0, 1]; returns [n, s - window + 1, s - window + 1] in [0, 2].
    Source: Wang et al. 2004, eq. (13).
    """
    c1, c2 = 0.01**2, 0.03**2
    side = x.shape[-1]
    band = x.new_ones(side - window + 1, side).tril(window - 1).triu() / window  # a window's mean in each row
    stacked = torch.cat([x, x_re, x * x, x_re * x_re, x * x_re], 1).contiguous()
    windows = band @ stacked @ band.T
    mean, mean_re, square, square_re, product = windows.chunk(5, 1)
    variance, variance_re, covariance = square - mean**2, square_re - mean_re**2, product - mean * mean_re
    luminance = (2 * mean * mean_re + c1) / (mean**2 + mean_re**2 + c1)
    return (1 - luminance * (2 * covariance + c2) / (variance + variance_re + c2)).mean(1)


class AutoencoderL2(NetworkDetector):
    """Recipe `ae-l2`."""

    def __init__(self, config: LatentConfig):
        super().__init__(config)
        self.encoder = encoder(config.size, config.width, config.latent)
        self.decoder = decoder(config.size, config.width, config.latent)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))

    def losses(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        return (squared_error(x, self(x)).mean(),)

    def predict_maps(self, x: Tensor) -> Prediction:
        x_re = self(x)
        return Prediction(squared_error(x, x_re), x_re=x_re)


class AutoencoderSSIM(AutoencoderL2):
    """Recipe `ae-ssim`: the same network."""

    def losses(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        return (dissimilarity(x, self(x)).mean(),)

    def predict_maps(self, x: Tensor) -> Prediction:
        x_re = self(x)
        inner = dissimilarity(x, x_re).clamp(min=0)  # rounding may leave a little less
        return Prediction(pad(inner[:, None], [WINDOW // 2] * 4, mode="replicate")[:, 0], x_re=x_re)
