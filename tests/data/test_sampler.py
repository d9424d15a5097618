"""Properties of the stateless sampler: permutations, exact weights, independence of ranks."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_af.data.sampler import BlendSampler, permute


@given(size=st.integers(1, 700), key=st.integers(0, 2**64 - 1))
@settings(max_examples=40, deadline=None)
def test_permute_is_a_bijection(size: int, key: int) -> None:
    assert sorted(permute(i, size, key) for i in range(size)) == list(range(size))


def test_permute_needs_no_array_at_ten_million() -> None:
    places = [permute(i, 10_000_000, 7) for i in range(2000)]
    assert len(set(places)) == 2000
    assert abs(sum(places) / 2000 - 5e6) < 3 * 10e6 / 12**0.5 / 2000**0.5


@pytest.mark.slow
def test_permute_mixes_small_ranges() -> None:
    """Every one of the 24 orders of four elements comes up about equally often (chi-squared, 23 degrees)."""
    orders = Counter(tuple(permute(i, 4, key * 1_000_003) for i in range(4)) for key in range(1200))
    assert len(orders) == 24
    assert sum((n - 50) ** 2 / 50 for n in orders.values()) < 49.7  # p = 0.001


@pytest.mark.slow
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    weights=st.lists(st.sampled_from([0.05, 0.3, 1.0, 1.5, 2.0, 3.7]), min_size=4, max_size=4),
    seed=st.integers(0, 1000),
)
@settings(max_examples=30, deadline=None)
def test_weights_are_exact_passes_and_passes_are_permutations(
    sizes: list[int], weights: list[float], seed: int
) -> None:
    names = [f"set{i}" for i in range(len(sizes))]
    blend = dict(zip(names, weights, strict=False))
    if sum(sizes[i] * blend[n] for i, n in enumerate(names)) < 1:
        return
    sampler = BlendSampler(dict(zip(names, sizes, strict=True)), blend, seed)
    epochs = 5
    draws = [sampler.draw(i) for i in range(sum(sampler.epoch_samples(e) for e in range(epochs)))]
    for name, size in zip(names, sizes, strict=True):
        rows = [(d.dataset_pass, d.row) for d in draws if d.dataset == name]
        assert len(rows) == len(set(rows)) == int(round(epochs * size * blend[name] * 100, 6) // 100)
        for dataset_pass in range(len(rows) // size):
            assert sorted(r for p, r in rows if p == dataset_pass) == list(range(size))


def test_order_changes_between_passes_and_seeds() -> None:
    sampler = BlendSampler({"a": 50}, {"a": 1.0}, 0)
    first, second = ([sampler.draw(i).row for i in range(b, b + 50)] for b in (0, 50))
    other = BlendSampler({"a": 50}, {"a": 1.0}, 1)
    assert first != second
    assert first != [other.draw(i).row for i in range(50)]


def test_global_batches_do_not_depend_on_ranks() -> None:
    sizes, blend = {"a": 37, "b": 11}, {"a": 1.0, "b": 2.5}
    reference = BlendSampler(sizes, blend, 3)
    for ranks in (1, 2, 4):
        per_rank = 8 // ranks
        for step in (0, 9, 1000):
            batch = [
                BlendSampler(sizes, blend, 3).draw(step * 8 + rank * per_rank + slot)
                for rank in range(ranks)
                for slot in range(per_rank)
            ]
            assert batch == [reference.draw(step * 8 + slot) for slot in range(8)]


def test_replacements_are_other_rows_of_the_same_data_set() -> None:
    sampler = BlendSampler({"a": 20}, {"a": 1.0}, 0)
    draw = sampler.draw(4)
    rows = [sampler.replacement(draw, attempt) for attempt in range(1, 9)]
    assert draw.row not in rows and len(set(rows)) > 3
    assert rows == [sampler.replacement(draw, attempt) for attempt in range(1, 9)]


def test_bad_blends_are_named_together() -> None:
    with pytest.raises(ValueError, match=r"x: unknown.*a: weight -1.*e: its manifest holds no row"):
        BlendSampler({"a": 3, "e": 0}, {"x": 1.0, "a": -1, "e": 1.0}, 0)
    with pytest.raises(ValueError, match="raise the weights"):
        BlendSampler({"a": 3}, {"a": 0.001}, 0)


def test_what_is_drawn_for_a_sample_follows_from_seed_and_place_alone() -> None:
    def keys(seed: int | str, sizes: dict[str, int]) -> list[int]:
        sampler = BlendSampler(sizes, dict.fromkeys(sizes, 1.0), seed)
        return [sampler.draw(index).random for index in range(50)]

    assert keys("0/clap", {"a": 7}) == keys("0/clap", {"a": 40, "b": 3})
    assert len(set(keys("0/clap", {"a": 7}) + keys("1/clap", {"a": 7}) + keys("0/tune", {"a": 7}))) == 150
