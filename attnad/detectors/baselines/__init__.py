"""The systems that the paper's tables set beside its own: one file each, on `attnad.detectors.network`."""
