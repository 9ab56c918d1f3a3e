"""Training survives on processors with other instructions than this one's, whatever the widths, sizes and batches.

Each process takes a step of both stages for several of them under one set of instructions, with the C library's
checks of its heap where they can be had; a crash, a hang or a value that is not finite names the last one begun. The
whole sweep, each combination in a process of its own, takes an hour: ATTNAD_SWEEP=1 pytest tests/test_machine.py
"""

from __future__ import annotations

import ctypes.util
import itertools
import os
import platform
import subprocess
import sys

import pytest
from waiting import PATIENCE

INSTRUCTIONS = {
    "this machine's": {},
    "AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
    "SSE4.1": {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default"},
}
# Width, size, batch. Narrow, odd and wide; the first two crashed or hung once, in a strided 1x1 convolution.
SOME = {
    "resnet18": [(8, 128, 8), (2, 32, 4), (3, 64, 2), (4, 64, 5), (12, 32, 8), (16, 64, 16), (24, 96, 3), (64, 32, 4),
                 (4, 256, 2)],
    "efficientnet-lite0-random": [(2, 32, 4), (8, 96, 3), (20, 64, 2), (64, 32, 8)],
}  # fmt: skip
WHOLE = os.environ.get("ATTNAD_SWEEP") == "1"
ALL = [
    (encoder, [shape])
    for encoder in SOME
    for shape in itertools.product((2, 3, 4, 6, 8, 12, 16, 24, 32, 64), (32, 64, 96, 128, 256), (2, 5, 8, 32))
    if shape[0] * shape[1] ** 2 * shape[2] <= 64 * 64**2 * 32  # what two cores can do in seconds
]


def take_steps(encoder: str, shapes: list[tuple[int, int, int]]) -> None:
    """One step of both stages for each shape, said before it is taken."""
    import torch

    from attnad.config import ADGANConfig, AttentionConfig, PaperConfig
    from attnad.train import train_adgan, train_attention

    for width, size, batch in shapes:
        print(f"{encoder}, width {width}, {size} px, batch {batch}", flush=True)
        stage1 = AttentionConfig(encoder=encoder, width=width, latent=8, epochs=2, batch=batch)
        config = PaperConfig(
            size=size, attention=stage1, adgan=ADGANConfig(epochs=2, batch=batch, synthetic_fakes=True)
        )
        images = torch.randint(0, 256, (batch, 3, size, size), generator=torch.Generator().manual_seed(0)).byte()
        network, _ = train_attention(config, images, device=torch.device("cpu"), progress=False)
        train_adgan(config, images, network, device=torch.device("cpu"), progress=False)  # raises where not finite
    print("done", flush=True)


@pytest.mark.machines
@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize(("encoder", "shapes"), ALL if WHOLE else SOME.items())
def test_training_survives(instructions, encoder, shapes):
    if "lite0" in encoder:
        pytest.importorskip("timm", reason="the extra lite0 is not installed")
    if instructions != "this machine's" and platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip("these instructions are of x86-64 processors")
    environment = os.environ | {"OMP_NUM_THREADS": "2"} | INSTRUCTIONS[instructions]
    if ctypes.util.find_library("c_malloc_debug"):  # glibc 2.34 and newer keep the checks in a library of their own
        environment |= {"LD_PRELOAD": ctypes.util.find_library("c_malloc_debug"), "MALLOC_CHECK_": "3"}
    command = [sys.executable, __file__, encoder, *("x".join(map(str, shape)) for shape in shapes)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired as error:
        raise AssertionError(f"hangs in: {(error.stdout or b'').decode().splitlines()[-1:]}") from None
    begun = done.stdout.splitlines()
    assert begun[-1:] == ["done"], f"status {done.returncode} in: {begun[-1:]}\n{done.stderr[-2000:]}"
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(begun) == len(shapes) + 1


if __name__ == "__main__":
    take_steps(sys.argv[1], [tuple(map(int, shape.split("x"))) for shape in sys.argv[2:]])
