"""Nearest neighbours among a million embeddings: what each index costs, and what it finds.

    result = measure(folder, progress)          # python tools/bench.py retrieval

Every index is asked the same new queries in one call, as exact search is; both in processor time, which other work on
the machine hardly changes. Vectors are made as embeddings of sounds lie: in clusters, and in far
fewer directions than they have numbers (``embeddings``). P vectors, Q queries, J numbers of each.
"""

import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from megatron_af.config import RetrievalConfig
from megatron_af.progress import Progress
from megatron_af.retrieval.vector_index import COUNT, VectorIndex, exact, recall_of

VECTORS, DIM, QUERIES = 1_000_000, 512, 512
KINDS = ("ivf", "ivf_pq", "hnsw")
DIRECTIONS, CLUSTERS = 32, 2_000
INSIDE = 0.7
"""Spread within a cluster, with that between clusters as 1."""
NOISE = 0.005
"""Of each number, where the 32 directions have 1 in all: about a hundredth of the variance."""


def measure(folder: Path, progress: Progress) -> dict[str, Any]:
    every_J = embeddings(VECTORS + QUERIES, 0)
    vector_PJ, query_QJ = every_J[:VECTORS], every_J[VECTORS:]
    exact_seconds, right_QC = _timed(lambda: exact(vector_PJ, query_QJ, COUNT))
    result: dict[str, Any] = {"vectors": VECTORS, "dim": DIM, "directions": directions(vector_PJ[:20_000])}
    result["indexes"] = {"flat": _numbers(0.0, vector_PJ.nbytes, exact_seconds, 1.0, 1.0)}
    for number, kind in enumerate(KINDS):
        progress.update("indexes", number, len(KINDS))
        place = folder / kind
        place.mkdir()
        built, index = _timed(partial(VectorIndex.build, vector_PJ, RetrievalConfig(index=kind), place))  # type: ignore[arg-type]
        index.search(query_QJ[:8], COUNT)
        seconds, (_, place_QC) = _timed(partial(index.search, query_QJ, COUNT))
        size = sum(file.stat().st_size for file in place.iterdir())
        recall = recall_of(place_QC, right_QC)
        result["indexes"][kind] = _numbers(built, size, seconds, recall, exact_seconds / seconds)
        shutil.rmtree(place)
    progress.update("indexes", len(KINDS), len(KINDS))
    return result


def embeddings(number: int, seed: int) -> NDArray[np.float32]:
    """Unit vectors in clusters of unequal size, whose directions carry less and less, and a little of everything."""
    rng = np.random.default_rng(seed)
    carried = (1 / np.sqrt(1 + np.arange(DIRECTIONS) / 4)).astype(np.float32)
    centre_KD = rng.standard_normal((CLUSTERS, DIRECTIONS), np.float32)
    turn_DJ = np.linalg.qr(rng.standard_normal((DIM, DIRECTIONS)))[0].T.astype(np.float32)
    sizes = rng.pareto(1.5, CLUSTERS) + 1
    cluster_P = rng.choice(CLUSTERS, number, p=sizes / sizes.sum())
    vector_PJ = np.empty((number, DIM), np.float32)
    for begin in range(0, number, 100_000):
        part = cluster_P[begin : begin + 100_000]
        low = centre_KD[part] + np.float32(INSIDE) * rng.standard_normal((len(part), DIRECTIONS), np.float32)
        low *= carried / np.sqrt((carried**2).sum())
        noise = np.float32(NOISE) * rng.standard_normal((len(part), DIM), np.float32)
        vector_PJ[begin : begin + len(part)] = low @ turn_DJ + noise
    vector_PJ /= np.linalg.norm(vector_PJ, axis=1, keepdims=True)
    return vector_PJ


def directions(vector_PJ: NDArray[np.float32]) -> float:
    """How many directions carry as much as all do: (sum of variances)^2 / sum of their squares."""
    variance = np.linalg.eigvalsh(np.cov(vector_PJ, rowvar=False))
    return float(variance.sum() ** 2 / (variance**2).sum())


def _timed[Result](work: Callable[[], Result]) -> tuple[float, Result]:
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def _numbers(built: float, size: int, seconds: float, recall: float, speed_up: float) -> dict[str, float]:
    return {
        "build, s": built,
        "memory, MB": size / 1e6,
        "query, ms": 1e3 * seconds / QUERIES,
        f"recall@{COUNT}": recall,
        "speed-up": speed_up,
    }


def tables(result: dict[str, Any]) -> list[Table]:
    title = f"{result['vectors']:,} vectors of {result['dim']}, {result['directions']:.0f} directions; processor time"
    grid = Table(title=title, title_justify="left")
    columns = list(next(iter(result["indexes"].values())))
    for column in ("index", *columns):
        grid.add_column(column, justify="left" if column == "index" else "right")
    for kind, numbers in result["indexes"].items():
        grid.add_row(kind, *(f"{numbers[column]:,.3g}" for column in columns))
    return [grid]
