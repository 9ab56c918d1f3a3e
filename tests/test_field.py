"""What users of other projects have reported, tried here: open-edge-platform/anomalib unless another one is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from made import write_images
from PIL import Image
from torch import Tensor

from attnad.data import load_test, textures
from attnad.detectors import recipe
from attnad.errors import DataError
from attnad.run.run import Run, train_run

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
FROZEN = ["strong", "discriminators", "gaussian", "neighbours"]


# What keeps a run under a second: a place costs most, then each of its channels and each fit to all but some images.
LITTLE = {
    "strong": {"min_side": 64, "copies": 1, "folds": 2},
    "discriminators": {"min_side": 64, "steps": 5, "batch": 256, "channels": 24},
    "gaussian": {"min_side": 64, "channels": 24},
    "neighbours": {"patches": 500},
}


def trained(name: str, folder: Path, *, size: int = 64, n: int = 24, **more: int) -> Run:
    """A run on bricks, a second long."""
    if not (folder / "good").exists():
        write_images(folder / "good", textures.train_crops("brick", 64)[:n])
    config = replace(recipe(name, str(folder / "good")), size=size, **LITTLE[name] | more)
    return train_run(config, folder / f"{name}-{size}", device="cpu", progress=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Callable[[str], Run]:
    """A run of each recipe at 64 pixels, trained once."""
    folder = tmp_path_factory.mktemp("runs")
    return cache(lambda name: trained(name, folder))


def extreme(size: int) -> Tensor:
    """White, black, and noise: nothing like what was trained on."""
    noise = torch.randint(0, 256, (3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return torch.stack([torch.full_like(noise, 255), torch.zeros_like(noise), noise])


@pytest.mark.parametrize("name", FROZEN)
def test_scores_are_finite_alike_in_any_batch_and_highest_for_what_is_nothing_like_it(name, runs):
    """#324: NaN for images with large defects. #715: in a batch, all images were scored by the first one's places."""
    run = runs(name)
    good = torch.from_numpy(textures.held_out_crops("brick", 64)[0][:6]).permute(0, 3, 1, 2).contiguous()
    images = torch.cat([good, extreme(64)])
    together = run.score(images)
    apart = [run.score(images[i : i + 1]) for i in range(len(images))]
    for key, values in together.image.items():
        assert values.isfinite().all()
        torch.testing.assert_close(torch.cat([one.image[key] for one in apart]), values, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(torch.cat([one.maps for one in apart]), together.maps, rtol=1e-3, atol=1e-3)
    scores = run.image_scores(together)
    assert scores[:6].max() < scores[6:].min()


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("strong", {}), ("strong", {"min_side": 128}), ("discriminators", {}), ("discriminators", {"min_side": 128}),
        ("neighbours", {}),
    ],
)  # fmt: skip
def test_sides_that_are_no_power_of_two(name, more, tmp_path):
    """#2730: EfficientAD trains at some sizes only and crashes at the end of an epoch at others, such as 480.

    As they are, and enlarged to one that is; gaussian has the levels of discriminators.
    """
    scores = trained(name, tmp_path, size=96, n=8, **more).score(extreme(96))
    assert scores.maps.shape == (3, 96, 96)


@pytest.mark.parametrize("name", ["strong", "discriminators"])
def test_what_is_kept_does_not_grow_with_the_photographs(name, runs, tmp_path):
    """#228, #372 and amazon-science/patchcore-inspection #38, #69: a memory of all images fills the machine's."""
    few = trained(name, tmp_path, n=8)
    one, other = ((run.folder / "strong.safetensors").stat().st_size for run in (few, runs(name)))
    assert one == other


def test_masks_belong_to_images_by_name_not_by_order(tmp_path):
    """#243, and urakubo/UNI-EM #35: masks were paired by their place in the list, and 10 comes before 2."""
    write_images(tmp_path / "train/good", textures.train_crops("brick", 64)[:2])
    write_images(tmp_path / "test/good", textures.train_crops("brick", 64)[:1])
    for number, left in {"1": 0, "2": 16, "10": 32, "1_mask": 48}.items():
        values = np.zeros((64, 64), np.uint8)
        values[:, left : left + 16] = 255
        for path in (f"test/bent/{number}.png", f"ground_truth/bent/{number}_mask.png"):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(tmp_path / path)
    test = load_test(str(tmp_path), size=64)
    for image, mask in zip(test.images[:4], test.masks[:4], strict=True):
        assert torch.equal(image[0] > 0, mask)


def test_a_folder_of_masks_under_another_name_is_not_overlooked(tmp_path):
    """#659: a wrong folder of masks was found out only when a model was evaluated."""
    write_images(tmp_path / "train/good", textures.train_crops("brick", 64)[:2])
    for part in ("test/good", "test/bent", "ground_truth/bended"):
        write_images(tmp_path / part, textures.train_crops("brick", 64)[:1])
    with pytest.raises(DataError, match=r"test/bent/000\.png: has no mask .*ground_truth/bent/000_mask\.png"):
        load_test(str(tmp_path), size=64)


@pytest.mark.parametrize("kept", ["good", "bent"])
def test_a_test_set_of_one_kind_is_refused_before_anything_is_scored(kept, tmp_path):
    """#2578: validation without normal images ends in "expected a non-empty list of Tensors"."""
    write_images(tmp_path / "train/good", textures.train_crops("brick", 64)[:2])
    write_images(tmp_path / "test" / kept, textures.train_crops("brick", 64)[:2])
    with pytest.raises(DataError, match="a test set needs good and anomalous ones"):
        load_test(str(tmp_path), size=64)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_state_of_widgets_in_a_chapters_file(path):
    """luxonis/ai-tutorials #79: GitHub does not show a notebook that holds it."""
    assert "widgets" not in json.loads(path.read_text(encoding="utf-8"))["metadata"]
