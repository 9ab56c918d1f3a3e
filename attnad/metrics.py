"""How well anomaly scores separate good from defective: AUROC, average precision, F1-max, AUPRO, balanced accuracy.

Everywhere a higher score means more anomalous, label 1 means anomalous and 0 good. Scores are only ever compared with
one another or with a threshold, never rescaled. All curves come from one sweep of a threshold through every distinct
score (`_sweep`), so every value is exact: no binning, and equal scores always enter together.

Errors are `ValueError`s that name the argument, what is wrong with it, and the remedy. Every function refuses NaN and
infinite scores, labels other than 0 and 1, empty input and shapes that do not match; whatever compares two classes
refuses a set that holds only one. Constant scores are legal and give the value of a detector that knows nothing:
AUROC 0.5, average precision = share of anomalies, AUPRO max_fpr / 2, balanced accuracy 0.5.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.integrate import trapezoid

METRICS = (
    "image_auroc",
    "image_ap",
    "image_f1max",
    "pixel_auroc",
    "pixel_ap",
    "pixel_f1max",
    "aupro",
    "balanced_accuracy",
)


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve: the chance that an anomaly scores above a good one, a tie counting one half.

    labels (0 or 1) and scores have one shape, any: (n,) for images, (n, height, width) for pixels. Returns a value in
    [0, 1]; constant scores give 0.5. Raises ValueError as the module says, and if only one class is present.
    Source: Fawcett 2006, "An introduction to ROC analysis", Pattern Recognition Letters 27.
    """
    return _auroc(*_counts(labels, scores))


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the precision-recall curve as the step-wise sum of (R_k - R_{k-1}) P_k, never by trapezoids.

    Shapes and errors as for `auroc`. Returns a value in (0, 1]; constant scores give the share of anomalies.
    Source: Davis and Goadrich 2006, ICML, on why the precision-recall curve must not be interpolated linearly.
    """
    return _average_precision(*_counts(labels, scores))


def f1_max(labels: ArrayLike, scores: ArrayLike) -> float:
    """The best F1 over all thresholds, chosen with the test labels in view: an upper bound, not a working point.

    Shapes and errors as for `auroc`. Returns a value in (0, 1]; never below 2p / (1 + p), p the share of anomalies,
    which calling everything anomalous reaches. Source: Jeong et al. 2023, "WinCLIP", CVPR.
    """
    return _f1_max(*_counts(labels, scores))


def aupro(masks: ArrayLike, maps: ArrayLike, max_fpr: float = 0.3) -> float:
    """Area under the per-region-overlap curve up to a false-positive rate of max_fpr, divided by max_fpr.

    masks (0 or 1) and maps are (n, height, width), good images included with a mask of zeros. A region is a connected
    component of one mask, diagonal neighbours joined (8-connectivity, as in the authors' script). The regions of all
    images are pooled:

        PRO(t) = mean over regions of the share of the region with map >= t
        FPR(t) = share of all defect-free pixels, of good and defective images alike, with map >= t

    PRO is integrated over FPR with straight lines between the points of all distinct thresholds, the last one cut
    exactly at max_fpr in (0, 1]. Returns a value in [0, 1]; constant maps give max_fpr / 2. Raises ValueError as the
    module says, if max_fpr is out of range, and if there is no defective or no defect-free pixel.
    Source: Bergmann et al. 2021, "The MVTec Anomaly Detection Dataset", IJCV 129.
    """
    if not 0 < max_fpr <= 1:
        raise ValueError(f"max_fpr is {max_fpr}: give a false-positive rate in (0, 1], the field uses 0.3")
    masks, maps = _paired("masks", masks, "maps", maps, ndim=3)
    _require_both_classes("masks", masks)
    pro, fp = _sweep(maps, _region_weights(masks), ~masks)
    return _aupro(pro, fp, max_fpr)


def normal_threshold(normal_scores: ArrayLike, quantile: float = 0.95) -> float:
    """A working threshold from good images alone: the quantile (linear interpolation) of their scores.

    normal_scores is (n,), in the units of the score; about 1 - quantile of such images will lie above the result.
    Use images that did not train the detector, or their scores are too low and so is the threshold.
    Raises ValueError for empty, NaN or infinite scores and for a quantile outside [0, 1].
    """
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile is {quantile}: give a share in [0, 1], for example 0.95")
    return float(np.quantile(_finite("normal_scores", normal_scores), quantile))


def expected_false_alarms(n: int, quantile: float = 0.95) -> float:
    """The share of new good images above `normal_threshold` of n scores, on average over draws of them, in (0, 1).

    The k-th lowest of n scores is passed by n + 1 - k of n + 1 places where a further one can fall, all equally likely;
    the quantile lies at k = 1 + quantile (n - 1). With few scores that is far from 1 - quantile.
    """
    return ((n - 1) * (1 - quantile) + 1) / (n + 1)


def balanced_accuracy(labels: ArrayLike, scores: ArrayLike, threshold: float) -> float:
    """Mean of the true-positive and the true-negative rate where score > threshold is called anomalous.

    Strictly above: if the good scores are all equal, their quantile flags none of them. Shapes and errors as for
    `auroc`, and the threshold must be finite too. Returns a value in [0, 1]; constant scores give 0.5.
    Source: Brodersen et al. 2010, "The balanced accuracy and its posterior distribution", ICPR.
    """
    _finite("threshold", threshold)
    labels, scores = _paired("labels", labels, "scores", scores)
    _require_both_classes("labels", labels)
    flagged = scores > threshold
    return float((flagged[labels].mean() + (~flagged[~labels]).mean()) / 2)


def oracle_balanced_accuracy(labels: ArrayLike, scores: ArrayLike) -> float:
    """The best balanced accuracy over all thresholds: it sees the test labels, so show it only beside the real one.

    Shapes and errors as for `auroc`. Returns a value in [0.5, 1].
    """
    tp, fp = _counts(labels, scores)
    return float((1 + np.max(tp / tp[-1] - fp / fp[-1])) / 2)


def evaluate_scores(
    labels: ArrayLike,
    scores: ArrayLike,
    *,
    threshold: float,
    masks: ArrayLike | None = None,
    maps: ArrayLike | None = None,
    has_mask: ArrayLike | None = None,
) -> dict[str, float | None]:
    """Every metric of one test set: the names in METRICS, then n (images) and n_pixel_images.

    labels (0 or 1) and scores are (n,), threshold is a score fixed without the test set (`normal_threshold`), masks
    (0 or 1) and maps are (n, height, width), has_mask is (n,) and true where the mask is known; without it all are.
    A good image's mask is known, all zeros, so has_mask is true there too. Only images with a mask count for the
    pixel metrics and n_pixel_images; AUPRO is taken to a false-positive rate of 0.3.

    A metric that is undefined for this set is None, so that one table can hold all sets: all pixel metrics without
    masks or without maps (n_pixel_images 0), and whatever needs two classes where only one is there. Malformed
    input still raises ValueError, as the module says; so do a good image whose mask marks a defect, and a has_mask
    that leaves out every good image, for then the false-positive rate would silently miss them.
    """
    _finite("threshold", threshold)
    labels, scores = _paired("labels", labels, "scores", scores, ndim=1)
    result: dict[str, float | None] = dict.fromkeys(METRICS)
    if _has_both_classes(labels):
        tp, fp = _sweep(scores, labels, ~labels)
        result["image_auroc"] = _auroc(tp, fp)
        result["image_ap"] = _average_precision(tp, fp)
        result["image_f1max"] = _f1_max(tp, fp)
        result["balanced_accuracy"] = balanced_accuracy(labels, scores, threshold)
    result["n"] = len(labels)
    result["n_pixel_images"] = 0
    if masks is None or maps is None:
        return result

    masks, maps = _paired("masks", masks, "maps", maps, ndim=3)
    known = np.ones_like(labels) if has_mask is None else _binary("has_mask", has_mask)
    for name, shape in (("masks", masks.shape[:1]), ("has_mask", known.shape)):
        if shape != labels.shape:
            raise ValueError(f"{name} has entries {shape}, labels {labels.shape}: give one for each image")
    marked_good = np.flatnonzero(~labels & known & masks.any(axis=(1, 2)))
    if marked_good.size:
        raise ValueError(f"masks[{marked_good[0]}] marks a defect, but its label is 0 (good): correct one of the two")
    if known.any() and not labels.all() and labels[known].all():
        raise ValueError("has_mask is false for every good image: set it true there, their masks are all zeros")

    result["n_pixel_images"] = int(known.sum())
    masks, maps = np.asarray(masks[known]), np.asarray(maps[known])
    if _has_both_classes(masks):
        # Millions of pixels: sort them once for all four metrics. The curves of scikit-learn take over twice as long.
        tp, fp, pro = _sweep(maps, masks, ~masks, _region_weights(masks))
        result["pixel_auroc"] = _auroc(tp, fp)
        result["pixel_ap"] = _average_precision(tp, fp)
        result["pixel_f1max"] = _f1_max(tp, fp)
        result["aupro"] = _aupro(pro, fp, max_fpr=0.3)
    return result


# From scores to curves. A curve starts at 0, above all scores, and ends at the total, below all of them.
# scikit-learn 1.9 gives the same figures, as tests show, in 1.2 to 2 times the time on maps, 3 to 8 on 10,000 scores.


def _sweep(scores: NDArray, *weights: NDArray) -> list[NDArray]:
    """For each array of weights: its sum over scores >= t, for t = infinity and every distinct score downwards."""
    order = np.argsort(scores, axis=None)[::-1]
    ranked = scores.ravel()[order]
    end_of_tie = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    return [np.append(0, np.cumsum(weight.ravel()[order])[end_of_tie]) for weight in weights]


def _counts(labels: ArrayLike, scores: ArrayLike) -> list[NDArray]:
    """True and false positives at every threshold, from labels and scores as the user gave them."""
    labels, scores = _paired("labels", labels, "scores", scores)
    _require_both_classes("labels", labels)
    return _sweep(scores, labels, ~labels)


def _region_weights(masks: NDArray) -> NDArray:
    """1 / size of its region for every defective pixel, 0 elsewhere: summed, the shares that are covered."""
    neighbours = np.zeros((3, 3, 3), dtype=int)
    neighbours[1] = 1  # all eight within an image, none in the image before or after
    region, _ = ndimage.label(masks, neighbours)
    weight_of = 1 / np.bincount(region.ravel(), minlength=1).clip(min=1)
    weight_of[0] = 0  # region 0 is the defect-free rest
    return weight_of[region]


# From curves to figures.


def _auroc(tp: NDArray, fp: NDArray) -> float:
    return float(trapezoid(tp / tp[-1], fp / fp[-1]))


def _average_precision(tp: NDArray, fp: NDArray) -> float:
    recall, precision = tp / tp[-1], tp[1:] / (tp + fp)[1:]
    return float(np.sum(np.diff(recall) * precision))


def _f1_max(tp: NDArray, fp: NDArray) -> float:
    # F1 = 2 TP / (2 TP + FP + FN), and TP + FN is the number of anomalies.
    return float(np.max(2 * tp / (tp + fp + tp[-1])))


def _aupro(pro: NDArray, fp: NDArray, max_fpr: float) -> float:
    # Dividing by the last sum, not by the number of regions, ends the curve at exactly 1.
    pro, fpr = pro / pro[-1], fp / fp[-1]
    k = np.searchsorted(fpr, max_fpr)  # fpr[k - 1] < max_fpr <= fpr[k]
    pro_at_max = np.interp(max_fpr, fpr[k - 1 : k + 1], pro[k - 1 : k + 1])
    return float(trapezoid(np.append(pro[:k], pro_at_max), np.append(fpr[:k], max_fpr)) / max_fpr)


# Checks on what the user gives.


def _array(name: str, values: ArrayLike) -> NDArray:
    try:
        array = np.asarray(values)
    except ValueError as error:  # NumPy's own words for a ragged list name neither the argument nor the remedy
        raise ValueError(f"{name} is not one array ({error}): bring all entries to one size first") from error
    if array.size == 0:
        raise ValueError(f"{name} is empty (shape {array.shape}): give at least one value")
    return array


def _finite(name: str, values: ArrayLike) -> NDArray:
    array = _array(name, values)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name} has dtype {array.dtype}: give real numbers")
    bad = ~np.isfinite(array)
    if bad.any():
        raise ValueError(
            f"{name} holds {np.isnan(array).sum()} NaN and {np.isinf(array).sum()} infinite values, the first at index "
            f"{_first(bad)}: find out where the detector makes them, they have no rank among the others"
        )
    return array


def _binary(name: str, values: ArrayLike) -> NDArray:
    array = _array(name, values)
    bad = (array != 0) & (array != 1)
    if bad.any():
        value = array[bad][:1].tolist()[0]
        raise ValueError(
            f"{name} holds {value!r} at index {_first(bad)}: only 0 (good) and 1 (anomalous) are allowed; "
            f"for a mask of 0 and 255 give {name} > 0"
        )
    return array.astype(bool, copy=False)


def _first(bad: NDArray) -> str:
    return str([int(i) for i in np.unravel_index(bad.argmax(), bad.shape)])


def _paired(
    truth_name: str, truth: ArrayLike, score_name: str, scores: ArrayLike, ndim: int | None = None
) -> tuple[NDArray, NDArray]:
    truth, scores = _binary(truth_name, truth), _finite(score_name, scores)
    if truth.shape != scores.shape:
        raise ValueError(
            f"{truth_name} has shape {truth.shape}, {score_name} {scores.shape}: give them one shape, an entry for each"
        )
    if ndim is not None and truth.ndim != ndim:
        wanted = {1: "(n,)", 3: "(n, height, width)"}[ndim]
        raise ValueError(f"{truth_name} and {score_name} have shape {truth.shape}: reshape them to {wanted}")
    return truth, scores


def _has_both_classes(truth: NDArray) -> bool:
    return bool(truth.any() and not truth.all())


def _require_both_classes(name: str, truth: NDArray) -> None:
    if not _has_both_classes(truth):
        only = "1 (anomalous)" if truth.any() else "0 (good)"
        raise ValueError(f"{name} holds only {only}: this metric compares good and anomalous, so give some of both")
