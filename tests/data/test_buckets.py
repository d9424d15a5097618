"""Properties of the order by length: exact weights, whole passes, few mixed batches, independence of ranks."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_af.data.buckets import BucketedSampler
from megatron_af.data.sampler import BlendSampler, Draw

ENDS = [1, 3, 9]
BLENDS = st.lists(
    st.tuples(
        st.lists(st.integers(0, 30), min_size=1, max_size=50), st.sampled_from([0.05, 0.3, 1.0, 1.5, 2.0, 3.7])
    ),
    min_size=1,
    max_size=3,
)


def sampler(blend: list[tuple[list[int], float]], batch: int, seed: int = 0) -> BucketedSampler:
    lengths = {f"set{i}": np.array(windows) for i, (windows, _) in enumerate(blend)}
    weights = {f"set{i}": weight for i, (_, weight) in enumerate(blend)}
    return BucketedSampler(lengths, weights, seed, ends=ENDS, batch=batch)


def bucket(blend: list[tuple[list[int], float]], draw: Draw) -> int:
    return int(np.searchsorted(ENDS, blend[int(draw.dataset[3:])][0][draw.row]))


def enough(blend: list[tuple[list[int], float]]) -> bool:
    return sum(len(windows) * weight for windows, weight in blend) >= 1


@given(blend=BLENDS, batch=st.integers(1, 17), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_weights_are_exact_and_every_row_comes_once_a_pass(
    blend: list[tuple[list[int], float]], batch: int, seed: int
) -> None:
    if not enough(blend):
        return
    found = sampler(blend, batch, seed)
    epochs = 3
    draws = [found.draw(i) for i in range(sum(found.epoch_samples(e) for e in range(epochs)))]
    assert [draw.index for draw in draws] == list(range(len(draws)))
    for number, (windows, weight) in enumerate(blend):
        for b in range(len(ENDS) + 1):
            rows = {row for row, length in enumerate(windows) if np.searchsorted(ENDS, length) == b}
            drawn = [(d.dataset_pass, d.row) for d in draws if d.dataset == f"set{number}" and d.row in rows]
            assert len(drawn) == len(set(drawn)) == int(round(epochs * len(rows) * weight * 100, 6) // 100)
            for dataset_pass in range(len(drawn) // max(1, len(rows))):
                assert {row for p, row in drawn if p == dataset_pass} == rows


@given(blend=BLENDS, batch=st.integers(1, 17))
@settings(max_examples=40, deadline=None)
def test_few_batches_of_an_epoch_mix_lengths(blend: list[tuple[list[int], float]], batch: int) -> None:
    if not enough(blend):
        return
    found = sampler(blend, batch)
    epochs = 4
    size = sum(found.epoch_samples(e) for e in range(epochs)) // batch * batch
    buckets = [bucket(blend, found.draw(i)) for i in range(size)]
    mixed = sum(len(set(buckets[i : i + batch])) > 1 for i in range(0, size, batch))
    assert mixed <= epochs * (len(ENDS) + 1 + 2)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_order_depends_on_no_rank_and_a_resume_is_a_step_number(ranks: int) -> None:
    blend = [(list(range(1, 31)) * 2, 1.0), ([2] * 11, 2.5)]
    reference = [sampler(blend, 8).draw(i) for i in range(200)]
    for step in (24, 3, 11):  # any start, any order
        made = [sampler(blend, 8) for _ in range(ranks)]
        per_rank = 8 // ranks
        places = [(rank, step * 8 + rank * per_rank + slot) for rank in range(ranks) for slot in range(per_rank)]
        assert [made[rank].draw(place) for rank, place in places] == reference[step * 8 : (step + 1) * 8]


def test_batches_of_all_lengths_are_spread_over_the_epoch_in_another_order_each_time() -> None:
    blend = [([1] * 160 + [2] * 160 + [12] * 160, 1.0)]
    found = sampler(blend, 8)
    order = [bucket(blend, found.draw(i)) for i in range(0, 3 * 480, 8)]
    first, second, third = order[:60], order[60:120], order[120:]
    assert Counter(first) == Counter(second) == {0: 20, 1: 20, 3: 20}
    assert first != second != third
    assert sum(a != b for a, b in pairwise(first)) > 25  # of 59; sorted by length they would be 2
    rows = [[found.draw(i).row for i in range(e * 480, (e + 1) * 480)] for e in range(2)]
    assert sorted(rows[0]) == sorted(rows[1]) == list(range(480)) and rows[0] != rows[1]


def test_one_bucket_and_one_row_a_batch_are_still_a_shuffle() -> None:
    found = BucketedSampler({"a": np.full(50, 4)}, {"a": 1.0}, 3, ends=[], batch=1)
    rows = [found.draw(i).row for i in range(50)]
    assert sorted(rows) == list(range(50)) != rows


def test_what_cannot_be_blended_is_said_as_before() -> None:
    with pytest.raises(ValueError, match=r"x: unknown.*e: its manifest holds no row"):
        BucketedSampler({"e": np.zeros(0, int)}, {"x": 1.0, "e": 1.0}, 0, ends=[3], batch=4)


def test_what_is_drawn_for_a_sample_is_what_is_drawn_without_buckets() -> None:
    blend = [(list(range(40)), 1.0)]
    plain = BlendSampler({"set0": 40}, {"set0": 1.0}, 0)
    assert [sampler(blend, 4).draw(i).random for i in range(40)] == [plain.draw(i).random for i in range(40)]
