"""The metrics against hand-worked values, independent implementations, and properties that any correct one has."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import label as label_regions
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score

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


# Independent implementations: slow, literal, sharing no code with the package.


def auroc_by_pairs(labels, scores):
    anomalous, good = scores[labels == 1], scores[labels == 0]
    wins = sum(float(a > g) + 0.5 * float(a == g) for a in anomalous for g in good)
    return wins / (len(anomalous) * len(good))


def confusion(labels, scores, t):
    tp = sum(1 for y, s in zip(labels, scores, strict=True) if y == 1 and s >= t)
    fp = sum(1 for y, s in zip(labels, scores, strict=True) if y == 0 and s >= t)
    return tp, fp


def average_precision_by_steps(labels, scores):
    total, recall_before = 0.0, 0.0
    for t in sorted(set(scores.tolist()), reverse=True):
        tp, fp = confusion(labels, scores, t)
        recall = tp / (labels == 1).sum()
        total += (recall - recall_before) * tp / (tp + fp)
        recall_before = recall
    return total


def f1_max_by_brute_force(labels, scores):
    best = 0.0
    for t in set(scores.tolist()):
        tp, fp = confusion(labels, scores, t)
        fn = (labels == 1).sum() - tp
        if tp:
            best = max(best, 2 / ((tp + fp) / tp + (tp + fn) / tp))  # harmonic mean of precision and recall
    return best


def oracle_by_brute_force(labels, scores):
    thresholds = [-math.inf, *scores.tolist()]
    return max(balanced_accuracy_score(labels, scores > t) for t in thresholds)


def aupro_by_thresholds(masks, maps, max_fpr):
    regions = []  # (image, pixels of the region)
    for i, mask in enumerate(masks):
        labelled = label_regions(mask, connectivity=2)
        regions += [(i, labelled == k) for k in range(1, labelled.max() + 1)]
    curve = [(0.0, 0.0)]
    for t in sorted(set(maps.ravel().tolist()), reverse=True):
        pro = sum((maps[i][pixels] >= t).mean() for i, pixels in regions) / len(regions)
        curve.append(((maps[masks == 0] >= t).mean(), pro))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(curve):
        if x1 > max_fpr:  # the segment in which the limit lies: interpolate, then stop
            y1 = y0 + (y1 - y0) * (max_fpr - x0) / (x1 - x0)
            x1 = max_fpr
        area += (x1 - x0) * (y0 + y1) / 2
        if x1 == max_fpr:
            break
    return area / max_fpr


def random_set(seed, levels):
    """Six 7x8 images, the last two good; `levels` distinct map values, so ties within and between the classes."""
    rng = np.random.default_rng(seed)
    masks = rng.random((6, 7, 8)) < 0.2
    masks[4:] = False
    maps = rng.integers(0, levels, masks.shape) + masks * (levels // 4)
    return masks, maps.astype(np.float32)


@st.composite
def labelled_scores(draw):
    """Labels of both classes and scores from few integers, so that ties are common."""
    n = draw(st.integers(2, 25))
    labels = draw(st.lists(st.integers(0, 1), min_size=n, max_size=n).filter(lambda y: 0 < sum(y) < len(y)))
    scores = draw(st.lists(st.integers(-6, 6), min_size=n, max_size=n))
    return np.array(labels), np.array(scores, dtype=float)


@st.composite
def masks_and_maps(draw):
    seed, levels = draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([1, 2, 4, 30, 10_000]))
    return random_set(seed, levels)


sampled = settings(max_examples=60, deadline=None)


# Image-level metrics.


def test_hand_worked_ranking():
    assert auroc(LABELS, SCORES) == pytest.approx((2 + 1.5 + 0) / 6)
    # Recall steps 1/3 at precision 1, 1/3 at 2/3, 1/3 at 3/5.
    assert average_precision(LABELS, SCORES) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    # F1 at the four thresholds: 2/4, 4/6, 4/7, 6/8.
    assert f1_max(LABELS, SCORES) == pytest.approx(6 / 8)
    # TPR - FPR at the four thresholds: 1/3, 2/3 - 1/2, 2/3 - 1, 0.
    assert oracle_balanced_accuracy(LABELS, SCORES) == pytest.approx((1 + 1 / 3) / 2)


def test_average_precision_is_not_the_trapezoid():
    # Precision 1/2 at recall 1 and nowhere else: the step gives 1/2, a trapezoid from precision 1 would give 3/4.
    assert average_precision([0, 1], [2, 1]) == pytest.approx(0.5)


@sampled
@given(labelled_scores())
def test_ranking_metrics_match_independent_implementations(data):
    labels, scores = data
    assert auroc(labels, scores) == pytest.approx(auroc_by_pairs(labels, scores))
    assert average_precision(labels, scores) == pytest.approx(average_precision_by_steps(labels, scores))
    assert f1_max(labels, scores) == pytest.approx(f1_max_by_brute_force(labels, scores))
    assert oracle_balanced_accuracy(labels, scores) == pytest.approx(oracle_by_brute_force(labels, scores))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8, np.uint8])
def test_ranking_metrics_match_scikit_learn_on_many_pixels(dtype):
    rng = np.random.default_rng(3)
    labels = rng.random((5, 64, 64)) < 0.05
    scores = np.clip(rng.normal(20, 12, labels.shape) + 15 * labels, 0, 127).astype(dtype)
    assert (scores == 0).any()  # where negating unsigned scores would go wrong
    assert auroc(labels, scores) == pytest.approx(roc_auc_score(labels.ravel(), scores.ravel()))
    expected = average_precision_score(labels.ravel(), scores.ravel())
    assert average_precision(labels, scores) == pytest.approx(expected)


@sampled
@given(labelled_scores(), st.sampled_from(RANKING))
def test_only_the_order_of_scores_matters(data, metric):
    labels, scores = data
    for transformed in (3 * scores - 7, np.exp(scores), scores**3):
        assert metric(labels, transformed) == metric(labels, scores)


@sampled
@given(labelled_scores())
def test_auroc_of_negated_scores_is_the_complement(data):
    labels, scores = data
    assert auroc(labels, -scores) == pytest.approx(1 - auroc(labels, scores))
    assert auroc(1 - labels, -scores) == pytest.approx(auroc(labels, scores))


@sampled
@given(labelled_scores(), st.randoms(use_true_random=False))
def test_order_of_images_does_not_matter(data, random):
    labels, scores = data
    order = list(range(len(labels)))
    random.shuffle(order)
    for metric in RANKING:
        assert metric(labels[order], scores[order]) == metric(labels, scores)


@sampled
@given(labelled_scores(), st.integers(-7, 7))
def test_bounds(data, threshold):
    labels, scores = data
    share = labels.mean()
    assert 0 <= auroc(labels, scores) <= 1
    assert 0 < average_precision(labels, scores) <= 1 + 1e-12
    assert 2 * share / (1 + share) <= f1_max(labels, scores) + 1e-12 <= 1 + 2e-12
    oracle = oracle_balanced_accuracy(labels, scores)
    assert 0.5 <= oracle <= 1
    assert balanced_accuracy(labels, scores, threshold) <= oracle + 1e-12


def test_perfect_and_constant_scores():
    labels = [0, 0, 0, 1]
    for metric in RANKING:
        assert metric(labels, [-1, 0, 0.5, 2]) == 1
    assert auroc(labels, [7] * 4) == 0.5
    assert average_precision(labels, [7] * 4) == 0.25
    assert f1_max(labels, [7] * 4) == pytest.approx(2 * 0.25 / 1.25)
    assert oracle_balanced_accuracy(labels, [7] * 4) == 0.5
    assert balanced_accuracy(labels, [7] * 4, 7) == 0.5


# Thresholds.


def test_balanced_accuracy_by_hand():
    # Above 4: 9, 5 | 5. TPR 2/3, TNR 1/2.
    assert balanced_accuracy(LABELS, SCORES, 4) == pytest.approx((2 / 3 + 1 / 2) / 2)
    # Strictly above 5: only 9. TPR 1/3, TNR 1.
    assert balanced_accuracy(LABELS, SCORES, 5) == pytest.approx((1 / 3 + 1) / 2)


@sampled
@given(labelled_scores(), st.integers(-7, 7))
def test_balanced_accuracy_matches_scikit_learn(data, threshold):
    labels, scores = data
    expected = balanced_accuracy_score(labels, scores > threshold)
    assert balanced_accuracy(labels, scores, threshold) == pytest.approx(expected)


def test_normal_threshold():
    assert normal_threshold(np.arange(101)) == pytest.approx(95)
    assert normal_threshold([1, 2], quantile=0.25) == pytest.approx(1.25)
    assert normal_threshold([3.0]) == 3
    scores = np.random.default_rng(0).normal(size=1000)
    assert (scores > normal_threshold(scores, 0.9)).mean() == pytest.approx(0.1)
    # A threshold from equal scores flags none of them.
    assert balanced_accuracy([0, 0, 1], [2, 2, 3], normal_threshold([2, 2])) == 1


# AUPRO.


def test_aupro_interpolates_at_the_limit():
    # Four defect-free pixels and one defective. Curve: (0, 0), (1/4, 0), then a tie of both kinds (2/4, 1).
    # At 0.3 the line from (1/4, 0) to (1/2, 1) has reached 0.2; cutting at the last point before 0.3 would give 0.
    masks, maps = [[[0, 1, 0, 0, 0]]], [[[9, 5, 5, 1, 0]]]
    assert aupro(masks, maps) == pytest.approx(0.05 * 0.2 / 2 / 0.3)
    assert aupro(masks, maps, max_fpr=0.25) == 0
    assert aupro(masks, maps, max_fpr=1) == pytest.approx(0.25 / 2 + 0.5)


def test_aupro_climbs_at_the_limit_itself():
    # The region enters at FPR exactly 1/4: a vertical step at the limit has no area below it.
    masks, maps = [[[0, 1, 0, 0, 0]]], [[[9, 5, 4, 1, 0]]]
    assert aupro(masks, maps, max_fpr=0.25) == 0
    assert aupro(masks, maps, max_fpr=0.5) == pytest.approx(0.5)


def test_aupro_weighs_regions_alike_whatever_their_size_and_image():
    # Image 0: a region of 4 pixels found before any false positive. Image 1: two regions of 1 pixel, never found
    # before the limit. Pooled: 1/3. By pixels it would be 4/6, by images (1 + 0) / 2.
    masks = np.zeros((2, 4, 10), dtype=int)
    masks[0, 1:3, 1:3] = 1
    masks[1, 0, 0] = masks[1, 0, 5] = 1
    maps = np.where(masks == 1, -1.0, 0.0)
    maps[0][masks[0] == 1] = 1
    maps[~masks.astype(bool)] = np.linspace(0.1, 0.9, 80 - 6)  # distinct: no tie reaches across the limit
    assert aupro(masks, maps) == pytest.approx(1 / 3)


def test_aupro_joins_diagonal_neighbours_and_never_two_images():
    # A diagonal pair is one region; the same pixel in the next image is another. Only that other one is found.
    masks = np.zeros((2, 3, 3), dtype=bool)
    masks[0, 0, 0] = masks[0, 1, 1] = masks[1, 1, 1] = True
    maps = np.zeros((2, 3, 3))
    maps[masks] = -1
    maps[1, 1, 1] = 2
    maps[~masks] = np.linspace(0, 1, 15)
    assert aupro(masks, maps) == pytest.approx(1 / 2)


@pytest.mark.parametrize("levels", [2, 5, 40, 100_000])
@pytest.mark.parametrize("max_fpr", [0.05, 0.3, 1.0])
def test_aupro_matches_an_independent_implementation(levels, max_fpr):
    for seed in range(4):
        masks, maps = random_set(seed, levels)
        assert aupro(masks, maps, max_fpr) == pytest.approx(aupro_by_thresholds(masks, maps, max_fpr))


def test_aupro_of_one_pixel_regions_to_the_end_is_the_pixel_auroc():
    masks = np.zeros((2, 9, 9), dtype=bool)
    masks[:, ::2, ::2] = True
    maps = np.random.default_rng(1).integers(0, 9, masks.shape) + 2 * masks
    assert aupro(masks, maps, max_fpr=1) == pytest.approx(auroc(masks, maps))


@sampled
@given(masks_and_maps(), st.sampled_from([0.01, 0.3, 1.0]))
def test_aupro_properties(data, max_fpr):
    masks, maps = data
    value = aupro(masks, maps, max_fpr)
    assert 0 <= value <= 1 + 1e-12
    assert aupro(masks, masks.astype(float), max_fpr) == pytest.approx(1)
    assert aupro(masks, np.full(masks.shape, 4.0), max_fpr) == pytest.approx(max_fpr / 2)
    assert aupro(masks, 5 * maps.astype(float) ** 3 - 2, max_fpr) == pytest.approx(value)
    order = np.random.default_rng(0).permutation(len(masks))
    assert aupro(masks[order], maps[order], max_fpr) == pytest.approx(value)
    # A good image below all other scores only adds defect-free pixels: it squeezes the curve to the left.
    more_masks = np.concatenate([masks, np.zeros_like(masks[:1])])
    low = np.concatenate([maps, np.full_like(maps[:1], maps.min() - 1)])
    assert aupro(more_masks, low, max_fpr) >= value - 1e-12
    # One above all others takes 1/7 or more of the false-positive rate before anything is found.
    high = np.concatenate([maps, np.full_like(maps[:1], maps.max() + 1)])
    assert aupro(more_masks, high, max_fpr) <= max(0, 1 - 1 / 7 / max_fpr) + 1e-12


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
