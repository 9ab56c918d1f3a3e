"""The best discriminator between a Gaussian in the plane and the same with noise, which is a distance."""

from __future__ import annotations

import math

import numpy as np
import traitlets

from attnad.widgets.front import Widget, module, style

REAL, FAKE = "#0072B2", "#E69F00"  # Okabe and Ito's, told apart by colour-blind eyes


class BestDiscriminator(Widget):
    """Move a point, the shape of the real features and the noise; read both densities, their log-ratio and distances.

    x, y: the point, each in -6 to 6. stretch: the ratio of the real features' two variances, 1 to 4, whose
    product is 1. angle: of the longer axis, 0 to 180 degrees. noise: its deviation in whitened features, 0.5 to 3.
    """

    _esm = module("best")
    _css = style()

    x = traitlets.Float(2.0).tag(sync=True)
    y = traitlets.Float(2.0).tag(sync=True)
    stretch = traitlets.Float(3.0, min=1, max=4).tag(sync=True)
    angle = traitlets.Float(30.0, min=0, max=180).tag(sync=True)
    noise = traitlets.Float(1.5, min=0.5, max=3).tag(sync=True)

    _facts = traitlets.Dict().tag(sync=True)

    def __init__(self, **state):
        rng = np.random.default_rng(0)
        facts = {
            "real": rng.normal(size=(150, 2)).round(3).tolist(),
            "noise": rng.normal(size=(150, 4)).round(3).tolist(),
        }
        super().__init__(_facts=facts, **state)

    def logit(self) -> float:
        """The best discriminator's logit at the point: the log-ratio of both densities."""
        u, v = np.linalg.solve(self._shape(), [self.x, self.y])
        wide = 1 + self.noise**2
        return math.log(wide) - (u**2 + v**2) * (1 - 1 / wide) / 2

    def _shape(self) -> np.ndarray:
        """From whitened features to features: [2, 2]."""
        turn, long = math.radians(self.angle), self.stretch**0.5
        rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
        return rotation @ np.diag([long, 1 / long])

    def _still(self) -> np.ndarray:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        shape, noise = self._shape(), np.array(self._facts["noise"])
        figure = Figure((6.4, 4.4), layout="constrained")
        canvas, ax = FigureCanvasAgg(figure), figure.subplots()
        fakes = noise[:, :2] + self.noise * noise[:, 2:]
        for points, colour, label in (
            (fakes, FAKE, "fakes: with noise"),
            (np.array(self._facts["real"]), REAL, "real"),
        ):
            ax.plot(*shape @ points.T, ".", color=colour, label=label)
        around = np.linspace(0, 2 * math.pi, 73)
        for d in (1, 2, 3):
            ax.plot(*shape @ (d * np.array([np.cos(around), np.sin(around)])), color="grey", linewidth=0.8)
        ax.plot(self.x, self.y, "o", color="black", label=f"a point: logit {self.logit():.2f}")
        ax.set(xlim=(-6, 6), ylim=(-6, 6), aspect="equal")
        ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3]
