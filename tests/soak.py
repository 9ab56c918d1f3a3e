"""An hour of `attnad score --follow` among 10,000 damaged files: python tests/soak.py [MINUTES [FILES]].

Files arrive evenly: one of each hostile kind, then pictures with a byte changed, cut, or filled with what is none, and
every hundredth photograph whole. Each has to be scored or named, nothing may start another program, and memory may
not grow. Not a test of the suite, for its hour.
"""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from hostile import encoded, hostile_files
from made import write_images
from photographs import TINY
from PIL import Image

from attnad.cli import main
from attnad.data import textures
from attnad.errors import shown

KINDS = {"PNG": ".png", "JPEG": ".jpg", "TIFF": ".tif", "BMP": ".bmp", "WEBP": ".webp", "GIF": ".gif"}


def damaged(content: bytes, rng: random.Random) -> bytes:
    """A picture's bytes with one fault."""
    place = rng.randrange(len(content))
    kind = rng.randrange(5)
    if kind == 0:  # cut
        return content[:place]
    if kind == 1:  # one byte changed, in the header as often as behind it
        place = rng.choice([place, place % 64])
        return content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :]
    if kind == 2:  # a hole of zeros
        return content[:place] + bytes(len(content[place : place + 512])) + content[place + 512 :]
    if kind == 3:  # another file's bytes behind a good head
        return content[:64] + rng.randbytes(len(content) - 64)
    return rng.randbytes(len(content))


def heed_interrupts() -> None:
    """A shell's background job, and all that it starts, ignores Ctrl-C, which is to end the command here."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def soak(minutes: float, n: int) -> dict[str, object]:
    """Facts of one run; `lost` and `started` must be empty, `memory` is megabytes at each tenth of the time."""
    work, rng = Path(tempfile.mkdtemp()), random.Random(0)
    crops = textures.train_crops("gravel", 64)
    write_images(work / "good", crops[:20])
    assert main(["train", str(work / "good"), *TINY, "--out", str(work / "run")]) == 0
    new, log = work / "new", work / "log.txt"
    new.mkdir()
    names = hostile_files(new)
    command = [sys.executable, "-m", "attnad", "score", str(work / "run"), str(new), "--follow", "--out", work / "out"]
    with log.open("wb") as output:
        follower = subprocess.Popen(command, stdout=output, stderr=output, preexec_fn=heed_interrupts)
    process, memory, started = psutil.Process(follower.pid), [], set()
    start = time.monotonic()
    try:
        for i in range(n):
            image = Image.fromarray(crops[i % len(crops)])
            kind = rng.choice(list(KINDS))
            content = encoded(image, kind)
            name = f"{i:05d}{'good' if i % 100 == 0 else ''}{KINDS[kind]}"
            (new / name).write_bytes(content if i % 100 == 0 else damaged(content, rng))
            names.append(name)
            if i % max(1, n // 200) == 0:
                started |= {child.name() for child in process.children(recursive=True)}
            if i % max(1, n // 10) == 0:
                memory.append(round(process.memory_info().rss / 1e6))
            time.sleep(max(0, start + 60 * minutes * (i + 1) / n - time.monotonic()))
            assert follower.poll() is None, log.read_text(errors="replace")[-2000:]
        time.sleep(90)  # a person is told of the last ones after half a minute
        memory.append(round(process.memory_info().rss / 1e6))
        ends = time.monotonic()
        follower.send_signal(signal.SIGINT)
        status = follower.wait(600)
    finally:
        follower.kill()
    said = log.read_text(encoding="utf-8", errors="surrogateescape")
    with (work / "out/scores.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        scored = {Path(row["file"]).name for row in csv.DictReader(file)}
    told = [name for name in names if f"/{shown(name)}: " in said]
    return {
        "files": len(names), "minutes": round((ends - start) / 60, 1), "status": status,
        "seconds to end": round(time.monotonic() - ends), "scored": len(scored), "named": len(told),
        "started": sorted(started), "memory": memory, "folder": str(work),
        "good not scored": [name for name in names if "good" in name and name not in scored],
        "lost": [name for name in names if name not in scored and name not in told],
    }  # fmt: skip


if __name__ == "__main__":
    minutes, n = (float(sys.argv[1]) if sys.argv[1:] else 60.0), (int(sys.argv[2]) if sys.argv[2:] else 10_000)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    print(json.dumps(soak(minutes, n), indent=2))
