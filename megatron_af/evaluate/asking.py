"""The questions of a benchmark asked in each wording, shared among ranks, and kept as they are answered.

    answered = ask(listener, suite, questions, asking, Kept(path, state))       # a collective
"""

import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import batched
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_af.config import Config
from megatron_af.data.rows import Row, to_json
from megatron_af.evaluate.answered import Answered
from megatron_af.evaluate.benchmarks import Asked
from megatron_af.files import append, write
from megatron_af.foreign import read_bytes
from megatron_af.inference.listener import Listener
from megatron_af.parallel.collectives import from_first
from megatron_af.runs.benchmarks import Benchmark
from megatron_af.runs.code import code_version, source_revision
from megatron_af.runs.digests import digest_value
from megatron_af.runs.pointers import checkpoint_digest

TOGETHER = 512
"""Questions between two times that answers are put down."""

type Way = Callable[[Listener], tuple[Sequence[Row], Path | None]]
"""The rows that ask the questions, and where their recordings lie; a collective of the listener's ranks."""
type Done = dict[tuple[int, int], tuple[str | None, list[float] | None]]
"""Wording or probe, and question -> the answer, and the log-probabilities of the options."""


class Kept:
    """Answers on the disk: a measurement that was stopped goes on, and another metric needs no model to answer.

    Args:
        state: what they follow from (:func:`state_of`); those that follow from something else do not count.
    """

    def __init__(self, path: Path, state: str) -> None:
        self.path, self._state = path, state

    def read(self) -> Done:
        done: Done = {}
        if not self.path.is_file():
            return done
        whole = read_bytes(self.path)
        end = whole.rfind(b"\n") + 1
        os.truncate(self.path, end)  # a line under way when the measurement was stopped
        for line in whole[:end].split(b"\n"):
            with suppress(ValueError, KeyError, TypeError, RecursionError):  # damaged: asked again
                entry = json.loads(line)
                asked, answer, logprobs = (entry["wording"], entry["question"]), entry["answer"], entry["logprobs"]
                if entry["state"] == self._state and _is_whole(asked, answer, logprobs):
                    done[asked] = answer, logprobs
        return done

    def add(self, new: Done) -> None:
        append(self.path, self._lines(new))

    def settle(self, *, waits: bool) -> None:
        """What followed from something else goes. So does all, unless a metric waits for it, that code answered which
        differs from its commit: nothing tells it from the next change."""
        if source_revision()[1] == "yes" and not waits:
            self.path.unlink(missing_ok=True)
        else:
            write(self.path, self._lines(self.read()))

    def _lines(self, some: Done) -> str:
        lines = [
            {"state": self._state, "wording": wording, "question": question, "answer": answer, "logprobs": logprobs}
            for (wording, question), (answer, logprobs) in some.items()
        ]
        return "".join(json.dumps(line) + "\n" for line in lines)


def _is_whole(asked: tuple[Any, Any], answer: Any, logprobs: Any) -> bool:
    """Whether these are two numbers, an answer and the log-probabilities of options, as `Kept.add` puts them down."""
    if any(type(number) is not int for number in asked):  # a float may be infinite, and 9.5 is no question
        return False
    scored = logprobs is None or (isinstance(logprobs, list) and all(isinstance(one, float) for one in logprobs))
    return scored and (answer is None or isinstance(answer, str))


def state_of(
    config: Config,
    suite: Benchmark,
    checkpoint: Path,
    worded: Sequence[Sequence[Row]],
    recordings: str,
) -> str:
    """What answers follow from, as a digest.

    Args:
        worded: the questions' rows in each wording, behind their examples.
        recordings: digest of what is heard.
    """
    asking = [list(suite.probes), "likelihood" in suite.metrics, config.evaluation.max_answer_tokens]
    asked = [[to_json(row) for row in rows] for rows in worded]
    return digest_value([code_version(), checkpoint_digest(checkpoint), asking, asked, recordings])


def ask(
    listener: Listener,
    suite: Benchmark,
    questions: Sequence[Asked],
    asking: Sequence[Way],
    kept: Kept,
) -> list[Answered]:
    """A collective of the listener's ranks.

    Args:
        asking: for each wording and then each probe.
    """
    done = from_first(kept.read)
    for place, way in enumerate(asking):
        waiting = [i for i in range(len(questions)) if (place, i) not in done]
        if not waiting:
            continue
        rows, root = way(listener)
        for some in batched(waiting, TOGETHER):
            answers = listener([rows[i] for i in some], root=root)
            scored: Sequence[list[float] | None] = [None] * len(some)
            if place == 0 and "likelihood" in suite.metrics:
                scored = listener.likelihoods([rows[i] for i in some], [questions[i].question.options for i in some])
            new = {(place, i): (a, s) for i, a, s in zip(some, answers, scored, strict=True)}
            done |= new
            if dist.get_rank() == 0:
                kept.add(new)
    return [_answered(asked, number, suite, done) for number, asked in enumerate(questions)]


def _answered(asked: Asked, number: int, suite: Benchmark, done: Done) -> Answered:
    clip, wordings = asked.row.own_clips[-1], len(suite.wordings)
    return Answered(
        id=asked.id,
        group=asked.group,
        skill=asked.question.skill,
        prompt=asked.worded(suite.wordings[0]).questions[-1].prompt,
        references=asked.references,
        options=asked.question.options,
        labels=asked.labels,
        audio=clip.path,
        start=clip.start,
        duration=clip.duration,
        offset=clip.offset,
        length=clip.length,
        digest=clip.digest,
        answers=tuple(done[place, number][0] for place in range(wordings)),
        probed=tuple(done[wordings + place, number][0] for place in range(len(suite.probes))),
        logprobs=tuple(done[0, number][1] or ()),
    )
