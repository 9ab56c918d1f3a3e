"""A run that an earlier version wrote still loads, and says of images what it said then.

`data/old-run` was trained by commit 0bbe9ce, before detectors had one interface:
`attnad train textures --size 32 --attention.width 2 --attention.latent 2 --attention.epochs 1 --adgan.epochs 1`; its
scores.json holds that version's scores of every 52nd test image.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from attnad.data import load_test
from attnad.run import load_run

OLD = Path(__file__).parent / "data" / "old-run"


def test_an_old_run_scores_as_it_did():
    run = load_run(OLD, device="cpu")
    scores = run.score(load_test("textures", size=32).images[::52])
    wanted = json.loads((OLD / "scores.json").read_text())
    *means, deviation = wanted.pop("maps")
    assert wanted.keys() == scores.image.keys()
    for name, values in wanted.items():
        torch.testing.assert_close(scores.image[name], torch.tensor(values), rtol=1e-3, atol=1e-4, msg=name)
    torch.testing.assert_close(scores.maps.mean((1, 2)), torch.tensor(means), rtol=1e-3, atol=1e-4)
    assert abs(scores.maps.std().item() - deviation) < 1e-4
