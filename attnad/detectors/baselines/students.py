"""Uninformed students: recipe `student`.

A teacher's features describe each patch of an image. Students see normal images alone and learn to predict them. On a
defect they err, and each in its own way, since nothing told them what to say there:

    L(S) = mean over places of |S(x) - T(x)|^2
    e = |mean of the students - T(x)|^2,    v = mean over students of |S_i(x)|^2 - |mean of the students|^2
    m = (e - mean of e) / deviation of e + (v - mean of v) / deviation of v

T(x) is normalised by its mean and deviation over normal images, channel by channel. Source: Bergmann et al. 2020,
"Uninformed students: student-teacher anomaly detection with discriminative latent embeddings". See R1 to R3 as well.

R13. The teacher is EfficientNet-Lite0 with ImageNet's weights, at stride 4. The original teaches a network for patches,
     from a ResNet-18 trained on ImageNet and with metric learning.
R14. One size of patches; the original averages those of 17, 33 and 65 pixels.
R15. The students are small convolutional networks, not of the teacher's architecture.
R16. The means of e and v, the same for all pixels, are not subtracted, so that m >= 0: the order stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from attnad.config import AttentionConfig
from attnad.detectors.network import NetworkConfig, NetworkDetector, Prediction
from attnad.models import build_encoder
from attnad.train import to_float
from attnad.training.state import FitOptions

LEVEL = 1  # of the teacher's strides 2, 4, 8 and 16


@dataclass(frozen=True)
class StudentsConfig(NetworkConfig):
    """All that decides the scores of `student`."""

    encoder: Literal["efficientnet-lite0", "resnet18-imagenet"] = "efficientnet-lite0"
    """The teacher, with ImageNet's weights (R13)."""
    students: int = 3
    """How many students there are."""
    width: int = 32
    """Channels of a student's first layer (R15)."""


def regression_error(students: Tensor, target: Tensor) -> Tensor:
    """e at each place: predictions [m, n, c, h, w] and the teacher's features [n, c, h, w] to [n, h, w]."""
    return (students.mean(0) - target).square().sum(1)


def uncertainty(students: Tensor) -> Tensor:
    """v at each place, the students' variance summed over channels: [m, n, c, h, w] to [n, h, w]."""
    return (students.square().mean(0) - students.mean(0).square()).sum(1).clamp(min=0)


def student_loss(students: Tensor, target: Tensor) -> Tensor:
    """Mean of L over the students: [m, n, c, h, w] and [n, c, h, w] to a scalar, the mean over places."""
    return (students - target).square().sum(2).mean()


class Students(NetworkDetector):
    """Recipe `student`."""

    config_type = StudentsConfig
    ranges = (("students", "from 2 to 16", lambda v: 2 <= v <= 16),)

    def __init__(self, config: StudentsConfig):
        super().__init__(config)
        encoder = build_encoder(AttentionConfig(encoder=config.encoder), pretrained=False)
        self.teacher = encoder.requires_grad_(False)
        channels, w = encoder.channels[LEVEL], config.width
        self.students = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(3, w, 3, 2, 1), nn.BatchNorm2d(w), nn.ReLU(),
                nn.Conv2d(w, 2 * w, 3, 2, 1), nn.BatchNorm2d(2 * w), nn.ReLU(),
                nn.Conv2d(2 * w, 2 * w, 3, 1, 1), nn.BatchNorm2d(2 * w), nn.ReLU(),
                nn.Conv2d(2 * w, channels, 1),
            )
            for _ in range(config.students)
        )  # fmt: skip
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("deviation", torch.ones(channels, 1, 1))
        self.register_buffer("spread", torch.ones(2))  # deviations of e and v

    def train(self, mode: bool = True) -> Students:
        super().train(mode)
        self.teacher.eval()
        return self

    def begin(self, images: Tensor, options: FitOptions) -> None:
        pretrained = build_encoder(AttentionConfig(encoder=self.config.encoder))
        self.teacher.load_state_dict(pretrained.state_dict())
        features = torch.cat([self.target(to_float(part)) for part in images.split(64)])
        self.mean.copy_(features.mean((0, 2, 3))[:, None, None])
        self.deviation.copy_(features.std((0, 2, 3))[:, None, None].clamp(min=1e-6))

    @torch.no_grad()
    def target(self, x: Tensor) -> Tensor:
        """Normalised features of the teacher: [n, c, s / 4, s / 4]."""
        return (self.teacher.pyramid(x)[LEVEL] - self.mean) / self.deviation

    def predict(self, x: Tensor) -> Tensor:
        """What each student says: [m, n, c, s / 4, s / 4]."""
        return torch.stack([student(x) for student in self.students])

    def losses(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        return (student_loss(self.predict(x), self.target(x)),)

    def finish(self, images: Tensor) -> None:
        parts = [(self.predict(x), self.target(x)) for x in map(to_float, images[:64].split(16))]
        both = torch.stack([torch.cat([regression_error(s, t) for s, t in parts]),
                            torch.cat([uncertainty(s) for s, _ in parts])])  # fmt: skip
        self.spread.copy_(both.flatten(1).std(1).clamp(min=1e-6))
        super().finish(images)

    def predict_maps(self, x: Tensor) -> Prediction:
        said = self.predict(x)
        m = regression_error(said, self.target(x)) / self.spread[0] + uncertainty(said) / self.spread[1]
        return Prediction(interpolate(m[:, None], size=x.shape[-2:], mode="bilinear")[:, 0])
