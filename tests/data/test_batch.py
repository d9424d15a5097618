"""Sharing of clips among the ranks of a model-parallel group."""

from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_af.data.batch import assign_clips


@given(windows=st.lists(st.integers(1, 30), max_size=40), ranks=st.integers(1, 8))
@settings(deadline=None)
def test_every_clip_has_one_owner_and_loads_are_balanced(windows: list[int], ranks: int) -> None:
    owners = assign_clips(windows, ranks)
    assert len(owners) == ranks
    assert sorted(c for owned in owners for c in owned) == list(range(len(windows)))
    loads = [sum(windows[c] for c in owned) for owned in owners]
    assert max(loads) - min(loads) <= max(windows, default=0)
    assert owners == assign_clips(list(windows), ranks)
