"""How sure a mean is, by resampling groups of questions: those about one recording are no independent ones.

    low, high = interval(each, groups)          # 95% of the mean
    low, high, chance = paired(gains, groups)   # of the mean gain, and how likely such a gain is where there is none
"""

from collections.abc import Iterator, Sequence

import numpy as np

RESAMPLES = 2_000
DRAWN_AT_ONCE = 2**24
"""Groups: 128 MiB of their numbers, whatever is evaluated."""


def interval(each: Sequence[float], groups: Sequence[str], seed: int = 0) -> tuple[float, float]:
    """The 95% bootstrap interval of the mean of ``each``; the same questions always get the same one."""
    low, high = np.percentile(resampled_means(*_by_group(each, groups), seed=seed), [2.5, 97.5])
    return float(low), float(high)


def paired(gains: Sequence[float], groups: Sequence[str], seed: int = 0) -> tuple[float, float, float]:
    """The interval of the mean gain, and the two-sided p-value of a permutation test that turns groups' signs round."""
    low, high = interval(gains, groups, seed)
    total_G, _ = _by_group(gains, groups)
    rng, found = np.random.default_rng(seed), abs(total_G.sum())
    parts = _parts(RESAMPLES, len(total_G))
    turned_R = np.concatenate([abs(rng.choice([-1.0, 1.0], size=(rows, len(total_G))) @ total_G) for rows in parts])
    chance = (1 + int((turned_R >= found * (1 - 1e-12)).sum())) / (1 + RESAMPLES)
    return low, high, chance


def resampled_means(total_G: np.ndarray, count_G: np.ndarray, *, count: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Means of so many draws of groups with replacement, by the sum and the number of each group's values."""
    rng, means = np.random.default_rng(seed), list[np.ndarray]()
    for rows in _parts(count, len(total_G)):
        draws_RG = rng.integers(len(total_G), size=(rows, len(total_G)))
        means.append(total_G[draws_RG].sum(1) / count_G[draws_RG].sum(1))
    return np.concatenate(means)


def _parts(count: int, groups: int) -> Iterator[int]:
    """How many of the draws to make at once; the generator gives the same ones however they are cut."""
    most = max(1, DRAWN_AT_ONCE // max(1, groups))
    return (min(most, count - begin) for begin in range(0, count, most))


def _by_group(each: Sequence[float], groups: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    place = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    total_G, count_G = np.zeros(len(place)), np.zeros(len(place))
    for value, group in zip(each, groups, strict=True):
        total_G[place[group]] += value
        count_G[place[group]] += 1
    return total_G, count_G
