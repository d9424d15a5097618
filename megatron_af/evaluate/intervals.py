"""How sure a mean is, by resampling groups of questions: those about one recording are no independent ones.

    low, high = interval(each, groups)          # 95% of the mean
    low, high, chance = paired(gains, groups)   # of the mean gain, and how likely such a gain is where there is none
"""

from collections.abc import Sequence

import numpy as np

RESAMPLES = 2_000


def interval(each: Sequence[float], groups: Sequence[str], seed: int = 0) -> tuple[float, float]:
    """The 95% bootstrap interval of the mean of ``each``; the same questions always get the same one."""
    low, high = np.percentile(_means(each, groups, seed), [2.5, 97.5])
    return float(low), float(high)


def paired(gains: Sequence[float], groups: Sequence[str], seed: int = 0) -> tuple[float, float, float]:
    """The interval of the mean gain, and the two-sided p-value of a permutation test that turns groups' signs round."""
    low, high = interval(gains, groups, seed)
    total_G, _ = _by_group(gains, groups)
    signs_RG = np.random.default_rng(seed).choice([-1.0, 1.0], size=(RESAMPLES, len(total_G)))
    turned_R, found = abs(signs_RG @ total_G), abs(total_G.sum())
    chance = (1 + int((turned_R >= found * (1 - 1e-12)).sum())) / (1 + RESAMPLES)
    return low, high, chance


def _means(each: Sequence[float], groups: Sequence[str], seed: int) -> np.ndarray:
    total_G, count_G = _by_group(each, groups)
    draws_RG = np.random.default_rng(seed).integers(len(total_G), size=(RESAMPLES, len(total_G)))
    means: np.ndarray = total_G[draws_RG].sum(1) / count_G[draws_RG].sum(1)
    return means


def _by_group(each: Sequence[float], groups: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    place = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    total_G, count_G = np.zeros(len(place)), np.zeros(len(place))
    for value, group in zip(each, groups, strict=True):
        total_G[place[group]] += value
        count_G[place[group]] += 1
    return total_G, count_G
