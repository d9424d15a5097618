"""Pieces come as they are told; who stops to listen ends the answer; what is raised is raised to the listener."""

import threading

import pytest

from megatron_af.inference.writing import Answer, Piece, Tell
from megatron_af.serve.pieces import pieces_of


def test_pieces_come_in_order_and_before_the_end() -> None:
    heard = threading.Event()

    def write(tell: Tell) -> None:
        assert tell(Piece(text="a"))
        assert heard.wait(10), "the first piece is heard while the answer is written"
        tell(Piece(text="b"))
        tell(Answer(text="ab", tokens=(1, 2), finish="stop", prompt_tokens=1))

    pieces = pieces_of(write)
    assert next(pieces) == "a"
    heard.set()
    assert list(pieces) == ["b"]


def test_who_stops_to_listen_ends_the_answer() -> None:
    going, ended = threading.Event(), threading.Event()

    def write(tell: Tell) -> None:
        assert tell(Piece(text="a"))
        assert going.wait(10)
        assert not tell(Piece(text="b"))
        ended.set()

    pieces = pieces_of(write)
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    going.set()
    assert ended.wait(10)


def test_what_is_raised_reaches_the_listener() -> None:
    def write(tell: Tell) -> None:
        tell(Piece(text="a"))
        raise KeyError("lost")

    pieces = pieces_of(write)
    assert next(pieces) == "a"
    with pytest.raises(KeyError, match="lost"):
        next(pieces)
