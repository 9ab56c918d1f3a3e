"""Facts of the machine, which stand beside what was measured on it."""

from __future__ import annotations

import os
from datetime import datetime, timezone
from typing import Any

import torch

from attnad import __version__


def machine_facts(device: torch.device) -> dict[str, Any]:
    """What is to be known of the machine beside a measured figure, and the time."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "instructions": _instructions(),
        "memory_format": "channels last",  # of networks and images, everywhere: see `to_float`
        "torch": torch.__version__,
        "attnad": __version__,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _instructions() -> str:
    """The processor's instructions that PyTorch chose, and what oneDNN was told to keep to, if it was."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA")
    return torch.backends.cpu.get_cpu_capability() + (f", oneDNN up to {limit}" if limit else "")
