"""Attention map-guided two-stage anomaly detection: the package under the book."""

__version__ = "0.1.0"
