"""The loss of a model that knows the answers and how often each is right, and does not hear: what learning begins at.

    callback = Chance(config, tokenizer)         # adds ``chance_loss`` to every record

A loss above it has not even learnt which answers there are; one below it comes from hearing (or from questions that
give themselves away). Where answers hardly ever repeat, as captions do, there is no such line.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from megatron_af.config import Config
from megatron_af.data.rows import Row, RowError
from megatron_af.data.shards import open_rows
from megatron_af.data.storage import DataRoot
from megatron_af.data.templates import plain
from megatron_af.text.tokenizer import Tokenizer
from megatron_af.train.callbacks.base import Callback, Record

if TYPE_CHECKING:
    from megatron_af.train.trainer import Trainer

LOOKED_AT = 2_000
"""Rows of each data set, evenly spaced."""
END_TOKENS = 2
"""Of every answer, the end of the chunk and of the sequence: nothing to guess."""
REPEATED = 2.0
"""How often an answer must stand behind the same question, on average."""


class Chance(Callback):
    """Measured once, on rank 0's view of the data that all ranks share."""

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        self._config, self._tokenizer = config, tokenizer
        self._loss: float | None = None

    def on_start(self, trainer: "Trainer") -> None:
        root, total, tokens = DataRoot(self._config.data.root), 0.0, 0.0
        for name, weight in trainer.stage.blend.items():
            rows = open_rows(root, self._config.data.datasets[name].manifest)
            found = guessing(rows, self._tokenizer)
            if found is None:
                return
            total += weight * len(rows) * found[0]
            tokens += weight * len(rows) * found[1]
        self._loss = total / tokens if tokens else None

    def on_step(self, trainer: "Trainer", record: Record) -> None:
        if self._loss is not None:
            record["chance_loss"] = self._loss


def guessing(rows: Sequence[Row], tokenizer: Tokenizer) -> tuple[float, float] | None:
    """Of a question, on average: nats to guess its answer among those of the same question, and supervised tokens.

    None where answers do not repeat.
    """
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for place in np.linspace(0, len(rows) - 1, min(len(rows), LOOKED_AT)).astype(int).tolist():
        try:
            row = rows[place]
        except RowError:
            continue
        for question in row.questions:
            answers[plain(question.prompt)][plain(question.output)] += 1
    asked, different = sum(map(Counter.total, answers.values())), sum(map(len, answers.values()))
    if asked < REPEATED * different or not asked:
        return None
    nats = sum(-n * math.log(n / said.total()) for said in answers.values() for n in said.values())
    length = {output: len(tokenizer.encode(output)) + END_TOKENS for said in answers.values() for output in said}
    return nats / asked, sum(n * length[output] for said in answers.values() for output, n in said.items()) / asked
