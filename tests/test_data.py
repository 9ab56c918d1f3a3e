"""Data sets: what each holds, which folder is meant, how normal images are split."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import blob_mask, check_test_set, picture, refused, save
from PIL import Image

from attnad import data
from attnad.config import DETECTORS, SIZE
from attnad.data import load_images, load_test, load_train
from attnad.detectors import detector_class, recipe

pytestmark = pytest.mark.usefixtures("no_user_data")


# --- textures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normal", [None, "brick", "grass", "gravel"])
def test_textures(normal):
    train = load_train("textures", size=32, normal_class=normal)
    test = load_test("textures", size=32, normal_class=normal)
    normal = normal or "brick"
    assert train.images.shape == (512, 3, 32, 32)
    assert train.images.dtype == torch.uint8
    assert train.names[12] == f"{normal}/train/0012"
    n = 64 + 5 * 16 + 2 * 32
    check_test_set(test, n, 32)
    assert len(set(test.names)) == n
    others = {f"other/{name}" for name in ("brick", "grass", "gravel") if name != normal}
    defects = {f"defect/{name}" for name in ("scratch", "crack", "stain", "hole", "foreign")}
    assert set(test.kinds) == {"good"} | defects | others
    for kind in set(test.kinds):
        chosen = torch.tensor([k == kind for k in test.kinds])
        assert test.labels[chosen].all() == (kind != "good")
        assert test.masks[chosen].flatten(1).any(1).all() == kind.startswith("defect/")
        assert test.has_mask[chosen].all() == (not kind.startswith("other/"))
    seen = {image.numpy().tobytes() for image in train.images}
    assert not any(image.numpy().tobytes() in seen for image in test.images)


def test_loading_is_deterministic_and_leaves_global_random_states_alone():
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - the global state is what is tested
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = load_test("textures", size=32), load_test("textures", size=32)
    data.split_normal(first.images, seed=0)
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.masks, second.masks)
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("size", [0, 16, 40, 48, 100, -64, 1056, 64.0, "64", True, None])
def test_bad_size(size):
    """One rule for images and for configurations, whose check is in every recipe's ranges."""
    for load in (load_train, load_test):
        with refused("size", SIZE[1]):
            load("textures", size=size)
    with refused("size", SIZE[1]):
        load_images([Path("x.png")], size=size)
    if type(size) is int:
        for name in DETECTORS:
            with pytest.raises(ValueError, match=f"size cannot be {size}; choose {SIZE[1]}"):
                detector_class(name).check(replace(recipe(name, "textures"), size=size))


def test_bad_texture():
    with refused("textures", "wood", "brick, grass, gravel"):
        load_train("textures", size=32, normal_class="wood")


# --- labelled folders ------------------------------------------------------------------------------------------------


def test_mvtec_folder(mvtec):
    train = load_train(str(mvtec), size=32)
    assert train.images.shape == (4, 3, 32, 32)
    assert train.names == tuple(f"train/good/{i:03d}.png" for i in range(4))
    test = load_test(str(mvtec), size=32)
    check_test_set(test, 5, 32)
    assert test.kinds == ("bent", "bent", "good", "good", "hole")
    assert test.names[0] == "test/bent/000.png"
    assert test.has_mask.all()
    expected = np.asarray(blob_mask().resize((32, 32), Image.Resampling.NEAREST)) > 0
    np.testing.assert_array_equal(test.masks[0].numpy(), expected)
    assert data.classes(str(mvtec)) == ("good",)
    assert torch.equal(load_train(str(mvtec), size=32, normal_class="good").images, train.images)
    with refused("cap", "bent", "good"):
        load_train(str(mvtec), size=32, normal_class="bent")


def test_load_train_never_touches_test_files(mvtec, monkeypatch):
    listed = []
    original = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: listed.append(self) or original(self))
    load_train(str(mvtec), size=32)
    assert listed
    assert not any("test" in path.parts or "ground_truth" in path.parts for path in listed)
    for name in ("test", "ground_truth"):
        shutil.rmtree(mvtec / name)
        (mvtec / name).write_text("not even a folder")
    load_train(str(mvtec), size=32)
    with refused("cap", "no test images"):
        load_test(str(mvtec), size=32)


def test_masks_are_optional_as_a_whole(mvtec):
    shutil.rmtree(mvtec / "ground_truth")
    test = load_test(str(mvtec), size=32)
    check_test_set(test, 5, 32)
    assert not test.has_mask.any()


def test_anomalous_image_without_mask(mvtec):
    (mvtec / "ground_truth/bent/001_mask.png").unlink()
    with refused("test/bent/001.png", "001_mask.png", "add it"):
        load_test(str(mvtec), size=32)


@pytest.mark.parametrize("name", ["bent/007_mask.png", "scratch/000_mask.png", "bent/000.png", "good/009_mask.png"])
def test_mask_without_image(mvtec, name):
    save(mvtec / "ground_truth" / name, blob_mask())
    with refused(name, "mask of no image"):
        load_test(str(mvtec), size=32)


def test_mask_of_another_size(mvtec):
    save(mvtec / "ground_truth/bent/000_mask.png", blob_mask((32, 40)))
    with refused("bent/000_mask.png", "32 x 40", "40 x 32"):
        load_test(str(mvtec), size=32)


def test_mask_as_jpeg(mvtec):
    (mvtec / "ground_truth/bent/000_mask.png").unlink()
    save(mvtec / "ground_truth/bent/000_mask.jpg", blob_mask())
    with refused("000_mask.jpg", "PNG"):
        load_test(str(mvtec), size=32)


def test_a_good_image_may_have_an_empty_mask_only(mvtec):
    save(mvtec / "ground_truth/good/000_mask.png", blob_mask(value=0))
    assert load_test(str(mvtec), size=32).has_mask.all()
    save(mvtec / "ground_truth/good/000_mask.png", blob_mask())
    with refused("good/000_mask.png", "good image"):
        load_test(str(mvtec), size=32)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I"])
def test_any_value_above_zero_is_defect_in_masks_of_every_mode(mvtec, mode):
    expected = np.asarray(blob_mask((32, 32))) > 0
    if mode.startswith("I"):
        mask = Image.fromarray(expected.astype(np.uint16 if mode == "I;16" else np.int32))
        assert mask.mode == mode
    else:
        mask = blob_mask((32, 32), value=255 if mode == "1" else 1).convert(mode)
    save(mvtec / "test/bent/000.png", picture(size=(32, 32)))
    (mvtec / "ground_truth/bent/000_mask.png").unlink()
    save(mvtec / f"ground_truth/bent/000_mask.{'tif' if mode == 'I' else 'png'}", mask)
    np.testing.assert_array_equal(load_test(str(mvtec), size=32).masks[0].numpy(), expected)


def test_masks_stay_with_their_image_when_turned_upright(mvtec):
    """An image with an orientation tag is turned; its mask, drawn on the upright image, is not."""
    exif = Image.Exif()
    exif[0x0112] = 6
    save(mvtec / "test/bent/000.png", picture(size=(32, 40)), exif=exif)  # upright: 40 x 32
    assert load_test(str(mvtec), size=32).masks[0].any()


@pytest.mark.parametrize(("lacking", "words"), [("good", "good images"), ("bent", "anomalous images")])
def test_test_set_needs_both_kinds(mvtec, lacking, words):
    shutil.rmtree(mvtec / "ground_truth")
    for kind in {"bent", "hole"} if lacking == "bent" else {"good"}:
        shutil.rmtree(mvtec / "test" / kind)
    with refused("cap/test", words):
        load_test(str(mvtec), size=32)


def test_empty_and_misplaced(mvtec):
    (mvtec / "test/new").mkdir()
    with refused("test/new", "empty"):
        load_test(str(mvtec), size=32)
    (mvtec / "test/new").rmdir()
    save(mvtec / "test/loose.png")
    with refused("test/loose.png", "beside"):
        load_test(str(mvtec), size=32)
    save(mvtec / "train/good/more/1.png")
    with refused("train/good/more", "folder among images"):
        load_train(str(mvtec), size=32)
    shutil.rmtree(mvtec / "train/good")
    with refused("cap/train", "no class folder", "train/good"):
        load_train(str(mvtec), size=32)
    save(mvtec / "train/1.png")
    with refused("cap/train", "1.png", "train/good"):
        load_train(str(mvtec), size=32)


def test_folder_of_several_classes(tmp_path):
    for name in ("a", "b", "c"):
        save(tmp_path / f"three/train/{name}/0.png")
        save(tmp_path / f"three/test/{name}/0.png")
    folder = str(tmp_path / "three")
    assert data.classes(folder) == ("a", "b", "c")
    assert load_train(folder, size=32, normal_class="b").names == ("train/b/0.png",)
    test = load_test(folder, size=32, normal_class="b")
    check_test_set(test, 3, 32)
    assert test.kinds == ("a", "good", "c")
    for load in (load_train, load_test):
        with refused("three", "no normal class", "a, b, c"):
            load(folder, size=32)
        with refused("three", "'d'", "a, b, c"):
            load(folder, size=32, normal_class="d")
    save(tmp_path / "three/train/good/0.png")
    save(tmp_path / "three/test/good/0.png")
    with refused("test/good", "not the normal class"):
        load_test(folder, size=32, normal_class="b")


# --- the split -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "fraction", "held"), [(2, 0.1, 1), (2, 0.9, 1), (3, 0.99, 2), (209, 0.1, 21), (10, 0.5, 5)]
)
def test_split_normal(n, fraction, held):
    images = torch.arange(n)[:, None, None, None].repeat(1, 3, 2, 2)
    fit, held_out = data.split_normal(images, fraction=fraction, seed=5)
    assert len(held_out) == held
    assert sorted(torch.cat([fit, held_out])[:, 0, 0, 0].tolist()) == list(range(n))
    again = data.split_normal(images, fraction=fraction, seed=5)
    assert torch.equal(held_out, again[1])


def test_split_normal_depends_on_the_seed_and_refuses_the_impossible():
    images = torch.arange(100)
    assert not torch.equal(data.split_normal(images, seed=0)[1], data.split_normal(images, seed=1)[1])
    for n, fraction in ((1, 0.1), (0, 0.1), (10, 0.0), (10, 1.0), (10, float("nan"))):
        with refused("hold out", "two images"):
            data.split_normal(images[:n], fraction=fraction, seed=0)


# --- MVTec AD itself -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "n_train", "n_test", "n_masked"), [("bottle", 209, 83, 63), ("pill", 267, 167, 141)])
def test_real_mvtec(name, n_train, n_test, n_masked):
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("ATTNAD_TEST_DATA", beside)) / "mvtec_ad" / name
    if not folder.is_dir():
        pytest.skip(f"MVTec AD is not at {folder}; set ATTNAD_TEST_DATA to the folder that holds mvtec_ad/{name}")
    assert load_train(str(folder), size=64).images.shape == (n_train, 3, 64, 64)
    test = load_test(str(folder), size=256)
    check_test_set(test, n_test, 256)
    assert test.has_mask.all()
    assert int(test.masks.flatten(1).any(1).sum()) == int(test.labels.sum()) == n_masked
