"""Mean average precision of recordings with several labels, and how sure it is.

    value = mean_average_precision(truth_NC, similarity_NC)
    low, high = mean_average_precision_interval(truth_NC, similarity_NC)

For each label all recordings are ranked by their similarity to it; its average precision is the mean, over the
recordings that have it, of the part of those ranked at least as high that have it, too (scikit-learn's
``average_precision_score``: no interpolation, equals together). N recordings, C labels, R resamples.
"""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

RESAMPLES = 200
"""Some 85 ms each for ten thousand recordings and two hundred labels, on one core."""


def mean_average_precision(truth_NC: Tensor, similarity_NC: Tensor) -> float:
    """In percent; labels that no recording has do not count.

    Args:
        truth_NC: which recording has which label.
    """
    return float(_means(truth_NC, similarity_NC, np.ones((1, len(truth_NC))))[0])


def mean_average_precision_interval(truth_NC: Tensor, similarity_NC: Tensor, seed: int = 0) -> tuple[float, float]:
    """The 95% bootstrap interval over recordings; the same ones always get the same one."""
    number = len(truth_NC)
    draws_RN = np.random.default_rng(seed).integers(number, size=(RESAMPLES, number))
    weight_RN = np.stack([np.bincount(draw_N, minlength=number) for draw_N in draws_RN]).astype(float)
    # Where few recordings have a label, a resample may hold none of them, and says nothing.
    low, high = np.nanpercentile(_means(truth_NC, similarity_NC, weight_RN), [2.5, 97.5])
    return float(low), float(high)


def _means(truth_NC: Tensor, similarity_NC: Tensor, weight_RN: NDArray[np.float64]) -> NDArray[np.float64]:
    having = truth_NC.any(0)
    truth, similarity = truth_NC[:, having].cpu().numpy(), similarity_NC[:, having].float().cpu().numpy()
    total_R, count_R = np.zeros(len(weight_RN)), np.zeros(len(weight_RN))
    for truth_N, similarity_N in zip(truth.T, similarity.T, strict=True):
        precision_R = average_precision(truth_N, similarity_N, weight_RN)
        known_R = ~np.isnan(precision_R)  # not of a resample without any recording of the label
        total_R[known_R] += precision_R[known_R]
        count_R += known_R
    with np.errstate(invalid="ignore"):
        return 100 * total_R / count_R


def average_precision(
    truth_N: NDArray[np.bool_], similarity_N: NDArray[np.float32], weight_RN: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Of one label, where recording n counts ``weight_RN[r, n]`` times; NaN where none of those has it."""
    order_N = np.argsort(-similarity_N, kind="stable")
    ranked_N = -similarity_N[order_N]
    last_N = np.searchsorted(ranked_N, ranked_N, side="right") - 1  # of those that are equal
    right_RN = weight_RN[:, order_N] * truth_N[order_N]
    found_RN, seen_RN = right_RN.cumsum(1)[:, last_N], weight_RN[:, order_N].cumsum(1)[:, last_N]
    with np.errstate(invalid="ignore"):
        precision_R: NDArray[np.float64] = (right_RN * found_RN / np.maximum(seen_RN, 1)).sum(1) / right_RN.sum(1)
    return precision_R
