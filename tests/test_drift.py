"""What photographs look like as a whole, and when a batch is told from what was learned."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from made import write_images
from PIL import Image, ImageFilter
from scipy import ndimage
from skimage.registration import phase_cross_correlation

from attnad.cli import main
from attnad.data import textures
from attnad.data.images import to_tensor
from attnad.run.calibration import p_values
from attnad.run.drift import FEW, NAMES, compare, describe_normal, is_description, measure
from attnad.training.storage import load_json

S = 128


def parts(n: int, seed: int = 0, pose: float = 0.0) -> np.ndarray:
    """Photographs of a part that lies alike, or within a share `pose` of the side: uint8 [n, S, S, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:S, :S] / S - 0.5
    images = []
    for _ in range(n):
        right, down = rng.uniform(-pose, pose, 2) + rng.normal(0, 0.002, 2)
        at, along = x - right, y - down
        part = (abs(at) < 0.3) & (abs(along) < 0.15) & ((at - 0.2) ** 2 + along**2 > 0.07**2)
        grey = ndimage.gaussian_filter(40 + 120 * part.astype(float), 0.8) * rng.normal(1, 0.02)
        images.append(grey[..., None] * rng.normal([1.1, 1, 0.9], 0.01) + rng.normal(0, 1, (S, S, 1)))
    return np.stack(images).clip(0, 255).round().astype(np.uint8)


def looks(images: np.ndarray, known: dict) -> list[list[float]]:
    return [[*row, S, S] for row in measure(to_tensor(images), known).tolist()]


def column(images: np.ndarray, name: str, known: dict | None = None) -> np.ndarray:
    return np.array(looks(images, known or {}))[:, NAMES.index(name)]


@pytest.fixture(scope="module")
def known() -> dict:
    return json.loads(json.dumps(describe_normal(to_tensor(parts(60)), [(S, S)] * 60)))  # as run.json has it


def test_light_and_colours_are_means():
    images = np.random.default_rng(0).integers(0, 256, (3, S, S, 3), dtype=np.uint8)
    images[1, :, S // 2 :] //= 2
    grey = images.mean((1, 2, 3))
    np.testing.assert_allclose(column(images, "brightness"), grey, rtol=1e-5)
    for i, name in enumerate(("red", "green", "blue")):
        np.testing.assert_allclose(column(images, name), (images[..., i].mean((1, 2)) + 1) / (grey + 1), rtol=1e-5)
    halves = [images[:, :, i * S // 2 :][:, :, : S // 2].mean((1, 2, 3)) for i in (0, 1)]
    np.testing.assert_allclose(column(images, "across"), (halves[1] - halves[0]) / (grey + 1), atol=1e-5)
    np.testing.assert_allclose(column(images.swapaxes(1, 2), "along"), column(images, "across"), atol=1e-5)


def test_sharpness_is_the_laplacian_s_variance_of_the_variance():
    grey = parts(4).mean(-1)
    wanted = [np.log((ndimage.laplace(each)[1:-1, 1:-1].var() + 0.1) / (each.var() + 0.1)) for each in grey]
    np.testing.assert_allclose(column(parts(4), "sharpness"), wanted, rtol=1e-3)


@pytest.mark.parametrize("sigma", [2.0, 4.0, 8.0])
def test_noise_is_what_was_added(sigma):
    noise = np.random.default_rng(0).normal(0, sigma, (2, 256, 256, 1))
    images = (100 + noise).round().astype(np.uint8).repeat(3, -1)
    np.testing.assert_allclose(column(images, "noise"), sigma, rtol=0.03)
    edges = (images + 60 * (np.arange(256) // 32 % 2)[:, None]).astype(np.uint8)  # which are no noise
    np.testing.assert_allclose(column(edges, "noise"), sigma, rtol=0.1)


@pytest.mark.parametrize(("right", "down"), [(0.03, -0.05), (-0.1, 0.0), (0.0, 0.08), (0.2, 0.2)])
def test_a_shift_is_found_as_scikit_image_finds_it(known, right, down):
    moved = np.stack([ndimage.shift(each, (down * S, right * S, 0), mode="nearest") for each in parts(4, 1)])
    found = column(moved, "right", known), column(moved, "down", known)
    np.testing.assert_allclose(found, [[right] * 4, [down] * 4], atol=0.01)
    mean = parts(60).mean((0, 3))
    theirs, _, _ = phase_cross_correlation(mean, moved[0].mean(-1), upsample_factor=10, normalization=None)
    np.testing.assert_allclose([found[1][0], found[0][0]], -theirs / S, atol=0.01)


@pytest.mark.parametrize("turn", [-7.0, -3.0, 0.0, 2.5, 5.0])
def test_a_turn_is_found(known, turn):
    turned = np.stack([np.asarray(Image.fromarray(each).rotate(turn, Image.Resampling.BICUBIC, fillcolor=(44, 40, 36)))
                       for each in parts(4, 1)])  # fmt: skip
    np.testing.assert_allclose(column(turned, "turn", known), turn, atol=1)


def test_parts_in_any_pose_are_not_told_from_each_other(known):
    assert {"right", "down", "turn"} <= known["ranges"].keys()
    for images in (parts(60, pose=0.2), textures.train_crops("gravel", S)[:60]):
        facts = describe_normal(to_tensor(images))
        assert not {"right", "down", "turn", "width"} & facts["ranges"].keys()
        assert "mean" not in facts
    one_way = parts(60)
    one_way = np.stack([np.roll(each, i - 30, axis=1) for i, each in enumerate(one_way)])
    assert describe_normal(to_tensor(one_way))["ranges"].keys() & {"right", "down"} == {"down"}


MOVED = {
    "light": (lambda x: x * 0.85, "are darker than .* is it the lamp"),
    "brighter": (lambda x: x * 1.2, "are brighter than .* is it the lamp"),
    "lit from one side": (
        lambda x: x * np.linspace(0.85, 1.15, S)[:, None],
        "are lit more from the right than .* has a lamp",
    ),
    "colour": (lambda x: x * [1.1, 1, 0.9], "are (more red|less blue) than .* white balance"),
    "noise": (lambda x: x + np.random.default_rng(0).normal(0, 4, x.shape), "have more noise than .* exposure"),
    "blur": (
        lambda x: np.stack([np.asarray(Image.fromarray(i).filter(ImageFilter.GaussianBlur(2))) for i in x]),
        "are less sharp than .* in focus",
    ),
    "shift": (lambda x: np.roll(x, 4, axis=2), r"lie 3\.\d% of the width further right than .* has the camera"),
    "turn": (
        lambda x: np.stack([np.asarray(Image.fromarray(i).rotate(-4, fillcolor=(44, 40, 36))) for i in x]),
        r"are turned by (3\.[5-9]|4\.\d) degrees to the right: has the camera",
    ),
}


@pytest.mark.parametrize("name", MOVED)
def test_what_moved_is_said(known, name):
    move, word = MOVED[name]
    moved = move(parts(20, 1)).clip(0, 255).round().astype(np.uint8)
    said = compare(looks(moved, known), known, [], 0, defective=0.5)
    assert any(re.search(f"(1[1-9]|20) of 20 {word}", sentence) for sentence in said.values()), said
    half = np.concatenate([moved[:10], parts(10, 2)])  # of which no more than half is outside
    assert not compare(looks(half, known), known, [], 0, defective=0.5)
    assert not compare(looks(moved[: FEW - 1], known), known, [], 0, defective=0.5)


def test_another_size_is_said(known):
    other = [[*row[:-2], 640, 480] for row in looks(parts(10, 1), known)]
    said = compare(other, known, [], 0, defective=0.5)
    assert list(said) == ["size"]
    assert "10 of 10 have another size, 640 x 480 pixels and not 128 x 128" in said["size"]


@pytest.mark.parametrize("n", [12, 40, 200])
def test_photographs_like_those_learned_from_raise_no_alarm(n):
    """Of 300 trainings and batches with all they differ by drawn anew, no more than one in a hundred."""
    rng, alarms = np.random.default_rng(n), 0
    for _ in range(300):
        train, batch = (100 * rng.standard_normal((k, len(NAMES))) for k in (n, 12))
        low, high = np.quantile(train, [0.05, 0.95], axis=0)
        facts = {"n": n, "ranges": {name: [low[i], high[i]] for i, name in enumerate(NAMES)}}
        alarms += bool(compare(batch, facts, [], 0, defective=0.5))
    assert alarms <= 3


def test_resampled_training_photographs_raise_no_alarm(known):
    rng, images = np.random.default_rng(0), parts(60)
    for _ in range(20):
        chosen = rng.choice(60, 12)
        assert not compare(looks(images[chosen], known), known, [], 0, defective=0.5)
    broken = images[:12].copy()
    broken[:6, 50:80, 20:60] = 40  # a part of the part is missing, in half of them
    assert not compare(looks(broken, known), known, [], 0, defective=0.5)


@pytest.mark.parametrize("m", [20, 200])
def test_p_values_of_batches_with_defects(known, m):
    """Good ones, and as many defective ones as may be, some hardly seen, raise an alarm at most once in a hundred."""
    rng = np.random.default_rng(m)

    def alarms(n: int, share: float, shift: float, defective: float, times: int = 200) -> int:
        found = 0
        for _ in range(times):
            scores = rng.standard_normal(n) + shift
            bad = round(n * share)
            scores[:bad] += rng.exponential(3, bad)
            rare = p_values(scores, rng.standard_normal(m).tolist())
            found += bool(compare([], known, rare, m, defective=defective))
        return found

    for n in (10, 20, 150):
        assert alarms(n, 0.0, 0.0, 0.5) <= 2
        assert alarms(n, 0.5, 0.0, 0.5) <= 2
        assert alarms(n, 0.9, 0.0, 0.9) <= 2
    assert alarms(20, 0.0, 4.0, 0.5) >= 198  # all look odd
    assert alarms(150, 0.3, 4.0, 0.9) >= 198


def test_a_description_that_was_tampered_with_is_known(known):
    assert is_description(known)
    assert is_description(json.loads(json.dumps(describe_normal(to_tensor(parts(3))))))
    for other in (
        None, [], {}, {**known, "mean": "abc"}, {**known, "mean": "A" * 40_000}, {**known, "n": 0}, {**known, "n": "9"},
        {**known, "mean": 3}, {**known, "ranges": {"brightness": [1]}}, {**known, "ranges": {"brightness": [2, 1]}},
        {**known, "ranges": {"brightness": [float("nan"), 1]}}, {**known, "ranges": {"other": [0, 1]}},
        {**known, "ranges": [0]}, {**known, "ranges": {"red": ["a", "b"]}},
    ):  # fmt: skip
        assert not is_description(other), other


@pytest.mark.parametrize("value", [0, 255])
def test_blank_photographs_have_finite_looks(known, value):
    assert torch.isfinite(measure(torch.full((2, 3, S, S), value, dtype=torch.uint8), known)).all()


TINY = ["--recipe", "gaussian", "--size", "64", "--min-side", "64", "--channels", "16"]


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A folder with runs on photographs of parts, whole and in tiles, like ones in `new` and dark ones in `dark`."""
    folder = tmp_path_factory.mktemp("moved")
    write_images(folder / "good", parts(30))
    write_images(folder / "new", parts(12, 1))
    write_images(folder / "dark", (parts(12, 1) * 0.8).astype(np.uint8))
    assert main(["train", str(folder / "good"), *TINY, "--out", str(folder / "whole")]) == 0
    assert main(["train", str(folder / "good"), *TINY, "--tile", "128", "--out", str(folder / "tiles")]) == 0
    return folder


@pytest.mark.parametrize("run", ["whole", "tiles"])
def test_the_last_line_and_the_report_say_it(work, run, tmp_path, capsys):
    for photographs, word in (
        ("new", ""),
        ("dark", "12 of 12 are darker than nearly all photographs that were learned"),
    ):
        out = tmp_path / photographs
        capsys.readouterr()
        assert main(["score", str(work / run), str(work / photographs), "--out", str(out), "--threshold", "-1"]) == 0
        last = capsys.readouterr().out.strip().splitlines()[-1]
        page = (out / "report.html").read_text(encoding="utf-8")
        assert ("Changed since training" in page) is bool(word)
        assert word in page
        if word:
            assert last.startswith(f"12 of 12 are flagged, and {word} from: is it the lamp?")
        else:
            assert last.startswith("All 12 are flagged. Rather than 12 defects")


def test_a_run_of_an_earlier_version_says_nothing(work, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    for path in (work / "whole").glob("*.*"):
        (run / path.name).write_bytes(path.read_bytes())
    facts = load_json(run / "run.json")
    del facts["looks"]
    (run / "run.json").write_text(json.dumps(facts))
    assert main(["score", str(run), str(work / "dark"), "--out", str(tmp_path / "out")]) == 0
    assert "darker" not in capsys.readouterr().out
    facts["looks"] = {"ranges": {"brightness": [3, 1]}, "n": 3}
    (run / "run.json").write_text(json.dumps(facts))
    assert main(["score", str(run), str(work / "dark"), "--out", str(tmp_path / "out2")]) == 2
    assert "looks is missing or damaged" in capsys.readouterr().err
