"""Waiting for what another process or a page does: for an event, never for a time, however busy the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable

# Seconds. It measures nothing, and ends a test that would hang for ever: where each core has several other programs to
# run, the slowest of what is waited for takes a tenth of it.
PATIENCE = 600


def until(holds: Callable[[], bool], going: Callable[[], bool] = lambda: True, why: str = "") -> None:
    """Wait until something holds; fails where what is to bring it about goes on no more, or PATIENCE is at its end."""
    give_up = time.monotonic() + PATIENCE
    while True:
        last = not going() or time.monotonic() > give_up  # asked first: its last deed counts
        if holds():
            return
        assert not last, f"it never came to what was waited for. {why}"
        time.sleep(0.01)
