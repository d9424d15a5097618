"""Interleaved rows: a row behind the rows that sound most like it, which is how a model learns to use examples.

    for row in interleaved_rows(index, rows, examples=7, seed="0/clotho_knn"): …

After AF1 (foundation/data/prepare_each_dataset.py and data/data.py): neighbours are rows of the same training split,
one per recording, never of the row's own; which of a recording's rows is drawn, and so is the order of the examples, so
that the nearest does not always stand in the same place. Options are listed for the row itself alone. Where rows have
several questions, one is drawn, and the examples answer the same skill's where they can. Q queries.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from megatron_af.data.rows import Clip, Question, Row
from megatron_af.retrieval.index import NeighbourIndex

BATCH = 1024
"""Rows whose neighbours are looked for together."""
OPTIONS = "\nOPTIONS:"


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """One row that sounds like what was asked about."""

    row: Row
    question: Question
    similarity: float
    """Cosine of the embeddings."""

    @property
    def clip(self) -> Clip:
        return self.row.clips[0]

    @property
    def prompt(self) -> str:
        """Without the list of options: it is said once, with the question itself (AF1 data/data.py)."""
        return self.question.prompt.partition(OPTIONS)[0]

    @property
    def output(self) -> str:
        return self.question.output


def interleaved_rows(
    index: NeighbourIndex, rows: Sequence[Row], *, examples: int, seed: str, names: Sequence[str] = ()
) -> Iterator[Row]:
    """Every row of the index behind ``examples`` neighbours; rows with fewer are left out.

    The same index, rows, names and seed give the same rows. ``names``: what answers are called (`renamed`).
    """
    catalogue = index.catalogue
    for begin in range(0, len(catalogue.row_N), BATCH):
        piece_Q, query_Q = np.unique(catalogue.piece_N[begin : begin + BATCH], return_inverse=True)
        own = [{recording} for recording in catalogue.recording_P[piece_Q].tolist()]
        found = index.nearest(index.vectors(piece_Q), examples, own=own)
        for number, query in zip(catalogue.row_N[begin : begin + BATCH].tolist(), query_Q.tolist(), strict=True):
            if len(found[query]) == examples:
                row, rng = rows[number], random.Random(f"{seed}/{number}")
                question = rng.choice(row.questions)
                drawn = draw_rows(index, rows, found[query], question.skill, rng)
                rng.shuffle(drawn)
                made = interleave(row, question, drawn)
                yield renamed(made, names, rng) if names else made


def draw_rows(
    index: NeighbourIndex, rows: Sequence[Row], pieces: Sequence[tuple[int, float]], skill: str, rng: random.Random
) -> list[Neighbour]:
    """A row about each piece, and one of its questions: of the given skill where it has one."""
    drawn = []
    for piece, similarity in pieces:
        row = rows[rng.choice(index.rows_of(piece).tolist())]
        fitting = [question for question in row.questions if question.skill == skill] or row.questions
        drawn.append(Neighbour(row=row, question=rng.choice(fitting), similarity=similarity))
    return drawn


def interleave(row: Row, question: Question, neighbours: Sequence[Neighbour]) -> Row:
    """The row, asked one question, behind its examples."""
    answered = [replace(n.question, prompt=n.prompt) for n in neighbours]
    return Row(
        id=row.id,
        clips=(*(n.clip for n in neighbours), row.clips[0]),
        questions=(*answered, question),
        task=row.task,
        template="interleaved",
        meta={"neighbours": [n.row.id for n in neighbours], "similarity": [round(n.similarity, 4) for n in neighbours]},
    )


def renamed(row: Row, names: Sequence[str], rng: random.Random) -> Row:
    """The row with every answer called by a name drawn from ``names``, equal answers by the same one.

    What it sounds like no longer tells what the answer is, the examples do: a model that has learnt its kinds of sound
    by heart must look at them (symbol tuning, arXiv 2305.08298). A row with options is left as it is, for its prompt
    lists them.
    """
    if any(question.options for question in row.questions):
        return row
    answers = dict.fromkeys(question.output for question in row.questions)
    name_of = dict(zip(answers, rng.sample(sorted(set(names)), len(answers)), strict=True))
    return replace(row, questions=tuple(replace(q, output=name_of[q.output]) for q in row.questions))


def behind(row: Row, neighbours: Sequence[Neighbour]) -> Row:
    """The row's last question behind its neighbours, the most similar first: it then stands next to the question."""
    return interleave(row, row.questions[-1], neighbours[::-1])
