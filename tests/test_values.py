"""No flag does nothing: every value of every recipe's configuration is read in training or in scoring.

And what is no flag now, since it did nothing or is a detector's constant, is still known in files of earlier versions.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from claimed import TAUGHT
from made import few_crops

import attnad.config
from attnad.config import _CONSTANT, DETECTORS, config_hash, from_dict, short_hash, to_dict
from attnad.detectors import detector_class, override, recipe
from attnad.detectors.map import AttentionMap, MapConfig
from attnad.errors import SettingError, TrainingError
from attnad.run.run import folder_name, train_run
from attnad.study.engines import measure
from attnad.study.plan import missing
from attnad.study.results import read_results
from attnad.study.tables import jobs
from attnad.training.storage import load_json, save_json

# Whoever copies or checks a configuration looks at each value without making anything of it.
LOOKS_AT_ALL = {dataclasses.__file__, attnad.config.__file__}
RESULTS = Path(__file__).parent.parent / "book" / "results"
HASHES = {  # of configurations for the embedded textures, as the version gave them that had all values as fields
    "map": "8146e205", "dcgan": "e1e86d4f", "ae-l2": "870bc257", "ae-ssim": "488021b8",
    "gamma-vae": "31c2a8a8", "student": "a5c7ab32", "anogan": "0017f7b0", "vevae": "5672e2b4",
    "cavga": "0db9bafa", "lsa": "c8cf29eb", "superpixel": "c8bbcbf3", "ocgan": "56faa001",
    "ulslm": "008407fb",
}  # fmt: skip
WITHOUT_LATENT = ("map", "dcgan", "student", "superpixel")
SHORT = {
    "size": 32, "epochs": 1, "attention.epochs": 1, "adgan.epochs": 1, "attention.width": 4, "attention.latent": 4,
    "attention.encoder": "resnet18", "width": 4, "steps": 2, "min_side": 64, "search": 1, "patches": 50,
    "copies": 1, "folds": 2,
}  # fmt: skip


def recorded(config: Any, read: set[str], prefix: str = "") -> Any:
    """The same configuration, which writes down the names of the values that are read."""

    class Recorded(type(config)):  # type: ignore[misc]
        def __getattribute__(self, name: str) -> Any:
            if sys._getframe(1).f_code.co_filename not in LOOKS_AT_ALL:
                read.add(prefix + name)
            return super().__getattribute__(name)

    Recorded.__name__ = type(config).__name__
    values = {f.name: getattr(config, f.name) for f in fields(config)}
    return Recorded(
        **{name: recorded(v, read, f"{prefix}{name}.") if is_dataclass(v) else v for name, v in values.items()}
    )


def names(config: Any, prefix: str = "") -> set[str]:
    """Names of all values, with a dot inside a part."""
    found: set[str] = set()
    for f in fields(config):
        value = getattr(config, f.name)
        found |= names(value, f"{prefix}{f.name}.") if is_dataclass(value) else {prefix + f.name}
    return found


def short(name: str) -> Any:
    """A configuration whose training takes a second."""
    config = recipe(name, "textures")
    return override(config, {key: value for key, value in SHORT.items() if key in names(config)})


@pytest.mark.parametrize("name", DETECTORS)
def test_every_value_is_read(name, tmp_path, monkeypatch):
    few_crops(monkeypatch, train=12)
    brief = classmethod(
        lambda cls, name, data: override(MapConfig(data=data), {"size": 32, "min_side": 64, "epochs": 1})
    )
    monkeypatch.setattr(AttentionMap, "recipe", brief)  # of which guided trains one
    config, read = short(name), set()
    train_run(recorded(config, read), tmp_path / "run", device="cpu", progress=False)
    unread = names(config) - read
    assert not unread


def from_before(config: Any, latent: int = 64) -> dict[str, Any]:
    """A configuration's values by their first names, with those that did nothing and are gone."""
    first = {"min_side": "least", "per_level": "apart", "stain_share": "stained"}
    values = {first.get(name, name): value for name, value in to_dict(config).items()} | {"latent": latent}
    values |= _CONSTANT[config.recipe]
    if "stains" in values:
        values["stains"]["augment"] |= {"box_area": (0.02, 0.4), "box_aspect": 3.0, "whole_share": 0.5}
    return values


@pytest.mark.parametrize("name", WITHOUT_LATENT)
def test_values_that_did_nothing_are_gone_and_files_that_have_them_load(name):
    config = recipe(name, "textures")
    with pytest.raises(SettingError, match="has no value 'latent'"):
        override(config, {"latent": 32})
    assert from_dict(type(config), from_before(config)) == from_dict(type(config), from_before(config, 32)) == config
    assert config_hash(config) == short_hash(from_before(config)), "a finished run's folder has another name"


@pytest.mark.parametrize("name", HASHES)
def test_constants_of_detectors_were_values_and_files_that_have_them_load(name):
    config = recipe(name, "textures")
    assert config_hash(config) == HASHES[name], "a finished run's folder has another name"
    for key, value in _CONSTANT[name].items():
        assert getattr(detector_class(name), key) == value
        with pytest.raises(SettingError, match=f"has no value '{key}'"):
            override(config, {key: value})
        assert from_dict(type(config), to_dict(config) | {key: value}) == config
        with pytest.raises(ValueError, match=f"does not match this version of attnad: {key} unknown"):
            from_dict(type(config), to_dict(config) | {key: 2 * value})


def test_the_score_of_another_recipe_that_shares_the_configuration_is_refused(tmp_path):
    """Each recipe that shares it takes the scores that its detector gives, and no others."""
    assert recipe("lsa", "textures").image_score == "novelty"
    with pytest.raises(TrainingError, match="image_score cannot be novelty; choose top or mean"):
        train_run(override(short("ae-l2"), {"image_score": "novelty"}), tmp_path, device="cpu")


def test_a_finished_run_from_before_is_found_and_not_trained_again(tmp_path, monkeypatch):
    """Its folder's name has the hash of a configuration with the field, and its config.json has the field itself."""
    few_crops(monkeypatch)
    config = short("superpixel")
    before = {"latent": 64, "beta1": 0.9, "pieces": 48, "groups": 6}
    folder = tmp_path / f"textures-superpixel-seed0-{short_hash(to_dict(config) | before)}"
    assert folder.name == folder_name(config)
    run = train_run(config, folder, device="cpu", progress=False)
    save_json(folder / "config.json", load_json(folder / "config.json") | before)
    written = (folder / "superpixel.safetensors").stat().st_mtime_ns
    assert measure(config, tmp_path, device="cpu")["facts"] == run.facts
    assert (folder / "superpixel.safetensors").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("table", "name", "method"),
    [("rivals", "student", ""), ("rivals", "superpixel", ""), ("table1", "dcgan", ""), ("beyond", "map", "tuned")],
)
def test_rows_of_results_csv_still_stand_for_finished_runs(table, name, method):
    rows = {
        (row["class"], row["method"], row["seed"], row["size"])
        for row in read_results(RESULTS / "results.csv")
        if (row["table"], row["recipe"]) == (table, name) and method in row["method"]
    }
    assert rows
    planned = []
    for class_name, method, seed, size in rows:
        found = jobs(table, classes=[class_name], seeds=[int(seed)], overrides={"size": int(size)})
        planned += [job for job in found if method in job.variant.rows]
    assert len(planned) >= len(rows)
    assert not missing(planned, RESULTS)


def test_rows_of_what_was_strong_have_the_hashes_of_discriminators():
    rows = {
        (row["class"], int(row["seed"]), int(row["size"])): row["config"]
        for row in read_results(RESULTS / "results.csv")
        if (row["table"], row["method"]) == ("surfaces", TAUGHT)
    }
    assert rows
    for (name, seed, size), there in rows.items():
        config = replace(recipe("discriminators", "textures"), normal_class=name, seed=seed, size=size)
        assert config_hash(config) == there
        assert folder_name(config) == f"textures-{name}-strong-seed{seed}-{there}", "a finished run's folder"
