"""The store of embeddings: found again, kept apart by encoder, whole after a killed writer."""

from pathlib import Path

import numpy as np
import pytest

from megatron_af.retrieval.vectors import VectorStore


def keys(*names: str) -> list[str]:
    return [name * 64 for name in names]


def test_vectors_are_found_by_key_and_encoder(tmp_path: Path) -> None:
    store = VectorStore(tmp_path, "sha256:one", 3)
    assert keys("a")[0] not in store
    store.add(keys("a", "b"), np.arange(6, dtype=np.float32).reshape(2, 3))
    store.add(keys("c"), np.full((1, 3), 9, np.float32))
    for again in (store, VectorStore(tmp_path, "sha256:one", 3)):
        assert again.lookup(keys("c", "a")).tolist() == [[9, 9, 9], [0, 1, 2]]
        assert keys("b")[0] in again and keys("d")[0] not in again
    other = VectorStore(tmp_path, "sha256:two", 3)
    assert keys("a")[0] not in other
    with pytest.raises(KeyError):
        other.lookup(keys("a"))
    other.remove_others()
    assert [path.name for path in tmp_path.iterdir()] == ["two.vectors"]


def test_a_torn_end_is_cut_off(tmp_path: Path) -> None:
    store = VectorStore(tmp_path, "sha256:one", 3)
    store.add(keys("a", "b"), np.ones((2, 3), np.float32))
    file = tmp_path / "one.vectors"
    file.write_bytes(file.read_bytes()[:-5])
    again = VectorStore(tmp_path, "sha256:one", 3)
    assert keys("a")[0] in again and keys("b")[0] not in again
    again.add(keys("b"), np.full((1, 3), 2, np.float32))
    assert VectorStore(tmp_path, "sha256:one", 3).lookup(keys("a", "b")).tolist() == [[1, 1, 1], [2, 2, 2]]
