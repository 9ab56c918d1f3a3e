"""The bench command measures what it says, on tiny models; how fast they are is no test's business."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pytest
import torch

from attnad import cli
from attnad.augmentations import boxes_to_map
from attnad.config import AugmentConfig, PaperConfig
from attnad.data import load_train
from attnad.detectors import recipe
from attnad.models import AttentionNetwork
from attnad.study import bench
from attnad.train import ATTENTION_TERMS, train_adgan


def tiny(*_: str) -> PaperConfig:
    config = recipe("quick", "textures")
    attention = replace(config.attention, width=4, latent=4, batch=8)
    return replace(config, size=32, attention=attention, adgan=replace(config.adgan, batch=8, synthetic_fakes=True))


def test_the_command_measures_both_pipelines(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("attnad.cli.bench.paper_recipe", tiny)
    batches, score = [], bench.score
    monkeypatch.setattr(bench, "score", lambda *parts: batches.append(len(parts[-1])) or score(*parts))
    out = tmp_path / "new" / "bench.json"
    options = ["--size", "32", "--images", "16", "--epochs", "1", "--workers", "0", "--device", "cpu"]
    assert cli.main(["bench", "--json", str(out), *options]) == 0
    found = json.loads(out.read_text())
    for rate in found["images_per_second"].values():
        assert rate["ours"] > 0
        assert rate["ratio"] == pytest.approx(rate["ours"] / rate["usual"], rel=0.02, abs=0.01)  # all are rounded
    assert found["scoring_ms"].keys() == {"1", "32"}
    assert min(found["scoring_ms"].values()) > 0
    assert set(batches) == {1, 32}
    assert found["peak_memory_mb"] > 50
    assert found.keys() >= {"device", "threads", "torch", "date"}
    printed = capsys.readouterr().out
    assert f"{found['images_per_second']['attention']['usual']:.1f}" in printed
    assert cli.main(["bench", "--images", "3", *options[4:]]) == 2
    assert "give 8 or more" in capsys.readouterr().err


def test_the_usual_pipeline_makes_the_same_kinds_of_anomalies():
    images = load_train("textures", size=32).images[:40]
    data = bench._UsualData(images, AugmentConfig(), anomalies=True)
    whole = 0
    for i in range(len(data)):
        x, x_ano, a_ano = data[i]
        assert torch.equal((255 * x).round().to(torch.uint8), images[i])
        assert (x_ano.shape, a_ano.shape) == ((3, 32, 32), (1, 32, 32))
        rows, columns = (a_ano[0] == 0).nonzero().unbind(1)
        box = torch.stack([rows.min(), columns.min(), rows.max() + 1, columns.max() + 1])
        assert torch.equal(a_ano, 1 - boxes_to_map(box[None], 32)[0])  # one rectangle, or the whole
        assert torch.equal(torch.where(a_ano > 0, x, x_ano), x_ano)  # outside of it nothing has changed
        whole += not a_ano.any()
    assert 5 < whole < 35


def test_the_usual_stage_1_learns():
    torch.manual_seed(0)
    config = tiny()
    x = torch.rand(8, 3, 32, 32)
    step = bench._usual_attention(config, torch.device("cpu"), AttentionNetwork(config.attention))
    losses = torch.tensor([step(x, 1 - x, torch.zeros(8, 1, 32, 32)) for _ in range(12)])
    assert losses.shape == (12, len(ATTENTION_TERMS))
    assert losses.isfinite().all()
    assert losses[-1, -1] < losses[0, -1]  # L_att


def test_the_usual_stage_2_is_ours(tmp_path):
    config = tiny()
    config = replace(config, adgan=replace(config.adgan, epochs=1, synthetic_fakes=False))
    images = load_train("textures", size=32).images[:8]
    network = AttentionNetwork(config.attention).eval()
    train_adgan(config, images, network, device=torch.device("cpu"), folder=tmp_path, progress=False)
    with open(tmp_path / "log.csv", newline="") as file:
        ours = [float(line["loss"]) for line in csv.DictReader(file)]

    torch.manual_seed(config.seed)  # as train_adgan draws its first weights
    step = bench._usual_adgan(config, torch.device("cpu"), network)
    x = images.float() / 255
    assert step(x, x, x[:, :1]) == pytest.approx(ours, rel=1e-4)
