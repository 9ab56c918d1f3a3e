"""Widgets to explore attention maps with, in Jupyter with a kernel and on a static page without one.

What a widget does is in the JavaScript beside this file; Python hands over the data and can read and set its state.
"""

from attnad.widgets.best import BestDiscriminator
from attnad.widgets.explorer import AttentionExplorer
from attnad.widgets.paint import PaintDefect
from attnad.widgets.synthesis import Synthesis
from attnad.widgets.threshold import ScoreThreshold

__all__ = ["AttentionExplorer", "BestDiscriminator", "PaintDefect", "ScoreThreshold", "Synthesis"]
