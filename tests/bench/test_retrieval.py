"""The retrieval bench on few vectors: every index is measured, and its recall is that of what it found."""

import json
from pathlib import Path

import numpy as np
import pytest

from megatron_af.bench import retrieval
from tools.bench import main


def test_it_measures_every_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(retrieval, "VECTORS", 4000)
    monkeypatch.setattr(retrieval, "QUERIES", 50)
    monkeypatch.setattr(retrieval, "DIM", 64)
    out = tmp_path / "bench.json"
    assert main(["retrieval", "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    assert list(result["indexes"]) == ["flat", *retrieval.KINDS]
    for kind, numbers in result["indexes"].items():
        assert numbers["recall@8"] == 1 if kind == "flat" else 0.9 < numbers["recall@8"] <= 1
        assert numbers["query, ms"] > 0 and numbers["memory, MB"] > 0
    sizes = {kind: numbers["memory, MB"] for kind, numbers in result["indexes"].items()}
    assert sizes["ivf_pq"] < sizes["flat"] < sizes["ivf"] and sizes["flat"] < sizes["hnsw"]
    printed = capsys.readouterr().out
    assert "recall@8" in printed and "ivf_pq" in printed


def test_the_vectors_lie_as_embeddings_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of length 1, in some twenty directions of 512, in clusters."""
    vector_PJ = retrieval.embeddings(4000, 0)
    assert np.allclose(np.linalg.norm(vector_PJ, axis=1), 1, atol=1e-5)
    assert 15 < retrieval.directions(vector_PJ) < 35
    assert np.array_equal(vector_PJ, retrieval.embeddings(4000, 0))
    apart = retrieval.CLUSTERS * 50
    monkeypatch.setattr(retrieval, "CLUSTERS", apart)
    near = [np.sort(x[:200] @ x.T, axis=1)[:, -9:-1].mean() for x in (vector_PJ, retrieval.embeddings(4000, 0))]
    assert near[0] > near[1] + 0.03
