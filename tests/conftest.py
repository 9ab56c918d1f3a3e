"""The tests' networks are tiny: one thread is fastest, above all on a busy machine."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
