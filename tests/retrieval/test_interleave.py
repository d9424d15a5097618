"""Interleaved rows: neighbours in their order of chance, never the row's own recording, the same for the same seed."""

import json
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from megatron_af.data.rows import Clip, Manifest, Question, Row, parse_row, to_json
from megatron_af.retrieval.catalogue import read_catalogue
from megatron_af.retrieval.index import NeighbourIndex
from megatron_af.retrieval.interleave import interleaved_rows, renamed
from tests.retrieval.clustered import clustered
from tests.retrieval.toy import retrieval_config


def made(folder: Path, train: int = 24) -> tuple[NeighbourIndex, Manifest]:
    config = retrieval_config(folder, train)
    catalogue = read_catalogue(config, "train")
    index = NeighbourIndex.make(catalogue, clustered(len(catalogue.key_P), 3), folder / "index", {})
    return index, Manifest(folder / "data/train.jsonl")


def interleaved(
    index: NeighbourIndex, rows: Manifest, examples: int = 3, seed: str = "0", names: Sequence[str] = ()
) -> list[Row]:
    return list(interleaved_rows(index, rows, examples=examples, seed=seed, names=names))


def test_each_row_stands_behind_its_nearest(tmp_path: Path) -> None:
    index, rows = made(tmp_path)
    out = interleaved(index, rows)
    assert [row.id for row in out] == [row.id for row in rows]
    recordings, pieces = index.catalogue.recording_P, index.catalogue.piece_N
    vector_NJ = index.vectors(pieces)
    number = {row.id: n for n, row in enumerate(rows)}
    for n, row in enumerate(out):
        shown = [number[name] for name in row.meta["neighbours"]]
        origins = [int(recordings[pieces[m]]) for m in shown]
        assert len(set(origins)) == 3 and int(recordings[pieces[n]]) not in origins
        similarity_N = vector_NJ @ vector_NJ[n]
        foreign = np.flatnonzero(recordings[pieces] != recordings[pieces[n]])
        assert max(row.meta["similarity"]) == np.float32(similarity_N[foreign].max()).round(4)
        assert row.clips == (*(rows[m].clips[0] for m in shown), rows[n].clips[0])
        assert len({question.skill for question in row.questions}) == 1, "examples of what the row is asked"
        assert ["OPTIONS" in question.prompt for question in row.questions] == [False, False, False, True]
        assert row.questions[-1] in rows[n].questions and row.task == "listening"
        assert parse_row(json.loads(to_json(row)), "row") == row
    nearest_first = sum(row.meta["similarity"] == sorted(row.meta["similarity"], reverse=True) for row in out)
    assert nearest_first < len(out) / 2, "their order is drawn"
    assert {question.skill for row in out for question in row.questions} == {"what", "count"}


def test_the_seed_decides(tmp_path: Path) -> None:
    index, rows = made(tmp_path)
    assert interleaved(index, rows) == interleaved(index, rows)
    assert interleaved(index, rows) != interleaved(index, rows, seed="1")


def test_rows_without_enough_neighbours_are_left_out(tmp_path: Path) -> None:
    index, rows = made(tmp_path, train=4)  # three recordings
    assert len(interleaved(index, rows, examples=2)) == 4
    assert interleaved(index, rows, examples=3) == []


def test_names_stand_for_answers_equal_ones_alike_and_drawn_for_each_row(tmp_path: Path) -> None:
    index, rows = made(tmp_path)
    names = [f"name {n}" for n in range(9)]
    plain, out = interleaved(index, rows), interleaved(index, rows, names=names)
    assert out == interleaved(index, rows, names=names[::-1]), "their order in the file says nothing"
    names_of = defaultdict(set)
    for before, row in zip(plain, out, strict=True):
        called = [question.output for question in row.questions]
        if before.questions[-1].options:
            assert row == before, "its prompt lists its answers"
            continue
        pairs = {(q.output, name) for q, name in zip(before.questions, called, strict=True)}
        assert set(called) <= set(names)
        assert len(pairs) == len({answer for answer, _ in pairs}) == len({name for _, name in pairs})
        again = zip(row.questions, before.questions, strict=True)
        assert replace(row, questions=before.questions) == before
        assert all(replace(q, output=was.output) == was for q, was in again), "but for what they are called"
        for answer, name in pairs:
            names_of[answer].add(name)
    assert any(len(found) > 1 for found in names_of.values()), "drawn for each row"


def test_equal_answers_have_one_name() -> None:
    questions = tuple(Question(prompt="what?", output=output) for output in ("rain", "wind", "rain"))
    row = Row(id="a", clips=(Clip(path="a.wav", duration=1.0),) * 3, questions=questions, template="interleaved")
    first, second, third = (q.output for q in renamed(row, ["alpha", "bravo", "alpha"], random.Random(0)).questions)
    assert first == third and {first, second} == {"alpha", "bravo"}
