"""What a score says of a photograph, by the scores of good ones that the detector was not fitted to.

`calibration` are these scores everywhere: m finite numbers in any order, higher = more anomalous. What is promised here
holds, on average over draws of them, as long as new good photographs come from the same source.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from attnad.errors import CheckpointError, SettingError

ROUNDED = 1e-9  # relative: 1 / 0.1 and 3 * 0.1 are not what they seem


def p_values(scores: ArrayLike, calibration: Sequence[float]) -> np.ndarray:
    """The share of good photographs that look as odd as each of these: scores [n] -> float [n], in [1 / (m + 1), 1].

    A good photograph has a p-value of at most a with a probability of at most a, for every a. Raises CheckpointError
    without calibration. Source: Bates et al. 2023, "Testing for outliers with conformal p-values", eq. (2); Vovk et al.
    2005, "Algorithmic learning in a random world".
    """
    known = np.sort(_known(calibration))
    return (1 + len(known) - np.searchsorted(known, np.asarray(scores, float), side="left")) / (len(known) + 1)


def in_words(p_value: float, m: int) -> str:
    """A sentence for a p-value that comes from m calibration scores."""
    if p_value * (m + 1) < 1.5:  # none of them was as high
        return f"Fewer than one in {m + 1} good photographs looks as odd as this"
    if p_value < 0.001:
        return f"About one in {round(1 / p_value)} good photographs looks as odd as this"
    of, word = (1000, "thousand") if p_value < 0.1 else (100, "hundred")
    n = round(of * p_value)
    return f"Of a {word} good photographs about {n} look{'s' * (n == 1)} as odd as this"


def threshold_for(calibration: Sequence[float], rate: float, *, share: float = 1) -> float:
    """The threshold that new good photographs exceed at a rate in (0, 1), on average over draws of the calibration.

    It is the calibration's quantile at place (1 - rate)(m + 1), which lies among m scores from m + 1 >= 1 / rate on.
    `share` is that of the training photographs which calibrate. Raises SettingError on another rate and on one that
    needs more of them, CheckpointError without calibration.
    """
    check_rate(calibration, rate, "a rate of false alarms", share=share)
    return float(np.quantile(calibration, 1 - rate, method="weibull"))


def flag_batch(p_values: ArrayLike, expected_false: float) -> np.ndarray:
    """Flag photographs of one batch so that few of the flagged are good: p-values [n] -> bool [n].

    The k most odd ones are flagged, with the largest k whose p-values are all at most expected_false * k / n
    (Benjamini and Hochberg 1995). The share of good ones among the flagged (0 where none is) is then at most
    `expected_false`, a rate in (0, 1), on average over draws of the batch and of the calibration, if the good
    photographs of the batch are exchangeable with those that calibrate. P-values that share one calibration depend on
    each other, but positively, and that is enough (Bates et al. 2023, theorem 2). For one batch it can be more.
    """
    values = np.asarray(p_values, float)
    ordered, n = np.sort(values), len(values)
    few = ordered <= expected_false * np.arange(1, n + 1) / max(n, 1) * (1 + ROUNDED)
    return values <= max(ordered[few], default=-1.0)


def batch_threshold(scores: Sequence[float], calibration: Sequence[float], expected_false: float) -> float:
    """The highest of a batch's scores that `flag_batch` passes: what is above it is flagged.

    Where all are flagged, a number just below the lowest.
    """
    values = np.asarray(scores, float)
    passed = values[~flag_batch(p_values(values, calibration), expected_false)]
    return float(max(passed, default=np.nextafter(min(values), -np.inf)))


def too_few(scores: Sequence[float], calibration: Sequence[float], expected_false: float) -> str:
    """A word where `flag_batch` flags none though some scores are above the whole calibration; else nothing."""
    n, m = len(scores), len(calibration)
    odd = sum(score > max(calibration) for score in scores)
    needed = math.ceil(n / (m + 1) / expected_false * (1 - ROUNDED))
    if not odd or flag_batch(p_values(scores, calibration), expected_false).any():
        return ""
    return (
        f"{odd} of {n} images look odder than all {m} good ones that the run compares with, and none is flagged: with "
        f"{m} it takes {needed} such images among {n}. Train on more photographs, score fewer at once, or use "
        "--false-alarms"
    )


def check_rate(calibration: Sequence[float], rate: float, what: str, *, share: float = 1) -> None:
    """Raise SettingError where the calibration is too small for the rate, which `what` names, or it is none."""
    if not 0 < rate < 1:
        raise SettingError(f"{what} of {rate}: give a share between 0 and 1, such as 0.01")
    m, needed = len(_known(calibration)), math.ceil((1 - ROUNDED) / rate) - 1
    if m < needed:
        raise SettingError(
            f"{what} of {rate} needs the scores of {needed} good photographs that the detector was not fitted to, and "
            f"the run has {m}; choose {math.ceil(1000 / (m + 1)) / 1000} or more, or train on about "
            f"{round(needed / share)} photographs"
        )


def _known(calibration: Sequence[float]) -> Sequence[float]:
    if not len(calibration):
        raise CheckpointError(
            "the run was made by a version that kept no scores of good photographs that the detector was not fitted "
            "to; give a threshold instead, or train again into another folder"
        )
    return calibration
