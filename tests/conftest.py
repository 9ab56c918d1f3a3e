"""The tests' networks are tiny: one thread is fastest, above all on a busy machine."""

import multiprocessing
import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported


def pytest_collection_finish() -> None:
    """Processes are forked from a server that has imported all they need once: seconds less for each."""
    modules = [name for name in ("test_experiments", "test_faults", "test_run") if name in sys.modules]
    if "forkserver" in multiprocessing.get_all_start_methods():
        multiprocessing.get_context("forkserver").set_forkserver_preload(["attnad.cli", "skimage.data", *modules])
