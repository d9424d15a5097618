"""Near duplicates and varied choices, against brute force and cases worked by hand."""

from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from megatron_af.retrieval import variety
from megatron_af.retrieval.variety import drawn, most_unlike, nearest_kept, shares


def unit(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_near_duplicates_are_those_of_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variety, "BLOCK", 16)
    rng = np.random.default_rng(5)
    centres = unit(rng.normal(size=(20, 12)))
    vectors = unit(centres[rng.integers(0, 20, 150)] + rng.normal(size=(150, 12)) * 0.1)
    place, similarity = nearest_kept(vectors, most=0.9)
    stay: list[int] = []
    for own, vector in enumerate(vectors):
        found = [float(vector @ vectors[other]) for other in stay]
        best = int(np.argmax(found)) if found else -1
        assert place[own] == (stay[best] if found else -1)
        assert similarity[own] == pytest.approx(found[best] if found else -1.0, abs=1e-5)
        if not found or found[best] <= 0.9:
            stay.append(own)
    assert 20 <= len(stay) < 100


def test_every_cluster_gives_as_many_whatever_its_size() -> None:
    rng = np.random.default_rng(1)
    centres = np.eye(5, 16)
    sizes = [400, 60, 60, 60, 45]  # 625: 25 clusters of k-means, more of them in the large group
    vectors = unit(np.repeat(centres, sizes, 0) + rng.normal(size=(625, 16)) * 0.02)
    chosen, clusters = drawn(vectors, 100, seed=0)
    assert len(set(chosen)) == 100 and chosen == sorted(chosen) and len(np.unique(clusters)) > 5
    again, _ = drawn(vectors, 100, seed=0)
    assert again == chosen
    taken = np.bincount(clusters[chosen], minlength=25)
    large = np.bincount(clusters, minlength=25) >= 4
    assert set(taken[large]) <= {4, 5}
    assert drawn(vectors, 1000, seed=0)[0] == list(range(625)), "there are no more"
    assert drawn(vectors[:1], 1, seed=0)[0] == [0]


@pytest.mark.parametrize(
    ("sizes", "count", "share"),
    [([5, 5, 5], 6, [2, 2, 2]), ([1, 9, 9], 7, [1, 3, 3]), ([3, 1], 9, [3, 1]), ([2, 2, 2], 4, [1, 1, 2]), ([], 3, [])],
)
def test_what_small_groups_lack_others_give(sizes: list[int], count: int, share: list[int]) -> None:
    assert shares(sizes, count) == share


def test_the_most_unlike_span_the_most() -> None:
    rng = np.random.default_rng(2)
    vectors = unit(rng.normal(size=(9, 4)))
    chosen = most_unlike(vectors, 2)
    others = [np.linalg.det(vectors[[0, other]] @ vectors[[0, other]].T) for other in range(1, 9)]
    assert chosen == [0, 1 + int(np.argmax(others))], "the determinant of the second step is the largest there is"
    assert sorted(most_unlike(vectors, 9)) == list(range(9)), "more than they span"
    same = np.repeat(unit(rng.normal(size=(2, 4))), [6, 1], 0)
    assert 6 in most_unlike(same, 2)
    volume = {c: np.linalg.det(vectors[list(c)] @ vectors[list(c)].T) for c in combinations(range(9), 3)}
    found = volume[tuple(sorted(most_unlike(vectors, 3)))]
    assert found > np.quantile(list(volume.values()), 0.9)
