"""A region that alone is judged: what it leaves of the scores, what it refuses, and that a run keeps it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from made import fails
from PIL import Image, ImageDraw, ImageFilter

from attnad.cli import main
from attnad.data import load_images, load_train, split_normal, textures
from attnad.metrics import normal_threshold
from attnad.run.region import FROM_MAP, read_region
from attnad.run.run import load_run
from attnad.training.storage import load_json

pytestmark = pytest.mark.usefixtures("elsewhere")
TINY = ["--recipe", "gaussian", "--size", "64", "--min-side", "64", "--channels", "16"]
LEFT, RIGHT = (4, 20, 14, 44), (50, 20, 60, 44)  # rectangles that are painted, in pixels


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Photographs of grass, twice as wide as high; the anomalies are painted left, in the region, or right, outside."""
    folder = tmp_path_factory.mktemp("photos")

    def write(name: str, images: np.ndarray, rectangle: tuple[int, ...] | None = None) -> None:
        (folder / name).mkdir(parents=True)
        for i, image in enumerate(images):
            picture = Image.fromarray(image)
            if rectangle:
                ImageDraw.Draw(picture).rectangle(rectangle, fill=(250, 40, 20))
            picture.resize((128, 64)).save(folder / name / f"{i}.png")

    good = textures.held_out_crops("grass", 64)[0]
    write("train/good", textures.train_crops("grass", 64)[:60])
    for name, rectangle in (("good", None), ("left", LEFT), ("right", RIGHT)):
        write(f"test/{name}", good[:6], rectangle)
    mask = np.zeros((32, 64), np.uint8)  # half the photographs' size, the same shape
    mask[:, :24] = 1
    Image.fromarray(mask).save(folder / "mask.png")
    return folder


def train(photos: Path, out: Path, *more: str | Path) -> int:
    return main(["train", str(photos), *TINY, "--out", str(out), *map(str, more)])


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory) -> Path:
    """Folder of a finished run with the region: not to be changed."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert train(photos, out, "--region", photos / "mask.png") == 0
    return out


def test_what_is_outside_counts_as_normal(run, photos):
    loaded = load_run(run, device="cpu")
    images = load_images([photos / "test"], size=64).images
    whole, inside = loaded.detector.score(images), loaded.score(images)
    mask = np.zeros((64, 64), bool)
    mask[:, :24] = True
    for theirs, ours in [(whole.maps, inside.maps), *((whole.parts[name], inside.parts[name]) for name in whole.parts)]:
        assert (ours.numpy()[:, ~mask] == 0).all()
        assert (ours.numpy()[:, mask] == theirs.numpy()[:, mask]).all()
        assert theirs.numpy()[:, ~mask].min() > 0
    assert inside.image.keys() == {"top", "peak"}
    values = np.sort(whole.maps.numpy()[:, mask], axis=1)
    np.testing.assert_allclose(loaded.image_scores(inside), values[:, -(64 * 24 // 100) :].mean(1), rtol=1e-5)
    np.testing.assert_array_equal(inside.image["peak"], values[:, -1])


def test_threshold_evaluation_and_report_go_by_it(run, photos, capsys):
    facts = load_json(run / "run.json")
    assert facts["region"]["size"] == [64, 32]
    assert facts["region"]["share"] == 0.375
    held_out = split_normal(load_train(str(photos), size=64).images, seed=0)[1]
    loaded = load_run(run, device="cpu")
    scores = loaded.image_scores(loaded.score(held_out)).numpy()
    np.testing.assert_allclose(facts["held_out_scores"], scores, rtol=1e-5)
    assert facts["threshold"] == pytest.approx(normal_threshold(scores))
    assert main(["evaluate", str(run), "--json", "metrics.json"]) == 0
    result = json.loads(Path("metrics.json").read_text())
    assert result["by_kind"]["left"]["image_auroc"] == 1
    assert result["by_kind"]["right"]["image_auroc"] < 0.8  # as good as not there
    assert result["image_auroc_by_score"].keys() == {"top", "peak"}
    assert main(["score", str(run), str(photos / "test" / "right"), "--out", "out"]) == 0
    assert "38% of the image; the rest counts as normal" in Path("out/report.html").read_text(encoding="utf-8")
    with Image.open(next(Path("out/maps").iterdir())) as heat_map:
        assert np.asarray(heat_map)[:, 60:].max() == 0


@pytest.mark.parametrize("box", [(40, 20, 67, 34), (0, 40, 128, 44)], ids=["a twentieth", "a line"])
def test_training_in_a_small_region_ends_with_what_is_found_there(photos, tmp_path, box):
    """Drawn and counted anywhere, they gave 0.60 and 0.50 here: hardly any lay in the region."""
    mask = Image.new("L", (128, 64))
    ImageDraw.Draw(mask).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=255)
    mask.save(tmp_path / "mask.png")
    better = ("--min-side", "128", "--channels", "176")  # the tiny detector of the other tests sees too little
    assert train(photos, tmp_path / "run", *better, "--region", tmp_path / "mask.png") == 0
    check = load_json(tmp_path / "run" / "run.json")["synthetic"]
    print(check)
    assert check["image_auroc"] > 0.75
    assert check["pixel_auroc"] > 0.62


def test_image_scores_are_made_of_the_values_inside():
    values = torch.arange(400.0).flip(0)[None] / 400
    assert {name: round(make(values).item() * 400, 2) for name, make in FROM_MAP.items()} == {
        "extent": 392, "attention": 199.5, "top": 397.5, "peak": 399, "patch": 399,
    }  # fmt: skip


def test_image_scores_that_are_not_of_the_map_are_refused(photos, capsys):
    region = ("--region", photos / "mask.png", "--out", "no")
    said = fails(capsys, "train", photos, "--recipe", "quick", *region)
    assert "image score 'adgan' judges whole images" in said
    assert "choose --image-score attention" in said
    said = fails(capsys, "train", photos, "--recipe", "neighbours", "--image-score", "whole", *region)
    assert "choose --image-score patch" in said
    assert not Path("no").exists()


def test_masks_that_cannot_be_used(photos, capsys):
    Image.new("L", (64, 32)).save("black.png")
    Image.new("L", (64, 32), 255).save("white.jpg")
    Path("text.png").write_text("no mask")
    for name, said in (
        ("black.png", "marks nothing; paint white"), ("white.jpg", "save the mask as PNG"),
        ("text.png", "no image that is read"), ("missing.png", "check the path"),
    ):  # fmt: skip
        assert said in fails(capsys, "train", photos, *TINY, "--region", name, "--out", "no")


def test_a_run_keeps_its_region(run, photos, tmp_path, capsys):
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    assert train(photos, copy, "--region", photos / "mask.png") == 0  # the same command again
    mask = 255 - np.asarray(Image.open(photos / "mask.png"))
    Image.fromarray(mask).save("other.png")
    for other in (["--region", "other.png"], []):
        assert "with another region" in fails(capsys, "train", photos, *TINY, *other, "--out", copy)
    shutil.copy("other.png", copy / "region.png")
    assert "is not the region that the run was made with" in fails(capsys, "evaluate", copy)
    (copy / "region.png").unlink()
    assert "region.png cannot be read" in fails(capsys, "evaluate", copy)
    plain = tmp_path / "plain"
    assert train(photos, plain) == 0
    assert "with another region" in fails(capsys, "train", photos, *TINY, "--region", "other.png", "--out", plain)


def test_photographs_of_another_shape_are_refused(run, photos, capsys):
    with Image.open(photos / "test" / "good" / "0.png") as image:
        image.resize((100, 100)).save("square.png")
        image.resize((640, 322)).save("larger.png")
    said = fails(capsys, "score", run, "square.png", "--out", "out")
    assert "square.png: has 100 x 100 pixels, and the run's region was drawn on 64 x 32" in said
    assert not Path("out").exists()
    assert main(["score", str(run), "larger.png", "--out", "out"]) == 0
    assert "know no region" in fails(capsys, "export", run, "model.onnx")


def test_a_soft_border_is_cut_at_half_and_said(tmp_path):
    mask = Image.new("L", (64, 64))
    ImageDraw.Draw(mask).rectangle((16, 16, 47, 47), fill=255)
    mask.save(tmp_path / "soft.jpg", quality=75)
    Image.open(tmp_path / "soft.jpg").filter(ImageFilter.GaussianBlur(2)).save(tmp_path / "soft.png")
    with pytest.warns(UserWarning, match=r"soft\.png: its border is soft"):
        region = read_region(tmp_path / "soft.png", 64)
    assert (region.mask.numpy() != (np.asarray(mask) > 0)).mean() < 0.01
