"""Widgets to explore attention maps with, in Jupyter with a kernel and on a static page without one.

All that a widget does is in the JavaScript beside this file; Python hands over the data and can read and set its state.
"""

from attnad.explore.explorer import AttentionExplorer

__all__ = ["AttentionExplorer"]
