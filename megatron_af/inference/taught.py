"""Examples that were read once and stand before every question from then on.

    taught = Taught(listener)
    taught.add(examples, root)                              # a row of answered questions, each about its own clip
    answer = taught.answer(question, Decoding(), root)      # as if it stood behind all examples

Keys and values of the examples' text and audio are kept, so that a question costs what it costs alone, and looking at
them besides. The text of examples is the beginning of that of more examples, so classes are added one after another.
"""

from dataclasses import replace
from pathlib import Path

from megatron_af.data.rows import Clip, Question, Row
from megatron_af.data.templates import TooLong
from megatron_af.inference.answers import write
from megatron_af.inference.decoding import Decoding
from megatron_af.inference.listener import Listener
from megatron_af.inference.reading import Reading
from megatron_af.inference.writing import Answer, Tell

ASKED = Question(prompt="?", output="")
NOWHERE = Clip(path="-", duration=1.0)
"""Stand for a question that is not known yet, and what it is about."""


class Taught:
    """Of one model in this process; a model-parallel group's ranks make the same calls."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._examples = Row(id="taught", template="interleaved")
        self._ids: list[int] = []
        self._reading: Reading | None = None

    def __len__(self) -> int:
        """Examples."""
        return len(self._examples.questions)

    def add(self, examples: Row, root: Path) -> None:
        """
        Args:
            root: where their clips lie; not needed any more afterwards.

        Raises:
            TooLong: all examples together leave no room for a question.
            AudioError: a clip cannot be decoded. What was taught before stays either way.
        """
        more = replace(
            self._examples,
            clips=(*self._examples.clips, *examples.clips),
            questions=(*self._examples.questions, *examples.questions),
        )
        ids = self._before(more)
        keys = self._listener.keys(examples, root, first=len(self))
        if self._reading is None:
            self._reading = self._listener.reading_of(keys)
        else:
            self._reading.hear(keys)
        self._reading.read([ids[len(self._ids) :]])
        self._examples, self._ids = more, ids

    def answer(self, asked: Row, decoding: Decoding, root: Path, tell: Tell | None = None) -> Answer:
        """The answer to a row's only question, about its only clip.

        Raises:
            TooLong: the question does not fit behind the examples.
        """
        assert self._reading is not None, "something was taught"
        prompt = self._prompt(self._examples, asked.questions[-1], asked.clips[0])
        reading = self._reading.copy()
        reading.hear(self._listener.keys(asked, root, first=len(self)))
        decoding = self._listener.settled(decoding, asked, root)
        (answer,) = write(reading, [prompt], [decoding], self._listener.tokenizer, tell=[tell])
        return answer

    def _before(self, examples: Row) -> list[int]:
        """The text up to the mark of what is asked about."""
        ids = self._prompt(examples, ASKED, NOWHERE)
        return ids[: len(ids) - 1 - ids[::-1].index(self._listener.tokenizer.audio_id)]

    def _prompt(self, examples: Row, question: Question, clip: Clip) -> list[int]:
        row = replace(examples, clips=(*examples.clips, clip), questions=(*examples.questions, question))
        text = self._listener.prompt(row)
        if text.shortened:
            tokens, most = len(text.segments[-1]), self._listener.stage.max_text_tokens
            raise TooLong(row, tokens, most, 1, prompt=True)
        return text.segments[-1]
