"""What is told piece by piece is the answer, and nothing of it is ever taken back."""

import math
from collections.abc import Sequence

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from megatron_af.inference.decoding import Decoding
from megatron_af.inference.writing import Answer, Piece, TokenScore, Writing
from megatron_af.text.tokenizer import Tokenizer


def bytes_tokenizer() -> Tokenizer:
    """A token for each byte: letters of several bytes come in parts."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {letter: index for index, letter in enumerate(alphabet)} | {"<|endoftext|>": len(alphabet)}
    base = tokenizers.Tokenizer(models.BPE(words, []))
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = decoders.ByteLevel()
    return Tokenizer(base)


TOKENIZER = bytes_tokenizer()


def write(text: str, decoding: Decoding, *, ends: bool = True, leaves_at: int = -1) -> tuple[list[str], Answer]:
    """Pieces and the answer, when a model wants to write a text and perhaps to end it."""
    pieces: list[str] = []
    ended: list[Answer] = []

    def tell(event: Piece | Answer) -> bool:
        if isinstance(event, Answer):
            ended.append(event)
        else:
            pieces.append(event.text)
        return len(pieces) != leaves_at

    writing = Writing(TOKENIZER, decoding, [1, 2, 3], tell)
    quiet = Writing(TOKENIZER, decoding, [1, 2, 3], None)
    for token in [*TOKENIZER.encode(text), *[TOKENIZER.end_of_chunk_id] * ends]:
        goes_on = writing.add(token)
        assert leaves_at >= 0 or quiet.add(token) == goes_on
        if not goes_on:
            break
    assert ended == ([writing.answer] if not goes_on else [])
    assert leaves_at >= 0 or quiet.answer == writing.answer, "whether somebody listens or not"
    return pieces, writing.answer


@pytest.mark.parametrize(
    ("text", "stop", "pieces", "finish"),
    [
        ("ab", (), ["a", "b"], "stop"),
        (" a  b ", (), ["a", "  b"], "stop"),
        ("a é€", (), ["a", " é", "€"], "stop"),
        ("ab##c", ("##",), ["a", "b"], "stop"),
        ("a#b", ("##",), ["a", "#b"], "stop"),
        ("a#", ("##",), ["a", "#"], "stop"),
        ("abcabd", ("cd", "abd"), ["ab", "c"], "stop"),
        ("ab xy", (" x",), ["a", "b"], "stop"),
        ("", (), [], "stop"),
        ("##", ("##",), [], "stop"),
    ],
)
def test_pieces(text: str, stop: tuple[str, ...], pieces: Sequence[str], finish: str) -> None:
    told, answer = write(text, Decoding(stop=stop))
    assert told == pieces and answer.text == "".join(pieces)
    assert answer.finish == finish and answer.prompt_tokens == 3


def test_the_longest_answer_is_cut() -> None:
    told, answer = write("abc", Decoding(max_new_tokens=2), ends=False)
    assert (told, answer.text, answer.finish, len(answer.tokens)) == (["a", "b"], "ab", "length", 2)
    told, answer = write("a€", Decoding(max_new_tokens=2), ends=False)
    assert "".join(told) == answer.text == "a\ufffd", "the rest of the letter never came"


def test_who_does_not_want_the_rest_says_so() -> None:
    told, answer = write("abc", Decoding(), leaves_at=2)
    assert (told, answer.text, answer.finish) == (["a", "b"], "ab", "gone")


def test_each_score_is_told_once() -> None:
    scores: list[TokenScore] = []

    def tell(event: Piece | Answer) -> None:
        if isinstance(event, Piece):
            scores.extend(event.scores)

    writing = Writing(TOKENIZER, Decoding(logprobs=0), [], tell)
    for token in TOKENIZER.encode("a€b"):
        writing.add(token, TokenScore(token=token, text="", logprob=-token))
    assert tuple(scores) == writing.answer.scores and len(scores) == 5


@pytest.mark.parametrize(("least", "says"), [(0.49, "ab"), (0.51, "none")])
def test_what_is_not_sure_enough_is_told_to_be_none(least: float, says: str) -> None:
    told: list[str] = []
    decoding = Decoding(unsure="none", least_confidence=least)
    writing = Writing(TOKENIZER, decoding, [], lambda event: told.append(event.text))
    for token, probability in zip([*TOKENIZER.encode("ab"), TOKENIZER.end_of_chunk_id], (0.8, 0.7, 0.9), strict=True):
        writing.add(token, logprob=math.log(probability))
    answer = writing.answer
    assert answer.confidence == pytest.approx(0.8 * 0.7 * 0.9), "of the whole answer, its end included"
    assert (answer.text, answer.withheld) == (says, None if says == "ab" else "ab") and answer.said == "ab"
    assert told == [says, says], "nothing is told before it is known, and then the answer"
    assert [TOKENIZER.decode([token]) for token in answer.tokens] == ["a", "b"]
