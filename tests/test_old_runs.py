"""Runs that earlier versions wrote still load, and say of images what they said then.

`data/old-run` was trained by commit 0bbe9ce, before detectors had one interface:
`attnad train textures --size 32 --attention.width 2 --attention.latent 2 --attention.epochs 1 --adgan.epochs 1`; its
scores.json holds that version's scores of every 52nd test image.
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from made import few_crops
from safetensors.torch import load_file

from attnad.data import load_test
from attnad.detectors import guided, recipe
from attnad.detectors.guided import attention_config
from attnad.errors import TrainingError
from attnad.run.run import load_run, train_run
from attnad.training.storage import load_json, save_json, save_tensors

# Names that recipes, configurations and tensors had in files of earlier versions.
RECIPES = {"discriminators": "strong"}
FIELDS = {"min_side": "least", "per_level": "apart", "stain_share": "stained"}
TENSORS = {"map_scale": "reach", "discriminators": "judges", "gaussians": "places"}
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


@pytest.mark.parametrize("name", ["discriminators", "guided", "neighbours", "ae-l2"])
def test_names_of_earlier_versions_are_read(name, tmp_path, monkeypatch):
    few_crops(monkeypatch)
    short = {"size": 32, "min_side": 64, "channels": 16, "width": 4, "steps": 2, "epochs": 1}

    def shorter(config: Any) -> Any:
        return replace(config, **{key: short[key] for key in short.keys() & {f.name for f in fields(config)}})

    monkeypatch.setattr(guided, "attention_config", lambda config: shorter(attention_config(config)))
    config = shorter(recipe(name, "textures"))
    run = train_run(config, tmp_path, device="cpu", progress=False)
    values = load_json(tmp_path / "config.json")
    values["recipe"] = RECIPES.get(name, name)
    save_json(tmp_path / "config.json", {FIELDS.get(key, key): value for key, value in values.items()})
    renamed = 0
    for path in tmp_path.glob("*.safetensors"):
        tensors = load_file(path)
        then = {".".join(TENSORS.get(part, part) for part in key.split(".")): v for key, v in tensors.items()}
        renamed += len(then.keys() - tensors.keys())
        save_tensors(path, then)
    assert renamed
    old, images = load_run(tmp_path, device="cpu"), load_test("textures", size=32).images[:4]
    assert old.config == run.config
    assert torch.equal(old.score(images).maps, run.score(images).maps)
    assert train_run(config, tmp_path, device="cpu", progress=False).facts == run.facts


def test_a_folder_of_what_was_strong_is_not_taken_for_the_new_one(tmp_path):
    old = asdict(recipe("discriminators", "textures")) | {"recipe": "strong"}
    save_json(tmp_path / "config.json", old)
    save_json(tmp_path / "run.json", {})
    with pytest.raises(TrainingError, match=r"recipe is 'discriminators' there, 'strong' here.*choose another --out"):
        train_run(recipe("strong", "textures"), tmp_path, device="cpu", progress=False)
