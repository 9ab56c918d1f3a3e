"""All metrics at once, what is left unknown, and what is refused."""

import math

import numpy as np
import pytest
from made import random_set

from attnad.metrics import (
    METRICS,
    aupro,
    auroc,
    average_precision,
    balanced_accuracy,
    evaluate_scores,
    f1_max,
    normal_threshold,
    oracle_balanced_accuracy,
)

RANKING = [auroc, average_precision, f1_max, oracle_balanced_accuracy]

# Worked by hand, from the highest score: 1, then a tie of one 1 and one 0, then 0, then 1.
LABELS = [1, 0, 1, 0, 1]
SCORES = [9, 5, 5, 3, 1]


# All at once.


def test_evaluate_scores_gathers_the_single_metrics():
    masks, maps = random_set(11, 30)
    labels, scores = masks.any(axis=(1, 2)), maps.max(axis=(1, 2)) - np.arange(6)
    threshold = float(np.median(scores))
    result = evaluate_scores(labels, scores, threshold=threshold, masks=masks, maps=maps)
    assert result == pytest.approx(
        {
            "image_auroc": auroc(labels, scores),
            "image_ap": average_precision(labels, scores),
            "image_f1max": f1_max(labels, scores),
            "pixel_auroc": auroc(masks, maps),
            "pixel_ap": average_precision(masks, maps),
            "pixel_f1max": f1_max(masks, maps),
            "aupro": aupro(masks, maps, 0.3),
            "balanced_accuracy": balanced_accuracy(labels, scores, threshold),
            "n": 6,
            "n_pixel_images": 6,
        }
    )
    assert [*result] == [*METRICS, "n", "n_pixel_images"]
    assert all(type(value) in (float, int) for value in result.values())  # not NumPy's: they go to CSV and JSON


def test_evaluate_scores_counts_only_images_with_a_mask():
    masks, maps = random_set(12, 30)
    labels, scores = masks.any(axis=(1, 2)), np.arange(6)
    has_mask = np.array([1, 0, 1, 1, 0, 1])
    masks_given = masks.copy()
    masks_given[[1, 4]] = True  # where no mask is known, whatever stands there is ignored
    result = evaluate_scores(labels, scores, threshold=2, masks=masks_given, maps=maps, has_mask=has_mask)
    known = has_mask == 1
    assert (result["n"], result["n_pixel_images"]) == (6, 4)
    assert result["pixel_auroc"] == pytest.approx(auroc(masks[known], maps[known]))
    assert result["aupro"] == pytest.approx(aupro(masks[known], maps[known]))
    assert result["image_auroc"] == pytest.approx(auroc(labels, scores))


@pytest.mark.parametrize("given_arrays", [(), ("masks",), ("maps",), ("masks", "maps", "has_mask")])
def test_evaluate_scores_without_masks(given_arrays):
    # The last case: a loader that fills in zeros and says that no mask is known.
    zeros = {"masks": np.zeros((3, 2, 2)), "maps": np.ones((3, 2, 2)), "has_mask": np.zeros(3)}
    result = evaluate_scores([0, 1, 1], [0, 1, 2], threshold=1, **{name: zeros[name] for name in given_arrays})
    assert [name for name in METRICS if result[name] is None] == ["pixel_auroc", "pixel_ap", "pixel_f1max", "aupro"]
    assert (result["image_auroc"], result["balanced_accuracy"]) == (1, 0.75)
    assert (result["n"], result["n_pixel_images"]) == (3, 0)


def test_evaluate_scores_of_good_images_only_is_none():
    result = evaluate_scores([0, 0], [1, 2], threshold=1, masks=np.zeros((2, 3, 3)), maps=np.ones((2, 3, 3)))
    assert result == dict.fromkeys(METRICS) | {"n": 2, "n_pixel_images": 2}


def test_evaluate_scores_of_defective_images_only_keeps_the_pixel_metrics():
    masks, maps = random_set(5, 30)
    masks, maps = masks[:4], maps[:4]
    result = evaluate_scores([1] * 4, [0] * 4, threshold=1, masks=masks, maps=maps)
    assert result["image_auroc"] is None
    assert result["balanced_accuracy"] is None
    assert result["aupro"] == pytest.approx(aupro(masks, maps))


def test_inputs_are_left_as_they_were():
    masks, maps = random_set(6, 30)
    labels, scores = masks.any(axis=(1, 2)), np.arange(6.0)
    before = [a.copy() for a in (masks, maps, labels, scores)]
    evaluate_scores(labels, scores, threshold=1, masks=masks, maps=maps, has_mask=np.ones(6))
    for was, now in zip(before, (masks, maps, labels, scores), strict=True):
        np.testing.assert_array_equal(was, now)


# What is refused, and in which words.


@pytest.mark.parametrize("metric", [*RANKING, lambda y, s: balanced_accuracy(y, s, 0.5)])
@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 0], [1, 2], r"labels holds only 0 \(good\)"),
        ([1, 1], [1, 2], r"labels holds only 1 \(anomalous\)"),
        ([0, 1], [3, 3, 3], r"labels has shape \(2,\), scores \(3,\)"),
        ([0, 255], [1, 2], r"labels holds 255 at index \[1\].*labels > 0"),
        ([0, math.nan], [1, 2], r"labels holds nan at index \[1\]"),
        (["good", "bad"], [1, 2], r"labels holds 'good' at index \[0\]"),
        ([], [], r"labels is empty"),
        ([0, 1, 1], [1, math.nan, math.nan], r"scores holds 2 NaN and 0 infinite values, the first at index \[1\]"),
        ([0, 1, 1], [1, 2, -math.inf], r"scores holds 0 NaN and 1 infinite values, the first at index \[2\]"),
        ([0, 1], ["a", "b"], r"scores has dtype <U1"),
        ([0, 1], [None, 1.0], r"scores has dtype object"),
        ([[0, 1], [1]], [1, 2], r"labels is not one array"),
    ],
)
def test_ranking_metrics_refuse(metric, labels, scores, message):
    with pytest.raises(ValueError, match=message):
        metric(labels, scores)


@pytest.mark.parametrize(
    ("masks", "maps", "max_fpr", "message"),
    [
        (np.zeros((2, 3, 3)), np.ones((2, 3, 3)), 0.3, "masks holds only 0"),
        (np.ones((2, 3, 3)), np.ones((2, 3, 3)), 0.3, "masks holds only 1"),
        (np.eye(3), np.eye(3), 0.3, r"shape \(3, 3\): reshape them to \(n, height, width\)"),
        (np.eye(3)[None], np.eye(4)[None], 0.3, r"masks has shape \(1, 3, 3\), maps \(1, 4, 4\)"),
        (255 * np.eye(3)[None], np.eye(3)[None], 0.3, r"masks holds 255.0 at index \[0, 0, 0\].*masks > 0"),
        (np.eye(3)[None], np.diag([1, 1, np.nan])[None], 0.3, r"maps holds 1 NaN .* index \[0, 2, 2\]"),
        (np.zeros((0, 3, 3)), np.zeros((0, 3, 3)), 0.3, "masks is empty"),
        (np.eye(3)[None], [np.eye(3), np.eye(4)], 0.3, "maps is not one array"),
        (np.eye(3)[None], np.eye(3)[None], 0, "max_fpr is 0"),
        (np.eye(3)[None], np.eye(3)[None], 30, "max_fpr is 30"),
        (np.eye(3)[None], np.eye(3)[None], math.nan, "max_fpr is nan"),
    ],
)
def test_aupro_refuses(masks, maps, max_fpr, message):
    with pytest.raises(ValueError, match=message):
        aupro(masks, maps, max_fpr)


def test_thresholds_refuse():
    with pytest.raises(ValueError, match="normal_scores is empty"):
        normal_threshold([])
    with pytest.raises(ValueError, match="normal_scores holds 1 NaN"):
        normal_threshold([1, math.nan])
    for quantile in (95, -0.1, math.nan):
        with pytest.raises(ValueError, match=f"quantile is {quantile}"):
            normal_threshold([1, 2], quantile)
    with pytest.raises(ValueError, match="threshold holds 1 NaN"):
        balanced_accuracy(LABELS, SCORES, math.nan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": math.nan}, "threshold holds 1 NaN"),
        ({"scores": [0, 1]}, r"labels has shape \(3,\), scores \(2,\)"),
        ({"labels": [[0, 1, 1]], "scores": [[0, 1, 2]]}, r"reshape them to \(n,\)"),
        ({"masks": np.zeros((2, 2, 2)), "maps": np.zeros((2, 2, 2))}, r"masks has entries \(2,\), labels \(3,\)"),
        ({"masks": np.zeros((3, 2, 2, 1)), "maps": np.zeros((3, 2, 2, 1))}, r"\(n, height, width\)"),
        ({"maps": np.full((3, 2, 2), np.nan)}, "maps holds 12 NaN"),
        ({"has_mask": [1, 1]}, r"has_mask has entries \(2,\), labels \(3,\)"),
        ({"has_mask": [1, 1, 2]}, "has_mask holds 2 at index"),
        ({"masks": np.ones((3, 2, 2))}, r"masks\[0\] marks a defect, but its label is 0"),
        ({"has_mask": [0, 1, 1]}, "has_mask is false for every good image"),
    ],
)
def test_evaluate_scores_refuses(change, message):
    masks = np.zeros((3, 2, 2))
    masks[1:, 0] = 1
    good = {"labels": [0, 1, 1], "scores": [0, 1, 2], "threshold": 0.5, "masks": masks, "maps": masks}
    assert evaluate_scores(**good)["aupro"] == 1
    with pytest.raises(ValueError, match=message):
        evaluate_scores(**(good | change))
