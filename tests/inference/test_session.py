"""A conversation that keeps what it read says what the whole conversation, read anew, is answered with."""

from pathlib import Path
from typing import Any

import pytest

from dali_pipes.waves import AudioError
from megatron_af.config import Config
from megatron_af.data.rows import Clip, Question, Row
from megatron_af.data.templates import TooLong
from megatron_af.inference.decoding import Decoding
from megatron_af.inference.listener import Listener
from megatron_af.inference.live import Live
from megatron_af.inference.requests import BadRequest
from megatron_af.inference.session import Session
from megatron_af.inference.writing import Answer, Piece
from tests.data.toy import write_tone
from tests.distributed import run_distributed
from tests.trained_run import trained_run

pytestmark = pytest.mark.slow

FOUR = Decoding(max_new_tokens=4)
SEARCHED = Decoding(max_new_tokens=4, beams=3)
DRAWN = Decoding(max_new_tokens=4, temperature=1.5, seed=5)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = trained_run(tmp_path_factory.mktemp("session"))
    for name, seconds in (("dog", 2.0), ("rain", 12.0)):
        write_tone(Path(config.data.root) / f"{name}.wav", seconds, len(name))
    return config


def interrupted(event: Piece | Answer) -> None:
    if isinstance(event, Answer):
        raise KeyboardInterrupt


def talk(rank: int, world_size: int, config: Config) -> Any:
    listener, root = Listener(config), Path(config.data.root)

    def answer_anew(name: str, turns: list[tuple[str, str]], prompt: str, decoding: Decoding) -> Answer:
        questions = (*(Question(prompt=p, output=a) for p, a in turns), Question(prompt=prompt, output=""))
        clips = (Clip(path=f"{name}.wav", duration={"dog": 2.0, "rain": 12.0}[name]),) if name else ()
        row = Row(id="x", clips=clips, questions=questions, template="dialogue" if turns else "single")
        (answer,) = listener.answers([row], [decoding], root=root)
        assert answer is not None
        return answer

    def anew(name: str, turns: list[tuple[str, str]], prompt: str, decoding: Decoding = FOUR) -> str:
        return answer_anew(name, turns, prompt, decoding).text

    said, costs, loads = [], [], []
    load = listener.reading
    listener.reading = lambda *given: loads.append(1) or load(*given)  # type: ignore[method-assign,func-returns-value]
    with Session(listener) as session:
        said.append((session.ask("w9 w8", FOUR).text, anew("", [], "w9 w8")))
        session.load(root / "dog.wav")
        assert session.turns == () and session.seconds == pytest.approx(2.0)
        loads.clear()
        for prompt in ("w3 w17", "w5", "w3 w17", "w40 w41 w42"):
            turns = list(session.turns)
            said.append((session.ask(prompt, FOUR).text, anew("dog", turns, prompt)))
            costs.append(session.read_anew)
        heard = len(loads) - 4
        turns = list(session.turns[:-1])
        said.append((session.retry(DRAWN).text, anew("dog", turns, "w40 w41 w42", DRAWN)))
        assert session.read_anew == 1 and len(session.turns) == 4, "in the place of the answer before"
        look = session.look()
        assert look.prompt == "w40 w41 w42" and look.seconds == 10
        assert [*look.tokens] == [*session.turns[-1][1].split(), "<|endofchunk|>"]
        for refuse in (lambda: session.ask(" "), lambda: session.ask("w1 " * 600), lambda: session.load("gone.wav")):
            with pytest.raises((BadRequest, TooLong)):
                refuse()
        assert len(session.turns) == 4, "nothing changed"
        # So long that the oldest turns do not fit beside it.
        long = "w7 " * 470
        turns = list(session.turns)
        said.append((session.ask(long, FOUR).text, anew("dog", turns, long)))
        assert 0 < session.left_out < 4 and len(session.turns) == 5 - session.left_out
        session.reset()
        said.append((session.ask("w5", FOUR).text, anew("dog", [], "w5")))
        # A search reads branches of its own; what was said goes on behind the one it chose.
        for prompt, decoding in (("w3", SEARCHED), ("w21 w22", FOUR), ("w3", SEARCHED)):
            turns = list(session.turns)
            said.append((session.ask(prompt, decoding).text, anew("dog", turns, prompt, decoding)))
        # Whoever is told an answer may end it by an error of its own, Ctrl-C in a notebook.
        session.ask("w21 w22", FOUR)
        with pytest.raises(KeyboardInterrupt):
            session.retry(DRAWN, interrupted)
        turns = list(session.turns)
        fresh = answer_anew("dog", turns, "w3", FOUR)
        assert session.ask("w3", FOUR).confidence == pytest.approx(fresh.confidence, rel=1e-4)
        turns = list(session.turns[:-1])
        said.append((session.retry(SEARCHED).text, anew("dog", turns, "w3", SEARCHED)))
        session.load((root / "rain.wav").read_bytes())
        said.append((session.ask("w5", FOUR).text, anew("rain", [], "w5")))
        with pytest.raises(BadRequest, match="expected a recording"):
            session.load(b"RIFF")
        said.append((session.ask("w6", FOUR).text, anew("rain", list(session.turns[:1]), "w6")))
    with Session(listener) as session, pytest.raises(BadRequest, match="nothing was asked yet"):
        session.retry(DRAWN)
    assert AudioError
    return said, costs, heard


def test_what_is_kept_of_a_conversation_changes_no_answer(config: Config) -> None:
    ((said, costs, heard),) = run_distributed(talk, 1, config)
    assert [kept for kept, _ in said] == [anew for _, anew in said]
    assert len({kept for kept, _ in said}) > 4
    assert heard == 1, "the recording was heard once in four questions"
    # From the third question on, only the answer before and the new question are read.
    assert costs[2] < 20 and costs[3] < 20, costs


def test_a_question_in_another_encoding_ends_no_conversation() -> None:
    """What a terminal sends that is no UTF-8, as Python hands it on; and the same while a recording goes on."""

    class Heard(Live):
        seconds = 1.0

    talks: list[Session | Live] = [object.__new__(Session), object.__new__(Heard)]
    for talk in talks:
        with pytest.raises(BadRequest, match=r"expected UTF-8, got 'caf\\udce9'"):
            talk.ask("caf\udce9")
