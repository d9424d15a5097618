"""Every kind of index finds what brute force finds, whole, in shards that stay on the disk, and on a GPU's place."""

import resource
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from megatron_af.config import RetrievalConfig
from megatron_af.entry import AGAIN, FAULT, sentence
from megatron_af.retrieval import vector_index as module
from megatron_af.retrieval.vector_index import COUNT, VectorIndex, exact, kind_of, recall_of
from tests.retrieval.clustered import clustered

KINDS = ("flat", "ivf", "ivf_pq", "hnsw")
PIECES, DIM = 3000, 16
VECTORS = clustered(PIECES + 100, 40)[np.random.default_rng(1).permutation(PIECES + 100)]
VECTOR_PJ, QUERY_QJ = VECTORS[:PIECES], VECTORS[PIECES:]


class OnDisk:
    """Says how much of it was ever asked for at once."""

    def __init__(self, vector_PJ: NDArray[np.float32]) -> None:
        self._vector_PJ, self.most = vector_PJ, 0

    def __len__(self) -> int:
        return len(self._vector_PJ)

    def __getitem__(self, places: Any) -> NDArray[np.float32]:
        found = self._vector_PJ[places]
        self.most = max(self.most, len(found))
        return found


def brute_force(count: int) -> NDArray[np.int64]:
    return np.argsort(-(QUERY_QJ @ VECTOR_PJ.T), axis=1, kind="stable")[:, :count]


@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_takes_no_index_is_told_of(kind: str, tmp_path: Path) -> None:
    (tmp_path / "vectors.0.faiss").symlink_to("/dev/full")
    settings = RetrievalConfig(index=kind, shard_clips=PIECES)  # type: ignore[arg-type]
    with pytest.raises(OSError, match=r"No space left on device: .*vectors\.0\.faiss") as found:
        VectorIndex.build(OnDisk(VECTOR_PJ), settings, tmp_path)
    assert sentence(found.value) == (f"{tmp_path / 'vectors.0.faiss'}: No space left on device", AGAIN)


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_of_another_size_are_refused(kind: str, tmp_path: Path) -> None:
    index = VectorIndex.build(OnDisk(VECTOR_PJ), RetrievalConfig(index=kind), tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"expected vectors of 7 numbers, .* got an index of {DIM}; build it anew"):
        index.search(QUERY_QJ[:, :7], COUNT)


def test_comparing_all_block_by_block_is_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EXACT_UP_TO", 700)
    assert np.array_equal(exact(VECTOR_PJ, QUERY_QJ, COUNT), brute_force(COUNT))
    assert exact(VECTOR_PJ[:5], QUERY_QJ, COUNT).shape == (100, 5)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_finds_what_brute_force_finds(
    kind: str, shards: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EXACT_UP_TO", 1000)
    settings = RetrievalConfig(index=kind, shard_clips=PIECES // shards, recall=0.98)  # type: ignore[arg-type]
    vectors = OnDisk(VECTOR_PJ)
    made = VectorIndex.build(vectors, settings, tmp_path)
    assert len(list(tmp_path.glob("vectors.*.faiss"))) == shards
    assert vectors.most <= max(PIECES // shards, 1024), "one shard at a time is in memory"
    for index in (made, VectorIndex.open(tmp_path, kind)):
        assert len(index) == PIECES
        similarity_QC, place_QC = index.search(QUERY_QJ, COUNT)
        recall = recall_of(place_QC, brute_force(COUNT))
        assert recall == 1 if kind == "flat" else recall > 0.93
        wanted_QC = np.einsum("qj,qcj->qc", QUERY_QJ, VECTOR_PJ[place_QC])
        assert np.allclose(similarity_QC, wanted_QC, atol=0.02 if kind == "ivf_pq" else 1e-5)
        asked = np.array([2999, 0, 1500, 999, 1000])
        assert np.allclose(index.vectors(asked), VECTOR_PJ[asked], atol=0.02 if kind == "ivf_pq" else 0)


def test_it_looks_as_far_as_recall_asks(tmp_path: Path) -> None:
    depth = {}
    for recall in (0.3, 0.99):
        folder = tmp_path / str(recall)
        folder.mkdir()
        index = VectorIndex.build(VECTOR_PJ, RetrievalConfig(index="ivf", recall=recall), folder)
        depth[recall] = int((folder / "depth").read_text())
        found = recall_of(index.search(QUERY_QJ, COUNT)[1], brute_force(COUNT))
        assert found > recall - 0.04
        assert module.faiss.extract_index_ivf(VectorIndex.open(folder, "ivf")._shards[0]).nprobe == depth[recall]
    assert depth[0.3] < depth[0.99]


def test_auto_compares_all_of_few_vectors() -> None:
    auto = RetrievalConfig()
    assert (kind_of(auto, 200_000), kind_of(auto, 200_001)) == ("flat", "ivf")
    assert kind_of(replace(auto, index="hnsw"), 3) == "hnsw"


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_gpus_build_and_search_where_there_are_any(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """faiss without GPUs stands in for one with: copies to a GPU are clones."""
    clones: list[Any] = []

    def clone(index: Any, options: Any) -> Any:
        assert options.shard, "vectors are shared out, not copied to each GPU"
        clones.append(module.faiss.clone_index(index))
        return clones[-1]

    class Options:
        shard = False

    class Parameters:
        def set_index_parameter(self, index: Any, name: str, value: float) -> None:
            module.faiss.ParameterSpace().set_index_parameter(index, name, value)

    fakes = {"get_num_gpus": lambda: 2, "index_cpu_to_all_gpus": clone, "index_gpu_to_cpu": lambda index: index,
             "GpuMultipleClonerOptions": Options, "GpuParameterSpace": Parameters}  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(module.faiss, name, fake, raising=False)
    index = VectorIndex.build(VECTOR_PJ, RetrievalConfig(index=kind), tmp_path)  # type: ignore[arg-type]
    assert clones[-1] is index._gpu and clones[-1].ntotal == PIECES
    place_QC = index.search(QUERY_QJ, COUNT)[1]
    assert recall_of(place_QC, brute_force(COUNT)) > 0.93
    index._gpu = None
    assert np.array_equal(index.search(QUERY_QJ, COUNT)[1], place_QC)
    assert index.search(QUERY_QJ, 2500)[1].shape == (100, 2500)


def _opened_with_little(folder: Path) -> str:
    """What is said of an index for which there is no room, in a process of its own."""
    limit = int(Path("/proc/self/status").read_text().partition("VmData:")[2].split()[0]) * 1024 + 16 * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        VectorIndex.open(folder, "flat")
    except module.TooLittleMemory as error:
        told, code = sentence(error) or ("a fault", FAULT)
        return f"{code} {told}"
    return "it was opened"


@pytest.mark.slow
def test_too_little_memory_is_no_damage(tmp_path: Path) -> None:
    VectorIndex.build(np.ones((2**16, 256), np.float32), RetrievalConfig(index="flat"), tmp_path)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        told = process.submit(_opened_with_little, tmp_path).result()
    assert told.startswith(f"1 {tmp_path}/vectors.0.faiss: expected 0.06 GiB of free memory, there is less; free some")
    assert "retrieval.shard_clips" in told
