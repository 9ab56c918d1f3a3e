"""Flags that several commands have."""

from pathlib import Path
from typing import Annotated

import tyro

Device = Annotated[str, tyro.conf.arg(help="auto (CUDA, else MPS, else CPU), or a PyTorch device such as cuda:1.")]
DataRoot = Annotated[Path | None, tyro.conf.arg(help="Where data sets live; else $ATTNAD_DATA, else ~/.cache/attnad.")]
