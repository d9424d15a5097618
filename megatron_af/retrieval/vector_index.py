"""Which of many unit vectors are nearest to a query: by looking at all of them, or only where an index leads.

    index = VectorIndex.build(vectors, RetrievalConfig(index="ivf"), folder)     # writes folder/vectors.N.faiss
    similarity_QC, place_QC = VectorIndex.open(folder, "ivf").search(query_QJ, 8)

``flat`` compares every vector. ``hnsw`` walks a graph of neighbours. ``ivf`` turns vectors into the directions that
carry nearly all of their variance, keeps half a byte of each in cells, looks through the nearest cells, and compares
the best it finds there again, whole; ``ivf_pq`` keeps a byte per number instead of the whole vectors. How far the last
three look is found when they are built: as far as finds ``recall`` of what comparing all would find. More than
``shard_clips`` vectors make several shards: one at a time is built in memory, and searches read them from the disk.

Where faiss sees GPUs, flat and ivf are built and searched there, ivf without codes. P vectors, Q queries, J dim,
C neighbours.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from megatron_af.config import RetrievalConfig
from megatron_af.entry import AGAIN
from megatron_af.files import appearing, write
from megatron_af.foreign import file_at, read_text

EXACT_UP_TO = 200_000
"""Vectors that ``auto`` still compares all. A search among that many of 512 dimensions takes one core 2.5 ms."""
CELLS = 4
"""Times the square root of the vectors."""
TRAINED_ON = 16
"""Vectors per cell that k-means looks at; faiss asks for 39, and needs twice the time for the same recall."""
VARIANCE = 0.98
"""What the directions carry that ``ivf`` keeps codes of, in sixteens of directions."""
REFINED = 16
"""``ivf`` compares this many times the wanted neighbours again."""
CHECKED, COUNT = 256, 8
"""Vectors, and neighbours of each, that recall is measured with."""
DEPTH = "depth"
"""File: cells that a search looks through (ivf), or places of the graph that it keeps in mind (hnsw)."""
ON_GPU = ("flat", "ivf")
TABLE_BYTES = 2**25
"""Of distances between cells and codes: what faiss makes while it reads ivf, and no file holds. More than a small file
has bytes; less than a large one's vectors take, up to 2,048 dimensions."""
GPU_NEIGHBOURS = 2048
"""More than that no GPU index finds at a time."""


class Vectors(Protocol):
    """Unit vectors that need not be in memory: an array, or something that looks them up."""

    def __len__(self) -> int: ...

    def __getitem__(self, places: Any) -> NDArray[np.float32]:
        """vector_QJ at a slice, or at an array of places."""


class TooLittleMemory(MemoryError):
    """A whole index for which the memory does not suffice; the message says how much it asks for."""

    exit_code = AGAIN


class VectorIndex:
    def __init__(self, kind: str, shards: Sequence[Any], folder: Path) -> None:
        self.kind, self._shards, self._folder = kind, list(shards), folder
        self._first = np.cumsum([0, *(shard.ntotal for shard in self._shards)])
        self._whole = self._shards[0] if len(self._shards) == 1 else _joined(self._shards)
        self._gpu = _on_gpu(self._whole) if kind in ON_GPU and len(self._shards) == 1 else None

    def __len__(self) -> int:
        return int(self._first[-1])

    @classmethod
    def build(cls, vectors: Vectors, settings: RetrievalConfig, folder: Path) -> Self:
        """Index vectors in their order; the index is in ``folder`` when this returns.

        Raises:
            OSError: the disk does not take it.
        """
        kind = kind_of(settings, len(vectors))
        shards = -(-len(vectors) // settings.shard_clips)
        bounds = np.linspace(0, len(vectors), shards + 1).astype(int).tolist()
        trained = _trained(kind, vectors, bounds[1])
        for number, (begin, end) in enumerate(pairwise(bounds)):
            shard = _filled(kind, faiss.clone_index(trained) if shards > 1 else trained, vectors[begin:end])
            _write(shard, folder / f"vectors.{number}.faiss")
            del shard
        del trained
        index = cls.open(folder, kind)
        if kind != "flat":
            index._look_as_far_as_needed(vectors, settings.recall)
        return index

    @classmethod
    def open(cls, folder: Path, kind: str) -> Self:
        """What :meth:`build` wrote.

        Raises:
            TooLittleMemory: it does not fit.
            ValueError, RuntimeError, OSError: it is something else, or damaged.
        """
        files = sorted(folder.glob("vectors.*.faiss"), key=lambda file: int(file.suffixes[0][1:]))
        if not files:
            raise ValueError("it holds no vectors")
        flags = faiss.IO_FLAG_MMAP_IFC if len(files) > 1 else 0
        for file in files:  # to read makes room for all vectors that a file says it holds, to map looks whether it does
            _read(file, faiss.IO_FLAG_MMAP_IFC)
        index = cls(kind, [_read(file, flags) for file in files], folder)
        if (depth := folder / DEPTH).is_file():
            index._set_depth(int(read_text(depth)))
        return index

    def search(self, query_QJ: NDArray[np.float32], count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """similarity_QC and place_QC of the nearest, best first; -1 where no more were found.

        Raises:
            ValueError: the index is damaged, or holds vectors of another size.
        """
        if query_QJ.shape[1] != self._whole.d:
            raise ValueError(
                f"{self._folder}: expected vectors of {query_QJ.shape[1]} numbers, as the encoder makes them, got an "
                f"index of {self._whole.d}; build it anew"
            )
        index = self._gpu if self._gpu is not None and count <= GPU_NEIGHBOURS else self._whole
        with self._trusted():
            found_QC, place_QC = index.search(np.ascontiguousarray(query_QJ), count)
        similarity_QC = found_QC if index.metric_type == faiss.METRIC_INNER_PRODUCT else 1 - found_QC / 2
        return similarity_QC, place_QC

    def vectors(self, place_Q: NDArray[np.int64]) -> NDArray[np.float32]:
        """vector_QJ at places; of ``ivf_pq`` to a byte per number."""
        vector_QJ = np.empty((len(place_Q), self._shards[0].d), np.float32)
        shard_Q = np.searchsorted(self._first, place_Q, side="right") - 1
        for number in np.unique(shard_Q).tolist():
            inside = np.flatnonzero(shard_Q == number)
            with self._trusted():
                vector_QJ[inside] = self._shards[number].reconstruct_batch(place_Q[inside] - self._first[number])
        return vector_QJ

    @contextmanager
    def _trusted(self) -> Iterator[None]:
        """What faiss finds wrong only when it follows a list or a graph."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            reason = " ".join(str(error).split())[-200:]
            raise ValueError(f"{self._folder}: faiss cannot search this index ({reason}); build it anew") from error

    def _look_as_far_as_needed(self, vectors: Vectors, recall: float) -> None:
        """Double how far is looked until the neighbours of some new vectors are found, and keep how far that was."""
        query_QJ = self._new(vectors)
        right_QC, depth = exact(vectors, query_QJ, COUNT), 1
        while True:
            self._set_depth(depth)
            if recall_of(self.search(query_QJ, COUNT)[1], right_QC) >= recall or depth >= self._deepest():
                break
            depth *= 2
        write(self._folder / DEPTH, f"{depth}\n")

    def _new(self, vectors: Vectors) -> NDArray[np.float32]:
        """Vectors that might have been indexed as well: each as far from one that is as its nearest neighbour, in the
        direction of another. Those that are in it are found too easily, by a graph above all."""
        rng, size = np.random.default_rng(0), min(CHECKED, len(self))
        own_QJ, other_QJ = (np.array(vectors[np.sort(rng.choice(len(self), size, replace=False))]) for _ in range(2))
        self._set_depth(min(CHECKED, self._deepest()))
        near_Q1 = self.search(own_QJ, 2)[0][:, 1:].clip(-1, 1)
        away_QJ = rng.permutation(other_QJ)
        away_QJ -= (away_QJ * own_QJ).sum(1, keepdims=True) * own_QJ
        away_QJ /= np.linalg.norm(away_QJ, axis=1, keepdims=True).clip(1e-6)
        new_QJ: NDArray[np.float32] = near_Q1 * own_QJ + np.sqrt(1 - near_Q1**2) * away_QJ
        return new_QJ

    def _deepest(self) -> int:
        return len(self) if self.kind == "hnsw" else int(faiss.extract_index_ivf(self._shards[0]).nlist)

    def _set_depth(self, depth: int) -> None:
        for index in self._shards:
            if self.kind == "hnsw":
                index.hnsw.efSearch = depth
            else:
                faiss.extract_index_ivf(index).nprobe = depth
        if self._gpu is not None:
            faiss.GpuParameterSpace().set_index_parameter(self._gpu, "nprobe", depth)


def _write(index: Any, file: Path) -> None:
    """
    Raises:
        OSError: the disk does not take it. (Where faiss writes by itself it has words of its own for that.)
    """
    with appearing(file) as draft, draft.open("wb") as opened:
        faiss.write_index(index, faiss.PyCallbackIOWriter(opened.write))  # type: ignore[attr-defined]


def _read(file: Path, flags: int) -> Any:
    """An index as faiss reads it, which makes room for what a file says of itself: here for no more than it has bytes
    by a list, and for as many lists."""
    size = file.stat().st_size
    limits = faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()
    faiss.set_deserialization_vector_byte_limit(size + TABLE_BYTES)
    faiss.set_deserialization_loop_limit(size)
    try:
        return faiss.read_index(str(file_at(file)), flags)
    except MemoryError:
        raise TooLittleMemory(
            f"{file}: expected {size / 2**30:.2f} GiB of free memory, there is less; free some, or build the index "
            "anew with a smaller retrieval.shard_clips, whose shards are searched on the disk"
        ) from None
    finally:
        faiss.set_deserialization_vector_byte_limit(limits[0])
        faiss.set_deserialization_loop_limit(limits[1])


def kind_of(settings: RetrievalConfig, vectors: int) -> str:
    """What ``auto`` stands for."""
    if settings.index != "auto":
        return settings.index
    return "flat" if vectors <= EXACT_UP_TO else "ivf"


def exact(vectors: Vectors, query_QJ: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """place_QC of the nearest by comparing all, block by block."""
    similarity_QC = np.empty((len(query_QJ), 0), np.float32)
    place_QC = np.empty((len(query_QJ), 0), np.int64)
    for begin in range(0, len(vectors), EXACT_UP_TO):
        block = np.ascontiguousarray(vectors[begin : begin + EXACT_UP_TO])
        found, place = faiss.knn(query_QJ, block, min(count, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
        similarity_QC = np.concatenate([similarity_QC, found], 1)
        place_QC = np.concatenate([place_QC, place + begin], 1)
        best = np.argsort(-similarity_QC, axis=1, kind="stable")[:, :count]
        similarity_QC, place_QC = np.take_along_axis(similarity_QC, best, 1), np.take_along_axis(place_QC, best, 1)
    return place_QC


def recall_of(place_QC: NDArray[np.int64], right_QC: NDArray[np.int64]) -> float:
    """Part of the right neighbours that were found."""
    pairs = zip(place_QC.tolist(), right_QC.tolist(), strict=True)
    return sum(len(set(found) & set(right)) for found, right in pairs) / right_QC.size


def _trained(kind: str, vectors: Vectors, shard: int) -> Any:
    """An empty index that knows directions and cells, for shards of so many vectors."""
    dim, cells = vectors[0:1].shape[1], round(CELLS * math.sqrt(shard))
    if kind == "flat":
        return faiss.IndexFlatIP(dim)
    if kind == "hnsw":
        return faiss.index_factory(dim, "HNSW32", faiss.METRIC_L2)
    size = min(shard, max(TRAINED_ON * cells, 256))
    chosen = np.sort(np.random.default_rng(0).choice(len(vectors), size, replace=False))
    sample_QJ = np.ascontiguousarray(vectors[chosen])
    if kind in ON_GPU and faiss.get_num_gpus():
        factory = f"IVF{cells},Flat"
    else:
        kept = directions(sample_QJ)
        refine = "RFlat" if kind == "ivf" else "Refine(SQ8)"
        factory = f"PCA{kept},IVF{cells}_HNSW32,PQ{kept}x4fs,{refine}"
    index: Any = faiss.index_factory(dim, factory, faiss.METRIC_L2)  # which the directions' mean does not change
    in_cells = faiss.extract_index_ivf(index)
    in_cells.cp.min_points_per_centroid, in_cells.cp.max_points_per_centroid = 1, TRAINED_ON
    if hasattr(index, "k_factor"):
        index.k_factor = REFINED
    index.train(sample_QJ)
    return index


def directions(vector_QJ: NDArray[np.float32]) -> int:
    """How many carry ``VARIANCE`` of all, rounded up to sixteens."""
    variance_J = np.linalg.eigvalsh(np.cov(vector_QJ, rowvar=False))[::-1]
    carried_J = np.cumsum(variance_J) / variance_J.sum()
    return min(len(variance_J), 16 * math.ceil((np.searchsorted(carried_J, VARIANCE) + 1) / 16))


def _filled(kind: str, index: Any, vector_PJ: NDArray[np.float32]) -> Any:
    """The index with vectors, on the CPU."""
    gpu = _on_gpu(index) if kind in ON_GPU else None
    filled = index if gpu is None else gpu
    filled.add(np.ascontiguousarray(vector_PJ))
    if gpu is not None:
        index = faiss.index_gpu_to_cpu(gpu)
    if kind == "ivf" and not hasattr(index, "refine_index"):
        faiss.extract_index_ivf(index).make_direct_map()  # for `vectors`
    return index


def _joined(shards: Sequence[Any]) -> Any:
    whole = faiss.IndexShards(shards[0].d, False, True)  # type: ignore[call-arg]
    whole.metric_type = shards[0].metric_type
    for shard in shards:
        whole.add_shard(shard)
    return whole


def _on_gpu(index: Any) -> Any | None:
    """A copy over all GPUs; None where faiss sees none."""
    if not faiss.get_num_gpus():
        return None
    options = faiss.GpuMultipleClonerOptions()
    options.shard = True
    return faiss.index_cpu_to_all_gpus(index, options)
