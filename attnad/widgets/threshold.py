"""A threshold over histograms of image scores: who is flagged, and what that means for each group of images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import traitlets

from attnad.widgets.front import Widget, module, style

COLOURS = ("#0072B2", "#E69F00", "#CC79A7", "#009E73", "#D55E00")  # Okabe and Ito's, told apart by colour-blind eyes


class ScoreThreshold(Widget):
    """Move a threshold over the histograms of image scores; an image is flagged when its score is above it.

    scores: n finite numbers, higher = more anomalous.
    groups: n names, at most five different; those called `normal` should not be flagged, all others should. `normal`
        has the first colour, the others follow in the order in which they come.
    fixed: the threshold that was set in advance, from held-out normal images; it stays marked.

    Raises ValueError, naming the argument, where lengths or values do not fit.
    """

    _esm = module("threshold")
    _css = style()

    threshold = traitlets.Float(help="scores above it are flagged; at first `fixed`").tag(sync=True)

    _facts = traitlets.Dict().tag(sync=True)

    def __init__(self, scores: Sequence[float], groups: Sequence[str], fixed: float, *, normal: str = "good", **state):
        scores, groups, fixed = [float(score) for score in scores], [str(group) for group in groups], float(fixed)
        if len(scores) != len(groups):
            raise ValueError(f"there are {len(scores)} scores and {len(groups)} groups; give one of each per image")
        if not np.isfinite([*scores, fixed]).all():
            raise ValueError("scores or fixed have NaN or an infinite value; give finite numbers")
        kinds = [normal, *(group for group in dict.fromkeys(groups) if group != normal)]  # in order of appearance
        if normal not in groups or not 2 <= len(kinds) <= 5:
            raise ValueError(f"groups are {', '.join(sorted(set(groups)))}; give {normal!r} and one to four others")
        facts = {"scores": scores, "groups": [kinds.index(group) for group in groups], "kinds": kinds, "fixed": fixed}
        facts["colours"] = COLOURS[: len(kinds)]
        super().__init__(_facts=facts, **{"threshold": fixed} | state)

    def _still(self) -> np.ndarray:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        scores, groups = np.array(self._facts["scores"]), np.array(self._facts["groups"])
        figure = Figure((6.4, 2.8), layout="constrained")
        canvas, ax = FigureCanvasAgg(figure), figure.subplots()
        for i, kind in enumerate(self._facts["kinds"]):
            ax.hist(
                scores[groups == i], 40, range=(scores.min(), scores.max()), alpha=0.7, color=COLOURS[i], label=kind
            )
        ax.axvline(self.threshold, color="black", label="threshold")
        ax.set(xlabel="anomaly score", ylabel="images")
        ax.legend(fontsize=8)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3]
