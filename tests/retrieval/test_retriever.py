"""Examples for prompts: by file, by row, by embedding; into requests and into rows to evaluate."""

from pathlib import Path

import numpy as np
import pytest

from megatron_af.config import Config
from megatron_af.data.rows import Manifest
from megatron_af.inference import embedder as module
from megatron_af.inference.requests import BadRequest, RequestRows
from megatron_af.retrieval.catalogue import read_catalogue
from megatron_af.retrieval.index import NeighbourIndex, StaleIndex, index_folder, index_inputs
from megatron_af.retrieval.retriever import Retriever
from tests.retrieval.toy import StubEmbedder, hear, retrieval_config, write_checkpoint


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    config = retrieval_config(tmp_path)
    write_checkpoint(config, "a")
    rows, catalogue = Manifest(tmp_path / "data/train.jsonl"), read_catalogue(config, "train")
    vectors = [hear((tmp_path / "data" / row.clips[0].path).read_bytes(), row.clips[0].start) for row in rows]
    folder, inputs = index_folder(config, "train"), index_inputs(config, "train")
    NeighbourIndex.make(catalogue, np.stack([vector.numpy() for vector in vectors]), folder, inputs)
    monkeypatch.setattr(module, "ClapEmbedder", StubEmbedder)
    return config


def test_by_file_by_embedding_and_by_row(config: Config, tmp_path: Path) -> None:
    retriever = Retriever(config, "train")
    file = tmp_path / "data/train/4.wav"
    by_file, by_bytes = retriever.nearest([file, file.read_bytes()], 3, skill="count")
    (by_vector,) = retriever.nearest(hear(file.read_bytes(), 0.0).numpy()[None], 3, skill="count")
    assert by_file == by_bytes == by_vector
    first = by_file[0]
    assert (first.clip.path, first.similarity) == ("train/4.wav", pytest.approx(1.0))
    assert (first.prompt, first.output) == ("count 4?", "count of 4")
    row = Manifest(tmp_path / "data/train.jsonl")[4]
    (by_row,) = retriever.nearest([row], 2, skill="count")
    assert by_row == by_file[1:], "a row is no example of itself"
    retriever.close()
    with pytest.raises(BadRequest, match="audio 0"):
        retriever.nearest([b"no sound"], 1)


def test_a_request_with_examples(config: Config, tmp_path: Path) -> None:
    request = Retriever(config, "train").request(tmp_path / "data/test/0.wav", "what is it?", 3)
    with RequestRows() as requests:
        row = requests.row(request, "request")
        assert row.template == "interleaved" and len(row.clips) == len(row.questions) == 4
        assert [round(clip.duration, 3) for clip in row.clips] == [1.0, 1.0, 1.0, 2.0], "pieces, not whole recordings"
    assert row.questions[-1].prompt == "what is it?"
    assert all(question.output for question in row.questions[:-1])


def test_rows_to_evaluate_with_examples(config: Config, tmp_path: Path) -> None:
    rows = list(Manifest(tmp_path / "data/test.jsonl"))
    shown = Retriever(config, "train").few_shot(rows, 2)
    assert [row.id for row in shown] == [row.id for row in rows]
    for row, asked in zip(rows, shown, strict=True):
        assert asked.clips[-1] == row.clips[0] and asked.questions[-1] == row.questions[-1]
        assert all(clip.path.startswith("train/") for clip in asked.clips[:-1])
        assert asked.meta["similarity"] == sorted(asked.meta["similarity"]), "the nearest stands last"


def test_a_changed_encoder_is_refused(config: Config) -> None:
    write_checkpoint(config, "b")
    with pytest.raises(StaleIndex, match="encoder"):
        Retriever(config, "train")
