"""Embeddings that lie in clusters."""

import numpy as np
from numpy.typing import NDArray

from tests.retrieval.toy import DIM


def clustered(pieces: int, clusters: int, dim: int = DIM) -> NDArray[np.float32]:
    """Unit vectors in clusters, as the sounds of a few kinds are."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((clusters, dim))
    vector = centres[np.arange(pieces) % clusters] + 0.5 * rng.standard_normal((pieces, dim))
    return (vector / np.linalg.norm(vector, axis=1, keepdims=True)).astype(np.float32)
