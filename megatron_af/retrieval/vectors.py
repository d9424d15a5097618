"""Embeddings on disk, each found by the digest of what was embedded.

    store = VectorStore(folder, encoder="sha256:…", dim=512)
    store.add([key], vector_NJ)
    vector_NJ = store.lookup(keys)

One file per encoder, only ever appended to: an interrupted run goes on where it stopped, and rows that were added to a
data set are the only ones embedded anew. Another encoder has another file and never meets these vectors.
N vectors, J joint dim, float32.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron_af.files import append
from megatron_af.foreign import file_at

KEY_BYTES = 64


class VectorStore:
    """Vectors of one encoder under ``folder``. One process writes at a time."""

    def __init__(self, folder: Path, encoder: str, dim: int) -> None:
        self._path = folder / f"{encoder.removeprefix('sha256:')}.vectors"
        self._record = np.dtype([("key", f"S{KEY_BYTES}"), ("vector", "<f4", (dim,))])
        folder.mkdir(parents=True, exist_ok=True)
        self._path.touch()
        size = self._path.stat().st_size
        if torn := size % self._record.itemsize:  # a writer was killed
            os.truncate(self._path, size - torn)
        self._place = {key: place for place, key in enumerate(self._read()["key"].tolist())}

    def __contains__(self, key: str) -> bool:
        return key.encode() in self._place

    def add(self, keys: Sequence[str], vector_NJ: NDArray[np.float32]) -> None:
        """Keep vectors; they are on the disk when this returns."""
        records = np.empty(len(keys), self._record)
        records["key"], records["vector"] = [key.encode() for key in keys], vector_NJ
        append(self._path, records.tobytes())
        self._place |= {key.encode(): len(self._place) + n for n, key in enumerate(keys)}

    def lookup(self, keys: Sequence[str]) -> NDArray[np.float32]:
        """vector_NJ of keys that are all there."""
        vector_NJ: NDArray[np.float32] = self._read()["vector"][[self._place[key.encode()] for key in keys]]
        return vector_NJ

    def of(self, keys: Sequence[str]) -> "StoredVectors":
        """The same, read from the disk when asked for."""
        return StoredVectors(self, keys)

    def remove_others(self) -> None:
        """Forget the vectors of other encoders."""
        for other in self._path.parent.glob("*.vectors"):
            if other != self._path:
                other.unlink()

    def _read(self) -> NDArray[np.void]:
        if not self._path.stat().st_size:
            return np.empty(0, self._record)
        return np.memmap(file_at(self._path), self._record, "r")


class StoredVectors:
    """Vectors of some keys in their order: what an index is built of, however many there are."""

    def __init__(self, store: VectorStore, keys: Sequence[str]) -> None:
        self._store, self._keys = store, keys

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, places: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        chosen = self._keys[places] if isinstance(places, slice) else [self._keys[place] for place in places.tolist()]
        return self._store.lookup(chosen)
