"""From questions and answers to token ids, and from token ids to labels.

    segments = render(row, row.questions, tokenizer, max_tokens=512)    # one list of ids per packed segment
    labels_BS = answer_labels(ids_BS, segment_BS, tokenizer)

Audio Flamingo 2, one question (data/data.py, ``preprocess_string_for_eval`` and ``process``)::

    <audio>{prompt}<SEP>{output}<|endofchunk|>{eos}

with prompt and output lower-cased and stripped. B rows, S positions.
"""

from collections.abc import Sequence

import numpy as np

from megatron_af.data.batch import IGNORED
from megatron_af.data.rows import Question, Row, RowError
from megatron_af.text.tokenizer import Tokenizer


def render(row: Row, questions: Sequence[Question], tokenizer: Tokenizer, max_tokens: int) -> list[list[int]]:
    """The row's segments as token ids; a segment holds one ``<audio>`` for every clip that it shows.

    Over-long segments lose the end of a prompt, never a part of an answer.

    Raises:
        RowError: the answers alone do not fit into ``max_tokens``.
    """
    return [_single(row, question, tokenizer, max_tokens) for question in questions]


def render_prompt(row: Row, question: Question, tokenizer: Tokenizer, max_tokens: int) -> list[int]:
    """What stands before the answer of ``question``, up to and with ``<SEP>``: where generation begins."""
    room = max_tokens - len(row.clips) - 1
    return (
        [tokenizer.audio_id] * len(row.clips)
        + tokenizer.encode(plain(question.prompt))[:room]
        + [tokenizer.separator_id]
    )


def plain(text: str) -> str:
    """Text as the single template writes it."""
    return text.lower().strip()


def _single(row: Row, question: Question, tokenizer: Tokenizer, max_tokens: int) -> list[int]:
    answer = [
        tokenizer.separator_id,
        *tokenizer.encode(plain(question.output)),
        tokenizer.end_of_chunk_id,
        tokenizer.eos_id,
    ]
    room = max_tokens - len(row.clips) - len(answer)
    if room < 0:
        raise RowError(
            f"row {row.id}: its answer and {len(row.clips)} clips take {max_tokens - room} tokens, "
            f"stage.max_text_tokens is {max_tokens}"
        )
    return [tokenizer.audio_id] * len(row.clips) + tokenizer.encode(plain(question.prompt))[:room] + answer


def answer_labels(ids_BS: np.ndarray, segment_BS: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """Labels by position: the next token where it is part of an answer, else ``IGNORED``; int64 [B, S].

    Supervised are the tokens after ``<SEP>`` up to and with ``<|endofchunk|>``, and the end of sequence that
    follows one (AF2 train/train_utils.py, A.4 of AF1). No label crosses from one segment into the next.
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
