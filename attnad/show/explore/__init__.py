"""Widgets to explore attention maps with, in Jupyter with a kernel and on a static page without one.

What a widget does is in the JavaScript beside this file; Python hands over the data and can read and set its state.
"""

from attnad.show.explore.best import BestDiscriminator
from attnad.show.explore.explorer import AttentionExplorer
from attnad.show.explore.paint import PaintDefect
from attnad.show.explore.synthesis import Synthesis
from attnad.show.explore.threshold import ScoreThreshold

__all__ = ["AttentionExplorer", "BestDiscriminator", "PaintDefect", "ScoreThreshold", "Synthesis"]
