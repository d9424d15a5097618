"""What a line of the terminal does, and what it prints."""

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from megatron_af.data.rows import Row
from megatron_af.data.templates import TooLong
from megatron_af.inference.decoding import Decoding
from megatron_af.inference.looks import Look
from megatron_af.inference.requests import BadRequest
from megatron_af.inference.writing import Answer, Piece
from megatron_af.serve.terminal import HELP, Ear, Terminal, chart

LOOK = Look(
    prompt="what?",
    tokens=("a", " dog"),
    weights_TL=np.array([[0.75, 0.25, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]),
    token_seconds_L=np.array([0.0, 2.5, 5.0, 7.5]),
    seconds=10.0,
)


class Talk:
    """Says what it is asked, in two pieces."""

    seconds, left_out = 3.0, 0

    def __init__(self) -> None:
        self.did: list[Any] = []

    def load(self, audio: str) -> None:
        if audio == "gone.wav":
            raise BadRequest("recording: expected a file, got 'gone.wav'")
        self.did.append(("load", audio))

    def reset(self) -> None:
        self.did.append("reset")

    def ask(self, prompt: str, decoding: Decoding, tell: Any) -> Answer:
        if prompt == "long":
            raise TooLong(Row(id="conversation"), 600, 512, 1, prompt=True)
        self.did.append((prompt, decoding.temperature))
        tell(Piece(text=prompt[:1]))
        tell(Piece(text=prompt[1:]))
        return Answer(text=prompt, tokens=(), finish="length" if "more" in prompt else "stop", prompt_tokens=0)

    def retry(self, decoding: Decoding, tell: Any) -> Answer:
        return self.ask(f"again {decoding.seed}", decoding, tell)

    def look(self) -> Look:
        return LOOK


@pytest.fixture
def talk() -> Talk:
    return Talk()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def terminal(talk: Talk, said: list[str]) -> Terminal:
    return Terminal(talk, said.append, Decoding(seed=10))  # type: ignore[arg-type]


def test_lines(terminal: Terminal, talk: Talk, said: list[str]) -> None:
    assert terminal.line("/load dog.wav\n") and terminal.line("what is it?\n") and terminal.line("\n")
    assert "".join(said) == "[dog.wav: 3.0 s]\nwhat is it?\n"
    said.clear()
    talk.left_out = 2
    terminal.line("more")
    assert "".join(said) == "more …\n[the conversation had become too long: its oldest 2 left out]\n"
    talk.left_out = 0
    terminal.line("/retry"), terminal.line("/retry"), terminal.line("new"), terminal.line("/retry")
    terminal.line("/reset")
    asked = [("what is it?", 0.0), ("more", 0.0), ("again 11", 0.7), ("again 12", 0.7), ("new", 0.0), ("again 11", 0.7)]
    assert talk.did == [("load", "dog.wav"), *asked, "reset"]
    said.clear()
    Terminal(talk, said.append, Decoding(unsure="none")).line("is it?")  # type: ignore[arg-type]
    assert "".join(said) == "is it? [100%]\n"
    said.clear()
    terminal.line("/help"), terminal.line("/sow")
    assert said == [HELP, "[/sow: not a command; /help shows them]\n"]
    assert not terminal.line("/quit")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/load gone.wav", "[recording: expected a file, got 'gone.wav']\n"),
        ("long", "[row conversation: its question takes 600 tokens, the stage's max_text_tokens is 512]\n"),
        ("/show a.jpg", "[/show: expected the name of a PNG file, got a.jpg]\n"),
    ],
)
def test_what_does_not_work_is_said_and_the_conversation_goes_on(
    terminal: Terminal, said: list[str], line: str, says: str
) -> None:
    assert terminal.line(line)
    assert said == [says]


def test_where_an_answer_looked(terminal: Terminal, said: list[str], tmp_path: Any) -> None:
    terminal.line("/show")
    first, second, ruler, end = said[0].split("\n")
    assert first == "   a |█" + " " * 14 + "▃" + " " * 44 + "|" and end == ""
    assert second == " dog |" + " " * 45 + "█" + " " * 14 + "|"
    assert ruler.split() == ["0.0", "2.5", "5.0", "7.5", "10.0", "s"] and ruler.index("5.0") - ruler.index("0.0") == 30
    assert chart(LOOK) == said[0]
    terminal.line(f"/show {tmp_path}/look.png")
    assert said[1] == f"[{tmp_path}/look-1.png]\n" and (tmp_path / "look-1.png").stat().st_size > 1000


class Live:
    """Says how many samples it heard."""

    rate = 100

    def __init__(self) -> None:
        self.heard = np.zeros(0, np.float32)
        self.came = threading.Semaphore(0)

    @property
    def seconds(self) -> float:
        return len(self.heard) / self.rate

    def hear(self, samples: Any) -> None:
        self.heard = np.concatenate([self.heard, samples])
        self.came.release()

    def ask(self, prompt: str, decoding: Decoding, tell: Any) -> Answer:
        if not prompt:
            raise BadRequest("expected a question, got nothing")
        tell(Piece(text=f"{prompt} {len(self.heard)}"))
        return Answer(text="", tokens=(), finish="stop", prompt_tokens=0)


def test_a_file_is_heard_whole_before_a_question(said: list[str], tmp_path: Path) -> None:
    wave = np.linspace(-0.5, 0.5, 330, dtype=np.float32)
    soundfile.write(tmp_path / "a.wav", wave, 100, subtype="FLOAT")
    live = Live()
    with Ear(live, tmp_path / "a.wav") as ear:  # type: ignore[arg-type]
        assert ear.line("what?", said.append, Decoding()) and ear.line("", said.append, Decoding())
        assert not ear.line("/quit", said.append, Decoding())
    assert "".join(said) == "[3.3 s] what? 330\n[3.3 s] [expected a question, got nothing]\n"
    np.testing.assert_array_equal(live.heard, wave)
    soundfile.write(tmp_path / "b.wav", wave, 200)
    said.clear()
    with Ear(live, tmp_path / "b.wav") as ear:  # type: ignore[arg-type]
        ear.line("what?", said.append, Decoding())
    assert said == [f"[--microphone: expected mono at 100 Hz, got {tmp_path}/b.wav of 1 channels at 200 Hz]\n"]
    with pytest.raises(BadRequest, match=r"gone\.wav, which is not there"):
        Ear(live, tmp_path / "gone.wav")  # type: ignore[arg-type]


@pytest.mark.timeout(60)
def test_a_pipe_is_heard_as_it_comes(said: list[str], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "ear")
    live = Live()
    with Ear(live, tmp_path / "ear") as ear, (tmp_path / "ear").open("wb", buffering=0) as pipe:  # type: ignore[arg-type]
        for piece in range(3):
            pipe.write(np.full(50, 16_384 * (piece - 1), "<i2").tobytes())
            assert live.came.acquire(timeout=30)
            ear.line("so far?", said.append, Decoding())
    assert said[1::3] == ["so far? 50", "so far? 100", "so far? 150"]
    assert live.heard[::50].tolist() == [-0.5, 0.0, 0.5]
