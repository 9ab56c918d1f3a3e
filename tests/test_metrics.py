"""Metrics of images against values by hand, independent implementations and properties."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score

from attnad.metrics import (
    auroc,
    average_precision,
    balanced_accuracy,
    f1_max,
    normal_threshold,
    oracle_balanced_accuracy,
)

RANKING = [auroc, average_precision, f1_max, oracle_balanced_accuracy]

# Worked by hand, from the highest score: 1, then a tie of one 1 and one 0, then 0, then 1.
LABELS = [1, 0, 1, 0, 1]
SCORES = [9, 5, 5, 3, 1]

sampled = settings(max_examples=60)


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


@st.composite
def labelled_scores(draw):
    """Labels of both classes and scores from few integers, so that ties are common."""
    n = draw(st.integers(2, 25))
    labels = draw(st.lists(st.integers(0, 1), min_size=n, max_size=n).filter(lambda y: 0 < sum(y) < len(y)))
    scores = draw(st.lists(st.integers(-6, 6), min_size=n, max_size=n))
    return np.array(labels), np.array(scores, dtype=float)


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
