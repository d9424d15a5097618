"""Who asks while others are answered joins them, and everybody gets their own answer or error."""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from megatron_af.data.rows import Question, Row
from megatron_af.inference.decoding import Decoding
from megatron_af.inference.writing import Answer, Piece, Tell
from megatron_af.serve.engine import Engine, Left


def row(text: str) -> Row:
    return Row(id=text, questions=(Question(prompt=text, output=""),))


def several(count: int = 1, new: int = 64) -> list[Decoding]:
    return [Decoding(max_new_tokens=new, seed=seed) for seed in range(count)]


class Speller:
    """Says a prompt letter by letter, when it is let; ``bad`` cannot join, ``!`` breaks a step."""

    def __init__(self) -> None:
        self.joined: list[list[str]] = []
        self.steps: list[str] = []
        self.go = threading.Semaphore(0)
        self.begun = threading.Semaphore(0)
        self._rows: list[tuple[str, int, Tell]] = []

    def join(self, rows: Sequence[Row], decodings: Sequence[Decoding], root: Path, tell: Sequence[Tell]) -> None:
        texts = [row.id for row in rows]
        self.joined.append(texts)
        self.begun.release()
        if "bad" in texts:
            raise ValueError("bad")
        self._rows += [(text, 0, told) for text, told in zip(texts, tell, strict=True)]

    def step(self) -> int:
        assert self.go.acquire(timeout=60)
        self.steps.append("".join(text[at] for text, at, _ in self._rows))
        if "!" in self.steps[-1]:
            raise RuntimeError("broken")
        going = []
        for text, at, tell in self._rows:
            wanted = tell(Piece(text=text[at]))
            if at + 1 < len(text) and wanted:
                going.append((text, at + 1, tell))
            else:
                tell(Answer(text=text[: at + 1], tokens=(), finish="stop" if wanted else "gone", prompt_tokens=0))
        self._rows = going
        return len(going)

    def abandon(self) -> None:
        self._rows = []


class Told:
    """What everybody was told, by prompt and choice."""

    def __init__(self) -> None:
        self.ends: dict[tuple[str, int], Any] = {}
        self.pieces: dict[tuple[str, int], str] = {}
        self._come = threading.Semaphore(0)

    def of(self, text: str) -> Any:
        def tell(choice: int, event: Piece | Answer | Exception) -> None:
            if isinstance(event, Piece):
                self.pieces[text, choice] = self.pieces.get((text, choice), "") + event.text
                return
            assert (text, choice) not in self.ends, "told once"
            self.ends[text, choice] = event
            self._come.release()

        return tell

    def wait(self, count: int) -> None:
        for _ in range(count):
            assert self._come.acquire(timeout=60)


@pytest.fixture
def speller() -> Speller:
    return Speller()


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def engine(speller: Speller) -> Iterator[Engine]:
    engine = Engine(speller, Path(), together=3)
    yield engine
    speller.go.release(100)
    engine.close()


def test_who_comes_later_joins_at_the_next_token(speller: Speller, engine: Engine, told: Told) -> None:
    engine.submit(row("abcd"), several(), told.of("abcd"))
    speller.begun.acquire()
    engine.submit(row("xy"), several(2), told.of("xy"))
    engine.submit(row("late"), several(), told.of("late"))
    assert engine.waiting == 2
    speller.go.release(100)
    told.wait(4)
    assert speller.joined == [["abcd"], ["xy", "xy"], ["late"]], "three at a time"
    assert speller.steps == ["a", "bxx", "cyy", "dl", "a", "t", "e"]
    assert {key: answer.text for key, answer in told.ends.items()} == told.pieces
    assert set(told.ends) == {("abcd", 0), ("xy", 0), ("xy", 1), ("late", 0)}


def test_an_error_is_told_to_who_made_it(speller: Speller, engine: Engine, told: Told) -> None:
    engine.submit(row("a"), several(), told.of("a"))
    speller.begun.acquire()
    for text in ("b", "bad", "c"):
        engine.submit(row(text), several(), told.of(text))
    speller.go.release(100)
    told.wait(4)
    assert str(told.ends["bad", 0]) == "bad"
    assert [told.ends[text, 0].text for text in "abc"] == ["a", "b", "c"]


def test_a_step_that_fails_ends_those_in_it_alone(speller: Speller, engine: Engine, told: Told) -> None:
    engine.submit(row("a!"), several(2), told.of("a!"))
    engine.submit(row("xyz"), several(), told.of("xyz"))
    speller.begun.acquire()
    engine.submit(row("ok"), several(), told.of("ok"))
    speller.go.release(100)
    told.wait(3)
    assert str(told.ends["a!", 0]) == str(told.ends["xyz", 0]) == "broken" and told.ends["ok", 0].text == "ok"
    assert ("a!", 1) not in told.ends, "one error a request"


def test_who_leaves_is_not_worked_for(speller: Speller, engine: Engine, told: Told) -> None:
    first = engine.submit(row("abcd"), several(), told.of("abcd"))
    speller.begun.acquire()
    second = engine.submit(row("xy"), several(), told.of("xy"))
    engine.leave(second)
    assert engine.waiting == 0 and isinstance(told.ends["xy", 0], Left)
    engine.leave(second)  # told once
    engine.leave(first)
    speller.go.release(100)
    told.wait(2)
    assert (told.ends["abcd", 0].finish, told.ends["abcd", 0].text) == ("gone", "a")
    assert speller.joined == [["abcd"]] and speller.steps == ["a"]


def test_closing_ends_what_was_begun_and_leaves_the_rest(speller: Speller, told: Told) -> None:
    engine = Engine(speller, Path(), together=1)
    engine.submit(row("ab"), several(), told.of("ab"))
    speller.begun.acquire()
    engine.submit(row("x"), several(), told.of("x"))
    closing = threading.Thread(target=engine.close)
    closing.start()
    speller.go.release(100)
    closing.join()
    engine.submit(row("y"), several(), told.of("y"))
    assert told.ends["ab", 0].text == "ab"
    assert isinstance(told.ends["x", 0], Left) and isinstance(told.ends["y", 0], Left)
    assert not engine.is_alive
