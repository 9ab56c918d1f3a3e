"""The embedded textures: which crops are whose, and what the painted defects look like."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from attnad.data import load_test, textures
from attnad.data.textures import CHOSEN_ON, CROP, DEFECTS, N_DEFECT, N_GOOD, N_OTHER, N_TRAIN, PARTS, TEXTURES

N_TEST = N_GOOD + N_DEFECT * len(DEFECTS) + N_OTHER


@pytest.mark.parametrize("texture", [*TEXTURES, *CHOSEN_ON])
def test_training_and_test_crops_share_no_pixel_and_no_position(texture):
    used = {}
    for part, n in (("train", N_TRAIN), ("test", N_TEST)):
        positions = textures.positions(texture, part, n)
        assert len({(left, top) for left, top, _ in positions}) == n
        assert all(0 <= left <= 512 - CROP and 0 <= top <= 512 - CROP for left, top, _ in positions)
        used[part] = {column for left, _, _ in positions for column in range(left, left + CROP)}
    assert not used["train"] & used["test"]
    assert PARTS["train"][0] - PARTS["test"][1] >= 8
    # Both parts are used over their whole width, and both are mirrored half of the time.
    assert len(used["train"]) > 300
    assert len(used["test"]) > 170


@pytest.mark.parametrize("texture", TEXTURES)
def test_crops_are_distinct_views_of_the_photograph(texture):
    crops = np.concatenate([textures.train_crops(texture, 32), *textures.held_out_crops(texture, 32)])
    assert crops.shape == (N_TRAIN + N_TEST, 32, 32, 3)
    assert crops.dtype == np.uint8
    assert len({crop.tobytes() for crop in crops}) == len(crops)
    assert np.ptp(crops, axis=3).max() == 0  # grey
    assert crops.std() > 10


def test_a_crop_is_the_photograph_where_positions_says():
    import skimage.data

    left, top, mirrored = textures.positions("brick", "train", N_TRAIN)[0]
    expected = skimage.data.brick()[top : top + CROP, left : left + CROP]
    np.testing.assert_array_equal(
        textures.train_crops("brick", CROP)[0, :, :, 0], expected[:, ::-1] if mirrored else expected
    )


@pytest.mark.parametrize("texture", CHOSEN_ON)
def test_surfaces_to_choose_on_are_the_middle_of_their_photographs_in_grey(texture):
    import skimage.data

    photograph = getattr(skimage.data, texture)().astype(float)
    grey = photograph @ (0.299, 0.587, 0.114) if photograph.ndim == 3 else photograph
    up, left = ((side - 512) // 2 for side in grey.shape)
    x, y, mirrored = textures.positions(texture, "train", N_TRAIN)[0]
    expected = grey[up + y : up + y + CROP, left + x : left + x + CROP]
    found = textures.train_crops(texture, CROP)[0, :, :, 0].astype(float)
    assert np.abs(found - (expected[:, ::-1] if mirrored else expected)).max() <= 1
    test = load_test("textures", size=32, normal_class=texture)
    assert test.labels.sum() == N_DEFECT * len(DEFECTS) + N_OTHER * len(TEXTURES)
    assert test.masks[test.labels & test.has_mask].flatten(1).any(1).all()


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("texture", TEXTURES)
def test_defects_change_exactly_what_their_mask_says(texture, size):
    images, masks, kinds = textures.defects(texture, size)
    _, clean, _ = textures.held_out_crops(texture, size)
    change = np.abs(images.astype(int) - clean).max(axis=3)
    assert change[~masks].max() == 0
    for kind in DEFECTS:
        of_kind = [i for i, k in enumerate(kinds) if k == kind]
        assert len(of_kind) == N_DEFECT
        for i in of_kind:
            assert 0.003 < masks[i].mean() < 0.25, f"{kind}: {masks[i].mean():.1%} of the image"
            assert change[i][masks[i]].mean() > 20, f"{kind}: hardly visible"
            assert (change[i][masks[i]] >= 4).mean() > 0.7, f"{kind}: much of the mask is unchanged"


def test_defects_are_no_axis_aligned_rectangles():
    """Training pastes rectangles: the defects of the test must be of other shapes."""
    _, masks, _ = textures.defects("brick", 64)
    for mask in masks:
        labels, n = ndimage.label(mask)
        largest = 1 + np.argmax(ndimage.sum_labels(mask, labels, range(1, n + 1)))
        box = ndimage.find_objects(labels)[largest - 1]
        assert (labels[box] == largest).mean() < 0.9


def test_the_same_scene_at_every_size():
    """Shapes are in units of the crop: masks of 32, 64 and 128 pixels show the same."""
    masks = {size: textures.defects("gravel", size)[1] for size in (32, 64, 128)}
    for size in (32, 64):
        large = masks[128].reshape(len(masks[128]), size, 128 // size, size, 128 // size).mean(axis=(2, 4))
        blobs = slice(2 * N_DEFECT, None)  # thin lines grow by the width of a pixel
        assert np.abs(large[blobs] - masks[size][blobs]).mean() < 0.02


def test_defects_are_the_same_every_time_and_leave_the_global_random_state_alone():
    np.random.seed(3)  # noqa: NPY002 - the global state is what is tested
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = textures.defects("grass", 32), textures.defects("grass", 32)
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    assert len({image.tobytes() for image in first[0]}) == len(first[0])
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002
