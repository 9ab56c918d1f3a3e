"""Data sets laid out as people have them, and masks as files hold them."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attnad import data
from attnad.data import load_test, load_train
from attnad.data.images import defect_of
from attnad.errors import DataError

SIDE = 48


def save(path: Path, value: int = 128, kind: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((SIDE, SIDE, 3), value, np.uint8)).save(path, kind)


def mask(path: Path, top: int = 8, *, value: int = 255, side: int = 16) -> None:
    """A square of `value`, 16 pixels from the left."""
    values = np.zeros((SIDE, SIDE), np.uint8)
    values[top : top + side, 16 : 16 + side] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def square(*tops: int, side: int = 16) -> np.ndarray:
    expected = np.zeros((SIDE, SIDE), bool)
    for top in tops:
        expected[top : top + side, 16 : 16 + side] = True
    return np.asarray(Image.fromarray(expected).resize((32, 32), Image.Resampling.NEAREST))


def loaded(folder: Path, n_train: int, kinds: dict[str, int], normal: str) -> data.TestSet:
    """Load both parts at 32 pixels; check how many there are of what, and that no image is in both."""
    assert data.classes(str(folder)) == (normal,)
    train, test = load_train(str(folder), size=32), load_test(str(folder), size=32)
    assert len(train.images) == len(train.names) == n_train
    assert {kind: test.kinds.count(kind) for kind in dict.fromkeys(test.kinds)} == kinds
    assert test.labels.tolist() == [kind != "good" for kind in test.kinds]
    assert not set(train.names) & set(test.names)
    assert not test.masks[~test.labels].any()
    return test


def test_btad(tmp_path):
    for i in range(3):
        save(tmp_path / f"train/ok/{i:04d}.bmp")
    save(tmp_path / "test/ok/0000.bmp")
    for i, top in enumerate((0, 24)):
        save(tmp_path / f"test/ko/{i:04d}.png")
        mask(tmp_path / f"ground_truth/ko/{i:04d}.png", top)
    test = loaded(tmp_path, 3, {"ko": 2, "good": 1}, "ok")
    np.testing.assert_array_equal(test.masks[:2].numpy(), [square(0), square(24)])
    assert test.has_mask.all()


def test_loco_joins_the_masks_of_an_image_and_trains_on_validation_too(tmp_path):
    for part, n in {"train/good": 4, "validation/good": 2, "test/good": 1}.items():
        for i in range(n):
            save(tmp_path / f"{part}/{i:03d}.png")
    for kind in ("logical_anomalies", "structural_anomalies"):
        save(tmp_path / f"test/{kind}/000.png")
    mask(tmp_path / "ground_truth/logical_anomalies/000/000.png", 0, value=250)
    mask(tmp_path / "ground_truth/logical_anomalies/000/001.png", 30, value=1)
    mask(tmp_path / "ground_truth/structural_anomalies/000/000.png", 16, value=234)
    test = loaded(tmp_path, 6, {"good": 1, "logical_anomalies": 1, "structural_anomalies": 1}, "good")
    np.testing.assert_array_equal(test.masks[1:].numpy(), [square(0, 30), square(16)])


def test_mvtec_ad_2(tmp_path):
    for part, n in {"train/good": 4, "validation/good": 2, "test_public/good": 2, "test_private": 3}.items():
        for i in range(n):
            save(tmp_path / f"{part}/{i:03d}.png")
    save(tmp_path / "test_public/bad/000_regular.png")
    mask(tmp_path / "test_public/ground_truth/bad/000_regular_mask.png")
    test = loaded(tmp_path, 6, {"bad": 1, "good": 2}, "good")
    np.testing.assert_array_equal(test.masks[0].numpy(), square(8))


def visa(folder: Path) -> Path:
    for i in range(20):
        save(folder / f"Data/Images/Normal/{i:04d}.JPG", kind="JPEG")
    for i in range(2):
        save(folder / f"Data/Images/Anomaly/{i:03d}.JPG", kind="JPEG")
        mask(folder / f"Data/Masks/Anomaly/{i:03d}.png", 8 * i, value=1 + i)
    (folder / "image_anno.csv").write_text("image,label,mask\n")
    return folder


def test_visa_without_its_table_keeps_every_tenth_normal_image_for_testing(tmp_path):
    test = loaded(visa(tmp_path / "candle"), 18, {"Anomaly": 2, "good": 2}, "Normal")
    np.testing.assert_array_equal(test.masks[:2].numpy(), [square(0), square(8)])
    assert test.names[2:] == ("Data/Images/Normal/0009.JPG", "Data/Images/Normal/0019.JPG")


def table(folder: Path, part: Callable[[int], str]) -> Path:
    """VisA's table beside an object's folder; part says where each normal image belongs."""
    path = folder.parent / "split_csv/1cls.csv"
    path.parent.mkdir()
    rows = [("candle", part(i), "normal", f"candle/Data/Images/Normal/{i:04d}.JPG", "") for i in range(20)]
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("object", "split", "label", "image", "mask"), *rows, ("pcb1", *rows[0][1:])])
    return path


def test_visa_as_its_table_says(tmp_path):
    folder = visa(tmp_path / "candle")
    path = table(folder, lambda i: "test" if i < 5 else "train")
    test = loaded(folder, 15, {"Anomaly": 2, "good": 5}, "Normal")
    assert test.names[2:] == tuple(f"Data/Images/Normal/{i:04d}.JPG" for i in range(5))
    path.write_text("".join(line for line in path.read_text().splitlines(True) if "0007" not in line))
    with pytest.raises(DataError, match=r"0007\.JPG: .*1cls\.csv does not say"):
        load_train(str(folder), size=32)


def test_visa_table_holds_however_the_folder_is_named(tmp_path, monkeypatch):
    folder = visa(tmp_path / "candle")
    table(folder, lambda i: "test" if i < 5 else "train")
    for here, name in ((tmp_path, "candle"), (folder, "."), (folder / "Data", "..")):
        monkeypatch.chdir(here)
        assert len(load_train(name, size=32).images) == 15
        assert len(load_test(name, size=32).images) == 7


@pytest.mark.parametrize(
    ("part", "more", "says"),
    [
        (lambda i: "train", "", "keeps no normal image of candle for testing"),
        (lambda i: "test", "", "keeps no normal image of candle for training"),
        (lambda i: "train", "candle,test,normal,candle/Data/Images/Normal/0007.JPG,", r"0007\.JPG: .* says both"),
        (lambda i: "train", "\udcff", "cannot be read as a table"),
    ],
)
def test_visa_table_that_cannot_be_meant(tmp_path, part, more, says):
    folder = visa(tmp_path / "candle")
    path = table(folder, part)
    path.write_bytes(path.read_bytes() + more.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=says):
        load_train(str(folder), size=32)


def test_visa_table_from_a_spreadsheet(tmp_path):
    folder = visa(tmp_path / "candle")
    path = table(folder, lambda i: "train" if i else "test")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(load_train(str(folder), size=32).images) == 19


@pytest.mark.parametrize("name", ["bad/0.png", "0.png"])
def test_validation_holds_normal_images_only(tmp_path, name):
    for part in ("train/good/0", "train/good/1", "validation/good/0"):
        save(tmp_path / f"{part}.png")
    save(tmp_path / "validation" / name)
    with pytest.raises(DataError, match="validation is trained on"):
        load_train(str(tmp_path), size=32)


@pytest.mark.parametrize("second", ["000.bmp", "000/000.png"])
def test_a_second_mask_of_an_image_is_refused(tmp_path, second):
    for part in ("train/good", "test/good", "test/bent"):
        save(tmp_path / part / "000.png")
    mask(tmp_path / "ground_truth/bent/000.png", 0)
    mask(tmp_path / "ground_truth/bent" / second, 30)
    with pytest.raises(DataError, match=r"is a second mask of .*bent/000\.png"):
        load_test(str(tmp_path), size=32)


def test_good_and_bad(tmp_path):
    for i in range(11):
        save(tmp_path / f"good/{i:02d}.png")
    save(tmp_path / "bad/00.png")
    assert not loaded(tmp_path, 10, {"bad": 1, "good": 1}, "good").has_mask.any()
    mask(tmp_path / "ground_truth/bad/00.png")
    test = loaded(tmp_path, 10, {"bad": 1, "good": 1}, "good")
    np.testing.assert_array_equal(test.masks[0].numpy(), square(8))
    for path in sorted((tmp_path / "good").iterdir())[:2]:
        path.unlink()
    with pytest.raises(DataError, match="holds 9 normal images, of which every tenth"):
        load_train(str(tmp_path), size=32)


@pytest.mark.parametrize(
    ("there", "name"),
    [
        (("training/good", "testing/good"), "MVTec AD"),
        (("data/images/normal_ones", "data/masks"), "VisA"),
        (("Goods", "Bads"), "good and bad"),
        (("trains/good", "test_publics/good"), "MVTec AD 2"),
    ],
)
def test_another_layout_is_refused_with_the_one_most_like_it(tmp_path, there, name):
    for folder in there:
        save(tmp_path / folder / "0.png")
    with pytest.raises(DataError, match=f"no layout we know; .* lay them out as {name}"):
        load_train(str(tmp_path), size=32)


def test_a_folder_of_data_sets_is_not_searched(tmp_path):
    visa(tmp_path / "candle")
    with pytest.raises(DataError, match=r"name one data set, such as .*candle"):
        load_train(str(tmp_path), size=32)


# --- what a mask's values mean ---------------------------------------------------------------------------------------


def drawn() -> np.ndarray:
    """A disc and a thin scratch, 0 and 255."""
    y, x = np.mgrid[:SIDE, :SIDE]
    return np.where((np.hypot(x - 30, y - 16) < 9) | (abs(x - y + 18) < 1.5), 255, 0).astype(np.uint8)


@pytest.mark.parametrize("quality", [50, 75, 95])
def test_a_mask_that_has_been_through_jpeg_is_cut_at_half(quality):
    file = io.BytesIO()
    Image.fromarray(drawn()).save(file, "JPEG", quality=quality)
    values = np.asarray(Image.open(file))
    assert ((values > 0) & (drawn() == 0)).sum() > 50, "the case is not there"
    defect, soft = defect_of(values)
    assert soft
    assert (defect != (drawn() > 0)).mean() < 0.01


def test_a_smoothed_mask_is_cut_at_half():
    large = Image.fromarray(np.kron(drawn(), np.ones((4, 4), np.uint8)))
    values = np.asarray(large.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    shrunk, soft = defect_of(np.asarray(large.resize((90, 90), Image.Resampling.BILINEAR)))
    assert soft
    assert shrunk.mean() == pytest.approx((drawn() > 0).mean(), abs=0.01)
    assert (defect_of(values)[0] != (drawn() > 0)).mean() < 0.01


@pytest.mark.parametrize("values", [(0,), (0, 1), (0, 255), (0, 1, 2, 3), (0, 80, 160, 240), (0, 7, 31), (1, 2)])
def test_kinds_of_defects_as_numbers(values):
    mask = np.repeat(np.array(values, np.uint8), 20)[:, None].repeat(20, 1)
    defect, soft = defect_of(mask)
    assert not soft
    np.testing.assert_array_equal(defect, mask > 0)


def test_values_all_over_the_range_are_refused():
    ramp = np.arange(256, dtype=np.uint8)[None].repeat(32, 0)
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE), np.uint8)
    y, x = np.mgrid[:SIDE, :SIDE]
    scores = np.exp(-((x - 24.0) ** 2 + (y - 24.0) ** 2) / 300)  # as floats; as 8 bits of a dim picture
    for values in (ramp, noise, scores, (scores * 30).astype(np.uint8)):
        with pytest.raises(DataError, match="all over the range"):
            defect_of(values)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_refused(value):
    mask = np.zeros((SIDE, SIDE), np.float32)
    mask[:8], mask[0, 0] = 1, value
    with pytest.raises(DataError, match="no numbers"):
        defect_of(mask)


def test_a_soft_border_is_said_once_and_a_map_is_refused_by_name(tmp_path):
    for i in range(2):
        save(tmp_path / f"train/good/{i}.png")
        save(tmp_path / f"test/bent/{i}.png")
        path = tmp_path / f"ground_truth/bent/{i}_mask.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        file = io.BytesIO()
        Image.fromarray(drawn()).save(file, "JPEG")
        Image.open(file).save(path)
    save(tmp_path / "test/good/0.png")
    with pytest.warns(UserWarning, match=r"0_mask\.png: its border is soft.* 2 of 2 masks") as told:
        load_test(str(tmp_path), size=32)
    assert len(told) == 1
    Image.fromarray(np.arange(SIDE * SIDE).reshape(SIDE, SIDE).astype(np.uint8)).save(path)
    with pytest.raises(DataError, match=r"1_mask\.png: its values lie all over the range"):
        load_test(str(tmp_path), size=32)
