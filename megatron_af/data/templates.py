"""From questions and answers to token ids, and from token ids to labels.

    text = render(row, tokenizer, max_tokens=512)       # text.segments: one list of ids per packed segment
    text = render(row, tokenizer, max_tokens=512, prompt=True)      # up to where its last question is answered
    labels_BS = answer_labels(ids_BS, segment_BS, tokenizer)

Text that does not fit is never cut: the oldest examples or turns are left out, and what is too long even alone is
refused. Training, evaluation and serving all come through :func:`render`.

Audio Flamingo 2 (data/data.py), one question, prompt and output lower-cased and stripped::

    <audio>{prompt}<SEP>{output}<|endofchunk|>{eos}

Audio Flamingo 1 (foundation/data/data.py, chat/data/data.py): two begin-of-sequence tokens, one written and one
added by OPT's tokenizer; perhaps a prefix; a suffix behind every prompt but a dialogue's::

    {bos}{bos}The task is {task}. <audio>{prompt}\\nAnswer:<SEP>{output}<|endofchunk|>{eos}
    {bos}{bos}Here are similar examples. The task is …. (<audio>{prompt}\\nAnswer:<SEP>{output}<|endofchunk|>)*{eos}
    {bos}{bos}Here are random examples. …
    {bos}{bos}The task is dialog. <audio>(user: {user} \\nassistant: <SEP>{answer}<|endofchunk|>{eos}\\n)*

Interleaved rows and dialogues of the AF2 style are AF1's without begin-of-sequence tokens and suffix: AF2's release
has neither. B rows, S positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from megatron_af.data.batch import IGNORED
from megatron_af.data.rows import Question, Row, RowError

if TYPE_CHECKING:
    from megatron_af.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class TextStyle:
    """What the two papers' templates differ in."""

    begin_tokens: int
    """Begin-of-sequence tokens, where the tokenizer has one."""
    suffix: str
    """Behind every prompt of single and interleaved rows."""


STYLES = {
    "af1": TextStyle(begin_tokens=2, suffix="\nAnswer:"),
    "af2": TextStyle(begin_tokens=0, suffix=""),
}

FIXED_TEXTS = ("Here are similar examples. Here are random examples. The task is dialog.", "user: assistant: Answer:")
"""What the templates write around questions and answers, for tokenizers that are made to fit."""

CLASS_PHRASES = ("{}", "the sound of {}", "this is a sound of {}")
"""A class as it is said of a recording: what rows of labels bring as captions, and what zero-shot classification asks
with (LAION-CLAP uses the last)."""


WORDS = "Here are similar random examples. The task is dialog. user: assistant: Answer:"
"""All that the templates write themselves, for vocabularies of whole words."""


class TooLong(RowError):
    """A question that does not fit even alone."""

    def __init__(self, row: Row, tokens: int, max_tokens: int, questions: int, *, prompt: bool) -> None:
        what = "question" if prompt else "question and answer"
        super().__init__(
            f"row {row.id}: its {what} take{'s' * prompt} {tokens} tokens, the stage's max_text_tokens is {max_tokens}"
        )
        self.tokens = tokens
        """What it would take, with its audio marks and nothing before it."""
        self.max_tokens = max_tokens
        self.questions = questions
        """How many questions are lost with the row."""


class UnknownWords(RowError):
    """An answer that the tokenizer cannot write: training would teach its token for anything unknown instead."""

    def __init__(self, row: Row, words: Sequence[str]) -> None:
        self.words = tuple(dict.fromkeys(words))
        named = ", ".join(f"'{word}'" for word in self.words)
        super().__init__(
            f"row {row.id}: the tokenizer has no {named}, which the answer needs; add words to it "
            "(tools/make_tokenizer.py) or name one that has them (data.tokenizer)"
        )


@dataclass(frozen=True, kw_only=True)
class RowText:
    """A row as token ids."""

    row: Row
    """What of it fits: the questions that are in the text, and the clips that they are about."""
    segments: tuple[list[int], ...]
    """One for each question, or a single one for interleaved rows and dialogues."""
    shortened: int = 0
    """Oldest examples or turns that were left out."""
    too_long: int = 0
    """Questions of their own (``single``) that were left out."""


type _Piece = str | int
"""Text of a template, or a special token."""


def render(
    row: Row,
    tokenizer: Tokenizer,
    max_tokens: int,
    *,
    style: TextStyle = STYLES["af2"],
    task_prefix: bool = False,
    prompt: bool = False,
) -> RowText:
    """The row's questions and answers; of an over-long row, the newest that fit into ``max_tokens``.

    An interleaved row loses its oldest examples, with their clips, and a dialogue its oldest turns. Questions that
    stand alone fit or are left out.

    Args:
        max_tokens: of each segment.
        task_prefix: begin with ``The task is {row.task}.`` (AF1; a dialogue always names its task).
        prompt: only the row's last question, with the examples or turns before it, up to and with ``<SEP>``: where
            generation begins.

    Raises:
        TooLong: no question of the row fits.
        UnknownWords: an answer to learn is not in the vocabulary.
    """
    answers = () if prompt else [question.output for question in row.questions]
    written = answers if row.template == "dialogue" else map(plain, answers)
    if unknown := [word for answer in written for word in tokenizer.unknown_words(answer)]:
        raise UnknownWords(row, unknown)
    pieces_of = {"single": _single, "dialogue": _dialogue}.get(row.template, _interleaved)

    def ids_of(part: Row) -> list[int]:
        ids = _encode(pieces_of(part, tokenizer, style, task_prefix), tokenizer)
        if prompt:
            del ids[len(ids) - ids[::-1].index(tokenizer.separator_id) :]
        return ids

    if row.template == "single":
        asked = row.questions[-1:] if prompt else row.questions
        texts = [(question, ids_of(replace(row, questions=(question,)))) for question in asked]
        fitting = [(question, ids) for question, ids in texts if len(ids) <= max_tokens]
        if not fitting:
            raise TooLong(row, min(len(ids) for _, ids in texts), max_tokens, len(texts), prompt=prompt)
        return RowText(
            row=replace(row, questions=tuple(question for question, _ in fitting)),
            segments=tuple(ids for _, ids in fitting),
            too_long=len(texts) - len(fitting),
        )
    for oldest in range(len(row.questions)):
        clips = row.clips[oldest:] if row.template.startswith("interleaved") else row.clips
        part = replace(row, questions=row.questions[oldest:], clips=clips)
        ids = ids_of(part)
        if len(ids) <= max_tokens:
            return RowText(row=part, segments=(ids,), shortened=oldest)
    raise TooLong(row, len(ids), max_tokens, 1, prompt=prompt)


def answer_ids(row: Row, answer: str, tokenizer: Tokenizer) -> list[int]:
    """An answer to the row's last question as :func:`render` writes it, without special tokens.

    Raises:
        UnknownWords: it cannot be written.
    """
    text = answer if row.template == "dialogue" else plain(answer)
    if unknown := tokenizer.unknown_words(text):
        raise UnknownWords(row, unknown)
    return tokenizer.encode(text)


def plain(text: str) -> str:
    """Text as single and interleaved templates write it."""
    return text.lower().strip()


def _single(row: Row, tokenizer: Tokenizer, style: TextStyle, prefix: bool) -> list[_Piece]:
    (question,) = row.questions
    return [
        *_begin(tokenizer, style),
        _task(row) if prefix else "",
        *[tokenizer.audio_id] * len(row.clips),
        *_pair(question, tokenizer, style),
        tokenizer.eos_id,
    ]


def _interleaved(row: Row, tokenizer: Tokenizer, style: TextStyle, prefix: bool) -> list[_Piece]:
    how = "random" if row.template == "interleaved_random" else "similar"
    pieces: list[_Piece] = [*_begin(tokenizer, style), f"Here are {how} examples. ", _task(row) if prefix else ""]
    for question in row.questions:
        pieces += [tokenizer.audio_id, *_pair(question, tokenizer, style)]
    return [*pieces, tokenizer.eos_id]


def _dialogue(row: Row, tokenizer: Tokenizer, style: TextStyle, prefix: bool) -> list[_Piece]:
    pieces = [*_begin(tokenizer, style), "The task is dialog. ", *[tokenizer.audio_id] * len(row.clips)]
    for turn in row.questions:
        pieces += [f"user: {turn.prompt} \nassistant: ", tokenizer.separator_id]
        pieces += [turn.output, tokenizer.end_of_chunk_id, tokenizer.eos_id, "\n"]
    return pieces


def _begin(tokenizer: Tokenizer, style: TextStyle) -> list[_Piece]:
    return [] if tokenizer.bos_id is None else [tokenizer.bos_id] * style.begin_tokens


def _task(row: Row) -> str:
    return f"The task is {row.task}. " if row.task else ""


def _pair(question: Question, tokenizer: Tokenizer, style: TextStyle) -> list[_Piece]:
    prompt, output = plain(question.prompt) + style.suffix, plain(question.output)
    return [prompt, tokenizer.separator_id, output, tokenizer.end_of_chunk_id]


def _encode(pieces: Sequence[_Piece], tokenizer: Tokenizer) -> list[int]:
    """Token ids; neighbouring texts are tokenized as one, the string that the papers write."""
    ids: list[int] = []
    for is_text, run in groupby(pieces, key=lambda piece: isinstance(piece, str)):
        together = list(run)
        ids += tokenizer.encode("".join(map(str, together))) if is_text else map(int, together)
    return ids


def answer_labels(ids_BS: np.ndarray, segment_BS: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """Labels by position: the next token where it is part of an answer, else ``IGNORED``; int64 [B, S].

    Supervised are the tokens after ``<SEP>`` up to and with ``<|endofchunk|>``, and the end of sequence that
    follows one (AF2 and AF1 train/train_utils.py), in every answer of a segment. No label crosses from one segment
    into the next.
    """
    separator = ids_BS == tokenizer.separator_id
    end = ids_BS == tokenizer.end_of_chunk_id
    open_answers = np.cumsum(separator, axis=1) - (np.cumsum(end, axis=1) - end)
    supervised = (open_answers > 0) & ~separator
    supervised[:, 1:] |= end[:, :-1] & (ids_BS[:, 1:] == tokenizer.eos_id)
    labels = np.full_like(ids_BS, IGNORED)
    inside = supervised[:, 1:] & (segment_BS[:, 1:] == segment_BS[:, :-1]) & (segment_BS[:, 1:] >= 0)
    labels[:, :-1][inside] = ids_BS[:, 1:][inside]
    return labels
