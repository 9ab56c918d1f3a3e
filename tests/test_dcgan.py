"""Recipe `dcgan`, the GAN of table 1: its step against one written out here, its fakes, and the table's seven rows.

That a run is kept, loaded and resumed is tested beside the baselines, which are trained alike (test_baselines.py).
"""

from __future__ import annotations

import json
import re
import warnings
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from made import few_crops, images, rng, write_images

from attnad.cli import main
from attnad.config import ADGANConfig, PaperConfig, from_dict, to_dict
from attnad.data.cifar10 import CIFAR10_CLASSES
from attnad.detectors import dcgan, override, recipe
from attnad.detectors.dcgan import DCGAN, DCGANConfig
from attnad.errors import TrainingError
from attnad.run.run import train_run
from attnad.study.results import read_results
from attnad.study.tables import TABLES
from attnad.training.state import FitOptions

TINY = override(DCGANConfig(), {"size": 32, "width": 4, "epochs": 2, "batch": 8})
STEPS = ("rotation", "permutation", "jitter")


def steps_on(config: DCGANConfig, *on: str) -> DCGANConfig:
    return override(config, {f"augment.{step}": step in on for step in STEPS})


# --- the step --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [0, 1, 2])
@pytest.mark.parametrize("weight", [0.0, 3.0])
def test_a_step_is_a_gan_on_images(groups, weight):
    config = replace(steps_on(TINY, *STEPS[: groups > 0]), reconstruction_weight=weight, ema=0.75)
    torch.manual_seed(0)
    model = DCGAN(config).train()
    if groups == 2:
        model.anomalies = (255 * images(5, 32, seed=3)).byte()
    ref, x = deepcopy(model), images(4, 32, seed=1)

    def descent(parts: dict[str, torch.nn.Module]) -> dict[str, torch.optim.Optimizer]:
        return {name: torch.optim.SGD(part.parameters(), 0.1) for name, part in parts.items()}

    ours, theirs, averages = descent(model.parts()), descent(ref.parts()), []
    for seed in range(2):  # the average begins at the second step
        losses = model.step(x, ours, rng(seed))
        fakes = ref.fakes(x, rng(seed))
        assert len(fakes) == groups
        made = ref.generator(x)
        d_real, *d_fake = ref.discriminator(torch.cat([x, made.detach(), *fakes])).split(len(x))
        l_d = F.softplus(-d_real).mean() + F.softplus(torch.cat(d_fake)).mean()  # groups of one size: one mean
        theirs["d"].zero_grad()
        l_d.backward()
        theirs["d"].step()
        averages.append({name: value.detach().clone() for name, value in ref.discriminator.named_parameters()})
        l_adv, l_r = F.softplus(-ref.discriminator(made)).mean(), F.mse_loss(made, x) / 2
        theirs["g"].zero_grad()
        (l_adv + weight * l_r).backward()
        theirs["g"].step()
        torch.testing.assert_close(losses, torch.stack([l_d, l_adv, l_r]).detach())
    for part in ("discriminator", "generator"):
        expected = dict(getattr(ref, part).named_parameters())
        for name, value in getattr(model, part).named_parameters():
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5, msg=f"{part}.{name}")
    for name, value in model.average.module.named_parameters():
        torch.testing.assert_close(value, 0.75 * averages[0][name] + 0.25 * averages[1][name], rtol=1e-4, atol=1e-5)
    assert all(p.requires_grad for p in model.discriminator.parameters()), "free again after the generator's turn"


def test_the_average_scores_and_the_reconstruction_draws_the_map():
    torch.manual_seed(0)
    model, x = DCGAN(TINY).eval().requires_grad_(False), images(3, 32)
    model.discriminator.layers[-1].bias += 1  # the average has not moved with it
    judged = model.predict_maps(x)
    torch.testing.assert_close(judged.image["discriminator"], 1 - model.discriminator(x))
    torch.testing.assert_close(judged.maps, (x - judged.x_re).abs().mean(1))
    assert judged.x_re.shape == x.shape
    assert 0 <= judged.x_re.min() <= judged.x_re.max() <= 1


def test_no_step_no_fakes():
    torch.manual_seed(0)
    x = images(4, 32)
    assert DCGAN(steps_on(TINY)).fakes(x, rng()) == []
    (made,) = DCGAN(steps_on(TINY, "rotation")).fakes(x, rng())
    turns = [torch.rot90(x, k, (2, 3)) for k in (1, 2, 3)]
    assert all(any(torch.allclose(one, turn[i], atol=1e-5) for turn in turns) for i, one in enumerate(made))


# --- a run -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"ema": 1.5}, "ema cannot be 1.5; choose from 0 to 1"),
        ({"real_anomalies": -1}, "real_anomalies cannot be -1"),
        ({"augment.hue": 0.7}, "augment.hue cannot be 0.7"),
        ({"augment.grids": (3,)}, "32 pixels do not divide by 3"),
        ({"real_anomalies": 8}, "real anomalies need a data set of several classes"),
    ],
)
def test_values_that_make_no_sense_are_refused(values, said, tmp_path, monkeypatch):
    few_crops(monkeypatch)
    with pytest.raises(TrainingError, match=said):
        train_run(override(replace(TINY, normal_class=None), values), tmp_path, device="cpu", progress=False)


def test_what_the_papers_configuration_said_of_it_is_passed_over():
    before = to_dict(PaperConfig()) | {"adgan": asdict(ADGANConfig()) | {"pixels": False, "real_anomalies": 0}}
    assert from_dict(PaperConfig, json.loads(json.dumps(before))) == PaperConfig()
    before["adgan"]["pixels"] = True
    with pytest.raises(ValueError, match="pixels unknown or missing; use the version that wrote it"):
        from_dict(PaperConfig, before)


# --- table 1 ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def colours(tmp_path_factory) -> Path:
    """CIFAR-10's layout, 20 training and 3 test images a class; the first pixel says which image it is."""
    root, numbers = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for number, name in enumerate(CIFAR10_CLASSES):
        for part, n in (("train", 20), ("test", 3)):
            made = numbers.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
            made[:, 0, 0] = [(number, part == "test", i) for i in range(n)]
            write_images(root / "cifar10" / part / name, made)
    return root


@pytest.fixture(scope="module")
def table1(colours) -> dict[str, Any]:
    """All rows of table 1 for one class, and what the GAN was shown in each."""
    shown: list[dict[str, Any]] = []
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # there are fewer images than in CIFAR-10
        begin, synthesize = DCGAN.begin, dcgan.synthesize

        def spy_begin(model: DCGAN, images: torch.Tensor, options: Any) -> None:
            begin(model, images, options)
            shown.append({"images": images, "anomalies": model.anomalies, "made": []})

        def spy_synthesize(x: torch.Tensor, *args: Any) -> Any:
            shown[-1]["made"].append((x, (found := synthesize(x, *args))[0]))
            return found

        patch.setattr(DCGAN, "begin", spy_begin)
        patch.setattr(dcgan, "synthesize", spy_synthesize)
        folders = ["--runs", str(colours / "runs"), "--results", str(colours / "results"), "--data-root", str(colours)]
        short = ["--epochs", "1", "--set", "width=4", "batch=16", "--device", "cpu"]
        assert main(["reproduce", "table1", "--classes", "cat", "--seeds", "0", *short, *folders]) == 0
    methods = [method for variant in TABLES["table1"] for method in variant.rows]
    return dict(zip(methods, shown, strict=True))


def test_table1_gives_its_seven_rows(table1, colours):
    found = read_results(colours / "results" / "results.csv")
    assert sorted(r["method"] for r in found) == sorted(table1)
    for row in found:
        assert (row["dataset"], row["class"], row["metric"], row["n"]) == ("CIFAR-10", "cat", "image_auroc", "30")
        assert (row["recipe"], row["epochs"], row["encoder"], row["weights"]) == ("dcgan", "1", "resnet18", "random")


def test_semi_sees_128_training_images_of_the_other_classes(table1):
    cat = CIFAR10_CLASSES.index("cat")
    for method, shown in table1.items():
        assert set(shown["images"][:, 0, 0, 0].tolist()) == {cat}
        assert not shown["images"][:, 1, 0, 0].any()
        if not method.startswith("semi"):
            assert shown["anomalies"] is None
            continue
        names = [tuple(name) for name in shown["anomalies"][:, :, 0, 0].tolist()]
        assert len(names) == len(set(names)) == 128
        assert {number for number, _, _ in names} == set(range(10)) - {cat}
        assert not any(is_test for _, is_test, _ in names)
        assert not shown["made"]


@pytest.mark.parametrize("method", ["base", "rotate", "perm", "jitter", "rotate+perm", "rotate+perm+jitter"])
def test_fakes_are_made_by_the_rows_steps_alone(table1, method):
    def turned(x: torch.Tensor) -> torch.Tensor:  # [n, 3, s, s] -> by 90, 180 and 270 degrees: [n, 3, 3, s, s]
        return torch.stack([torch.rot90(x, k, (2, 3)) for k in (1, 2, 3)], 1)

    def sorted_pixels(x: torch.Tensor) -> torch.Tensor:
        return x.flatten(2).sort(2).values

    made = table1[method]["made"]
    assert len(made) == (0 if method == "base" else 1)
    for x, x_ano in made:
        assert x.shape == x_ano.shape
        assert (x != x_ano).flatten(1).any(1).all()
        rotation = torch.isclose(turned(x), x_ano[:, None], atol=1e-5).flatten(2).all(2).any(1).all()
        moved = torch.allclose(sorted_pixels(x), sorted_pixels(x_ano), atol=1e-5)
        assert bool(rotation) == (method == "rotate")
        assert moved == ("jitter" not in method)


def test_the_recipe_is_the_same_for_every_data_set_but_for_size():
    assert [recipe("dcgan", data).size for data in ("cifar10", "textures", "bottle")] == [32, 64, 128]
    assert len({replace(recipe("dcgan", data), data="", size=32) for data in ("cifar10", "textures", "bottle")}) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--recipe", "dcgan", "--epochs", "0"], "Train longer (--epochs), on more photographs, or take"),
        (["--attention.epochs", "0", "--adgan.epochs", "0"], "Train longer (--attention.epochs), on more photographs"),
    ],
    ids=["dcgan", "quick"],
)
def test_what_is_advised_after_too_little_training_fits_the_recipe(options, said, tmp_path, monkeypatch, capsys):
    few_crops(monkeypatch)
    common = ["--normal-class", "brick", "--size", "32", "--device", "cpu", "--out", str(tmp_path / "run")]
    assert main(["train", "textures", *common, *options]) == 0
    assert said in capsys.readouterr().out


def test_a_gan_that_is_fitted_without_a_run_checks_its_values(tmp_path):
    """As chapters 1 and 3 fit it."""
    for values, said in (({"size": 48}, "size cannot be 48; choose a multiple of 32"),
                         ({"augment.grids": (2, 5)}, "augment.grids: 32 pixels do not divide by 5")):  # fmt: skip
        with pytest.raises(TrainingError, match=re.escape(said)):
            DCGAN.fit(override(TINY, values), torch.zeros(9, 3, 32, 32), tmp_path, FitOptions(torch.device("cpu")))
    assert not list(tmp_path.iterdir())
