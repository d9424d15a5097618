"""Which of many things are nearly the same, and which few of them stand for all, by their unit vectors.

    place_N, similarity_N = nearest_kept(vector_NJ, most=0.95)      # more alike than that to one that stays: goes
    chosen, clusters_N = drawn(vector_NJ, 500, seed=0)              # as many from each cluster

Audio Flamingo 2 chooses LongAudio's videos this way (clusters of text embeddings by k-means, and determinantal sampling
in them; how many clusters, and how alike two videos may be, it does not say). N things, J dim.
"""

import math

import faiss
import numpy as np
from numpy.typing import NDArray

BLOCK = 1024
"""Vectors compared with those that stay at a time."""


def nearest_kept(vector_NJ: NDArray[np.float32], most: float) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Of each the most similar one before it that stays, and how similar (-1 and -1: there is none). What is more
    similar than ``most`` to one that stays does not stay itself. All are compared with all that stay."""
    stay = faiss.IndexFlatIP(vector_NJ.shape[1])
    kept: list[int] = []
    place_N = np.full(len(vector_NJ), -1, np.int64)
    similarity_N = np.full(len(vector_NJ), -1.0, np.float32)
    for begin in range(0, len(vector_NJ), BLOCK):
        block_BJ = np.ascontiguousarray(vector_NJ[begin : begin + BLOCK])
        if kept:
            best_B1, number_B1 = stay.search(block_BJ, 1)
            similarity_N[begin : begin + BLOCK] = best_B1[:, 0]
            place_N[begin : begin + BLOCK] = np.array(kept)[number_B1[:, 0]]
        inside_BB, new = block_BJ @ block_BJ.T, list[int]()
        for own in range(len(block_BJ)):
            place = begin + own
            if new and (best := float(inside_BB[own, new].max())) > similarity_N[place]:
                similarity_N[place], place_N[place] = best, begin + new[int(inside_BB[own, new].argmax())]
            if similarity_N[place] <= most:
                new.append(own)
        stay.add(np.ascontiguousarray(block_BJ[new]))
        kept += [begin + own for own in new]
    return place_N, similarity_N


def drawn(vector_NJ: NDArray[np.float32], count: int, seed: int) -> tuple[list[int], NDArray[np.int64]]:
    """Places of ``count`` of them, in order, and the cluster of each of all: as many from every cluster as it has or as
    the others give, and from each the most unlike ones."""
    clusters = max(1, round(math.sqrt(len(vector_NJ))))
    vectors = np.ascontiguousarray(vector_NJ)
    means = faiss.Kmeans(
        vectors.shape[1], clusters, niter=25, seed=seed, spherical=True, min_points_per_centroid=1
    )
    means.train(vectors)
    cluster_N = means.index.search(vectors, 1)[1][:, 0]
    members = [np.flatnonzero(cluster_N == cluster) for cluster in range(clusters)]
    chosen: list[int] = []
    for place_M, share in zip(members, shares([len(some) for some in members], count), strict=True):
        chosen += place_M[most_unlike(vectors[place_M], share)].tolist()
    return sorted(chosen), cluster_N


def shares(sizes: list[int], count: int) -> list[int]:
    """How many of each group, as even as their sizes allow, ``count`` in all or everything."""
    share = [0] * len(sizes)
    left = min(count, sum(sizes))
    for done, group in enumerate(sorted(range(len(sizes)), key=sizes.__getitem__)):  # what small ones lack others give
        share[group] = min(sizes[group], left // (len(sizes) - done))
        left -= share[group]
    return share


def most_unlike(vector_MJ: NDArray[np.float32], count: int) -> list[int]:
    """Greedy choice of a determinantal point process with the vectors' products as its kernel: each next one reaches
    farthest out of what those before it span; once they span all, it begins anew."""
    left_MJ, chosen = vector_MJ.copy(), list[int]()
    for _ in range(count):
        reach_M = (left_MJ**2).sum(1)
        reach_M[chosen] = -1
        if reach_M.max() < 1e-6:
            left_MJ = vector_MJ.copy()
            reach_M = (left_MJ**2).sum(1)
            reach_M[chosen] = -1
        place = int(reach_M.argmax())
        chosen.append(place)
        direction_J = left_MJ[place] / math.sqrt(reach_M[place])
        left_MJ -= np.outer(left_MJ @ direction_J, direction_J)
    return chosen
