"""How sure a mean is: wider for fewer groups, and a gain that could be chance is told as one."""

import numpy as np
import pytest

from megatron_af.evaluate import intervals
from megatron_af.evaluate.intervals import interval, paired


def test_the_interval_is_that_of_the_mean_and_of_groups() -> None:
    rng = np.random.default_rng(0)
    each = rng.normal(3.0, 2.0, 400).tolist()
    low, high = interval(each, [str(i) for i in range(400)])
    assert (high - low) / 2 == pytest.approx(1.96 * np.std(each) / 20, rel=0.08)
    assert low < np.mean(each) < high and (low, high) == interval(each, [str(i) for i in range(400)])
    together = interval(sorted(each), [str(i // 20) for i in range(400)])
    assert together[1] - together[0] > 2 * (high - low), "groups of like questions count as few"
    assert interval([1.0, 0.0], ["a", "a"]) == (0.5, 0.5)


def test_a_paired_gain_and_its_chance() -> None:
    gains = [1.0] * 12 + [0.0] * 88
    low, high, chance = paired(gains, [str(i) for i in range(100)])
    assert 0 < low < 0.12 < high and chance < 0.01
    assert paired([1.0, -1.0] * 50, [str(i) for i in range(100)])[2] == 1.0
    assert paired([1.0] * 100, ["one recording"] * 100)[2] == 1.0, "one recording shows nothing"


def test_many_groups_are_drawn_in_parts_of_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    gains = np.random.default_rng(1).normal(0.1, 1.0, 300).tolist()
    groups = [str(i // 3) for i in range(300)]
    whole = paired(gains, groups)
    for most in (1, 250, 100 * 999):
        monkeypatch.setattr(intervals, "DRAWN_AT_ONCE", most)
        sizes = list(intervals._parts(intervals.RESAMPLES, 100))
        assert sum(sizes) == intervals.RESAMPLES and max(sizes) * 100 <= max(100, most)
        assert paired(gains, groups) == whole
