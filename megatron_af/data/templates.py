"""From questions and answers to token ids, and from token ids to labels.

    segments = render(row, row.questions, tokenizer, max_tokens=512)    # one list of ids per packed segment
    labels_BS = answer_labels(ids_BS, segment_BS, tokenizer)

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

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_af.data.batch import IGNORED
from megatron_af.data.rows import Question, Row, RowError
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


@dataclass(frozen=True)
class _Text:
    """Text of a template, not yet tokenized; a prompt may be shortened, all but its ``tail``."""

    text: str
    prompt: bool = False
    tail: str = ""


type _Piece = _Text | int


def render(
    row: Row,
    questions: Sequence[Question],
    tokenizer: Tokenizer,
    max_tokens: int,
    *,
    style: TextStyle = STYLES["af2"],
    task_prefix: bool = False,
) -> list[list[int]]:
    """The row's segments as token ids: one per question, or a single one for interleaved rows and dialogues.

    Over-long segments lose the ends of their longest prompts, never a part of an answer; a dialogue loses its last
    turns.

    Args:
        task_prefix: begin with ``The task is {row.task}.`` (AF1; a dialogue always names its task).

    Raises:
        RowError: the answers alone do not fit into ``max_tokens``.
    """
    if row.template == "single":
        parts = [_single(row, question, tokenizer, style, task_prefix) for question in questions]
    elif row.template.startswith("interleaved"):
        parts = [_interleaved(row, questions, tokenizer, style, task_prefix)]
    else:
        parts = [_dialogue(row, questions, tokenizer, style)]
        for turns in range(len(questions) - 1, 0, -1):
            if _num_tokens(_spans(parts[0], tokenizer)) <= max_tokens:
                break
            parts = [_dialogue(row, questions[:turns], tokenizer, style)]
    return [_encode(row, pieces, tokenizer, max_tokens) for pieces in parts]


def render_prompt(
    row: Row,
    question: Question,
    tokenizer: Tokenizer,
    max_tokens: int,
    *,
    style: TextStyle = STYLES["af2"],
    task_prefix: bool = False,
) -> list[int]:
    """What stands before the answer to ``question``, up to and with ``<SEP>``: where generation begins.

    An interleaved row's earlier pairs, and a dialogue's earlier turns, are part of it.
    """
    if row.template == "single":
        pieces = _single(row, question, tokenizer, style, task_prefix)
    else:
        until = row.questions[: row.questions.index(question) + 1]
        if row.template.startswith("interleaved"):
            pieces = _interleaved(row, until, tokenizer, style, task_prefix)
        else:
            pieces = _dialogue(row, until, tokenizer, style)
    last = max(i for i, piece in enumerate(pieces) if piece == tokenizer.separator_id)
    return _encode(row, pieces[: last + 1], tokenizer, max_tokens)


def plain(text: str) -> str:
    """Text as single and interleaved templates write it."""
    return text.lower().strip()


def _single(row: Row, question: Question, tokenizer: Tokenizer, style: TextStyle, prefix: bool) -> list[_Piece]:
    return [
        *_begin(tokenizer, style),
        _Text(_task(row) if prefix else ""),
        *[tokenizer.audio_id] * len(row.clips),
        *_pair(question, tokenizer, style),
        tokenizer.eos_id,
    ]


def _interleaved(
    row: Row, questions: Sequence[Question], tokenizer: Tokenizer, style: TextStyle, prefix: bool
) -> list[_Piece]:
    how = "random" if row.template == "interleaved_random" else "similar"
    pieces: list[_Piece] = [*_begin(tokenizer, style), _Text(f"Here are {how} examples. ")]
    pieces.append(_Text(_task(row) if prefix else ""))
    for question in questions:
        pieces += [tokenizer.audio_id, *_pair(question, tokenizer, style)]
    return [*pieces, tokenizer.eos_id]


def _dialogue(row: Row, turns: Sequence[Question], tokenizer: Tokenizer, style: TextStyle) -> list[_Piece]:
    pieces = [*_begin(tokenizer, style), _Text("The task is dialog. "), *[tokenizer.audio_id] * len(row.clips)]
    for turn in turns:
        pieces += [_Text(f"user: {turn.prompt} \nassistant: ", prompt=True, tail=" \nassistant: ")]
        pieces += [tokenizer.separator_id, _Text(turn.output), tokenizer.end_of_chunk_id, tokenizer.eos_id, _Text("\n")]
    return pieces


def _begin(tokenizer: Tokenizer, style: TextStyle) -> list[_Piece]:
    return [] if tokenizer.bos_id is None else [tokenizer.bos_id] * style.begin_tokens


def _task(row: Row) -> str:
    return f"The task is {row.task}. " if row.task else ""


def _pair(question: Question, tokenizer: Tokenizer, style: TextStyle) -> list[_Piece]:
    return [
        _Text(plain(question.prompt) + style.suffix, prompt=True, tail=style.suffix),
        tokenizer.separator_id,
        _Text(plain(question.output)),
        tokenizer.end_of_chunk_id,
    ]


@dataclass(frozen=True)
class _Span:
    """Tokens of neighbouring pieces; the last ``tail`` of a prompt's tokens always stay."""

    ids: list[int]
    prompt: bool = False
    tail: int = 0


def _spans(pieces: Sequence[_Piece], tokenizer: Tokenizer) -> list[_Span]:
    spans: list[_Span] = []
    waiting: list[_Text] = []
    for piece in [*pieces, None]:
        if isinstance(piece, _Text):  # neighbours are tokenized as one text: the string that the papers write
            waiting.append(piece)
            continue
        if text := "".join(t.text for t in waiting):
            tail = len(tokenizer.encode(waiting[-1].tail)) if waiting[-1].tail else 0
            spans.append(_Span(tokenizer.encode(text), any(t.prompt for t in waiting), tail))
        waiting = []
        if piece is not None:
            spans.append(_Span([piece]))
    return spans


def _num_tokens(spans: Sequence[_Span]) -> int:
    return sum(len(span.ids) for span in spans)


def _encode(row: Row, pieces: Sequence[_Piece], tokenizer: Tokenizer, max_tokens: int) -> list[int]:
    """Tokens of the pieces; prompts are cut to one common length that makes the whole fit."""
    spans = _spans(pieces, tokenizer)
    over = _num_tokens(spans) - max_tokens
    if over <= 0:
        return [token for span in spans for token in span.ids]
    lengths = [max(0, len(span.ids) - span.tail) for span in spans if span.prompt]
    room = sum(lengths) - over
    if room < 0:
        raise RowError(
            f"row {row.id}: its answers and {len(row.clips)} clips take {max_tokens - room} tokens, "
            f"stage.max_text_tokens is {max_tokens}"
        )
    common = max(n for n in range(max(lengths) + 1) if sum(min(n, length) for length in lengths) <= room)
    out: list[int] = []
    for span in spans:
        end = len(span.ids) - span.tail
        out += span.ids[:common] + span.ids[end:] if span.prompt and end > common else span.ids
    return out


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
