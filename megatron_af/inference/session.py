"""A conversation about one recording, which is heard once and whose text is read once.

    with Session(listener) as session:
        session.load("dog.wav")
        session.ask("what is it?", tell=print).text
        session.ask("is it loud?").text
        session.retry(Decoding(temperature=0.8, seed=1)).text
        session.look()                              # where the last answer looked

An answer is the one that the whole conversation gets anew (``Listener.answers``): what was read is kept as far as the
new text begins with the same tokens. Where the oldest turns do not fit any more, they are left out, and ``left_out``
says how many.
"""

from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from megatron_af.data.rows import Question, Row
from megatron_af.inference.answers import write
from megatron_af.inference.decoding import Decoding
from megatron_af.inference.listener import Listener
from megatron_af.inference.looks import Look
from megatron_af.inference.reading import Reading
from megatron_af.inference.requests import BadRequest, Opens, RequestRows, check_unicode, own_files
from megatron_af.inference.writing import Answer, Tell


class Session:
    """
    Args:
        opens: which files :meth:`load` may open.
    """

    def __init__(self, listener: Listener, opens: Opens = own_files) -> None:
        self._listener, self._files = listener, RequestRows(opens)
        self._heard = Row(id="conversation")
        self._turns: tuple[Question, ...] = ()
        self._reading: Reading | None = None
        self._ids: list[int] = []
        """Tokens that were read."""
        self.left_out = 0
        """Oldest turns that the last question had no room for."""
        self.read_anew = 0
        """Tokens of the last prompt that were not read before."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()

    @property
    def turns(self) -> tuple[tuple[str, str], ...]:
        """Questions and their answers."""
        return tuple((turn.prompt, turn.output) for turn in self._turns)

    @property
    def seconds(self) -> float:
        """Of the recording."""
        return sum(clip.duration for clip in self._heard.clips)

    def load(self, audio: Any) -> None:
        """From now on talk about this recording, in a new conversation. Raises ``BadRequest``, and nothing changes."""
        heard = self._files.recording(audio, "recording")
        self._files.forget(self._heard)
        self._heard = replace(heard, id="conversation")
        self.reset()
        self._reading = None

    def reset(self) -> None:
        """Forget what was said; the recording stays."""
        self._turns = ()

    def ask(self, prompt: str, decoding: Decoding = Decoding(), tell: Tell | None = None) -> Answer:  # noqa: B008
        """The answer to the next question.

        Raises:
            BadRequest: there is nothing to answer; ``TooLong``: the question does not fit. Nothing changes.
            AudioError: the recording cannot be decoded.
        """
        if not prompt.strip():
            raise BadRequest("expected a question, got nothing")
        check_unicode(prompt)
        asked = Question(prompt=prompt, output="")
        row = self._row((*self._turns, asked))
        answer = self._answer(row, decoding, tell)
        self._turns = (*self._turns[self.left_out :], replace(asked, output=answer.said))
        return answer

    def retry(self, decoding: Decoding, tell: Tell | None = None) -> Answer:
        """Another answer to the last question. Raises ``BadRequest`` where there was none."""
        if not self._turns:
            raise BadRequest("nothing was asked yet")
        asked = replace(self._turns[-1], output="")
        answer = self._answer(self._row((*self._turns[:-1], asked)), decoding, tell)
        self._turns = (*self._turns[self.left_out : -1], replace(asked, output=answer.said))
        return answer

    def look(self) -> Look:
        """Where the last answer looked. Raises ``BadRequest`` where there is none, or no recording."""
        if not self._turns or not self._heard.clips:
            raise BadRequest("expected an answer about a recording; load one and ask about it")
        looks = self._listener.looks_of([self._row(self._turns)], root=self._files.root)
        if not looks:
            raise BadRequest("the answer cannot be read back: its tokens are those of no text")
        return looks[0]

    def _row(self, questions: tuple[Question, ...]) -> Row:
        return replace(self._heard, questions=questions, template="dialogue" if len(questions) > 1 else "single")

    def _answer(self, row: Row, decoding: Decoding, tell: Tell | None) -> Answer:
        listener, text = self._listener, self._listener.prompt(row)
        (ids,) = text.segments[-1:]
        if self._reading is None:
            self._reading, self._ids = listener.reading([text], self._files.root), []
        known = 0
        while known < min(len(ids) - 1, len(self._ids)) and ids[known] == self._ids[known]:
            known += 1
        self._reading.back_to(ids[:known])
        self._ids = ids[:known]  # should somebody end the answer, no more than this counts as read
        self.left_out, self.read_anew = text.shortened, len(ids) - known
        decoding = listener.settled(decoding, row, self._files.root)
        (answer,) = write(self._reading, [ids], [decoding], listener.tokenizer, tell=[tell])
        (length,) = self._reading.lengths
        self._ids = [*ids, *answer.tokens][:length]
        return answer
