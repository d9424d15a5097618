"""A conversation in a terminal: lines in, text out.

    terminal = Terminal(session, print_text, decoding)
    terminal.line("/load dog.wav")
    terminal.line("what is it?")            # prints the answer while it is written

``HELP`` says what a line may be.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import soundfile
from numpy.typing import NDArray

from dali_pipes.waves import AudioError
from megatron_af.data.templates import TooLong
from megatron_af.inference.decoding import Decoding
from megatron_af.inference.live import Live
from megatron_af.inference.looks import Floats, Look, draw
from megatron_af.inference.requests import BadRequest
from megatron_af.inference.session import Session
from megatron_af.inference.writing import Answer, Piece

type Floats32 = NDArray[np.float32]

HELP = """\
/load FILE     talk about this recording, from the beginning
/reset         forget what was said; the recording stays
/retry         another answer to the last question, drawn at random
/show [PNG]    where the last answer looked, here or as a picture
/help          this
/quit          end (so does the end of the input)
anything else  a question
"""
RETRY_TEMPERATURE = 0.7
"""Of another answer where answers are greedy: the greedy one would be the same."""
BARS, COLUMNS, TIMES = " ▁▂▃▄▅▆▇█", 60, 5


class Terminal:
    """
    Args:
        say: prints a text as it stands, without a new line.
        decoding: of each answer.
    """

    def __init__(self, session: Session, say: Callable[[str], None], decoding: Decoding) -> None:
        self._session, self._say, self._decoding = session, say, decoding
        self._tries = 0

    def line(self, line: str) -> bool:
        """Do what a line says; whether the conversation goes on."""
        word, _, rest = line.strip().partition(" ")
        try:
            match word:
                case "":
                    pass
                case "/quit":
                    return False
                case "/help":
                    self._say(HELP)
                case "/load":
                    self._session.load(str(Path(rest.strip()).expanduser()))
                    self._say(f"[{rest.strip()}: {self._session.seconds:.1f} s]\n")
                case "/reset":
                    self._session.reset()
                    self._say("[nothing was said]\n")
                case "/retry":
                    self._retry()
                case "/show":
                    self._show(rest.strip())
                case _ if word.startswith("/"):
                    self._say(f"[{word}: not a command; /help shows them]\n")
                case _:
                    self._tries = 0
                    self._answered(self._session.ask(line.strip(), self._decoding, self._tell))
        except (BadRequest, AudioError, TooLong) as error:
            self._say(f"[{error}]\n")
        return True

    def _retry(self) -> None:
        self._tries += 1
        temperature = self._decoding.temperature or RETRY_TEMPERATURE
        decoding = replace(self._decoding, temperature=temperature, beams=1, seed=self._decoding.seed + self._tries)
        self._answered(self._session.retry(decoding, self._tell))

    def _tell(self, event: Piece | Answer) -> None:
        _piece(event, self._say)

    def _answered(self, answer: Answer) -> None:
        self._say(_end(answer, self._decoding))
        if self._session.left_out:
            self._say(f"[the conversation had become too long: its oldest {self._session.left_out} left out]\n")

    def _show(self, picture: str) -> None:
        look = self._session.look()
        if picture:
            path = Path(picture).expanduser()
            if path.suffix.lower() != ".png":
                raise BadRequest(f"/show: expected the name of a PNG file, got {picture}")
            draw([look], path.parent, path.stem)
            self._say(f"[{path.with_name(path.stem + '-1.png')}]\n")
        else:
            self._say(chart(look))


class Ear:
    """What a microphone hears, from a thread of its own, and questions about it.

    A WAV file is heard whole before a question is answered; of a pipe, what has come.

    Args:
        source: a WAV file of the model's rate, or anything else to read 16-bit mono samples from.

    Raises:
        BadRequest: there is no such file, or it has another rate.
    """

    def __init__(self, live: Live, source: Path) -> None:
        if not source.exists():
            raise BadRequest(f"--microphone: expected a file or a pipe, got {source}, which is not there")
        self._live, self._source = live, source
        self._lock, self._ended, self._closed = threading.Lock(), threading.Event(), threading.Event()
        self._problem: Exception | None = None
        self._thread = threading.Thread(target=self._listen, name="ear", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()  # a pipe that nobody writes to is left to the end of the process

    def line(self, line: str, say: Callable[[str], None], decoding: Decoding) -> bool:
        """Answer a question, or ``/quit``; whether the conversation goes on."""
        question = line.strip()
        if question == "/quit":
            return False
        if self._source.is_file():
            self._ended.wait()
        try:
            if self._problem is not None:
                raise self._problem
            with self._lock:
                say(f"[{self._live.seconds:.1f} s] ")
                answer = self._live.ask(question, decoding, lambda event: _piece(event, say))
            say(_end(answer, decoding))
        except (BadRequest, AudioError, TooLong) as error:
            say(f"[{error}]\n")
        return True

    def _listen(self) -> None:
        try:
            for samples in self._pieces():
                with self._lock:
                    self._live.hear(samples)
                if self._closed.is_set():
                    return
        except Exception as error:
            self._problem = error
        finally:
            self._ended.set()

    def _pieces(self) -> Iterator[Floats32]:
        rate = self._live.rate
        if self._source.is_file():
            with soundfile.SoundFile(self._source) as file:
                if (file.samplerate, file.channels) != (rate, 1):
                    raise BadRequest(
                        f"--microphone: expected mono at {rate} Hz, got {self._source} of {file.channels} channels at "
                        f"{file.samplerate} Hz"
                    )
                while len(samples := file.read(rate // 2, dtype="float32")):
                    yield samples
            return
        with self._source.open("rb") as pipe:
            while data := pipe.read(rate):  # half a second of 16 bits
                yield np.frombuffer(data[: len(data) // 2 * 2], "<i2").astype(np.float32) / np.float32(32768)


def _end(answer: Answer, decoding: Decoding) -> str:
    """What stands behind an answer; how sure it is, where somebody asks (``unsure``)."""
    sure = f" [{answer.confidence:.0%}]" if decoding.unsure else ""
    return f"{' …' if answer.finish == 'length' else ''}{sure}\n"


def _piece(event: Piece | Answer, say: Callable[[str], None]) -> None:
    if isinstance(event, Piece):
        say(event.text)


def chart(look: Look) -> str:
    """A line of bars for each token of the answer, over the time line of what the model heard."""
    seconds = np.linspace(0, look.seconds, COLUMNS + 1)
    lines = []
    width = max(len(token) for token in look.tokens)
    for token, weights_L in zip(look.tokens, look.weights_TL, strict=True):
        share_C, _ = np.histogram(look.token_seconds_L, bins=seconds, weights=weights_L)
        lines.append(f"{token.strip():>{width}} |{_bars(share_C)}|")
    times = np.linspace(0, look.seconds, TIMES)
    ruler = "".join(f"{time:<{COLUMNS // (TIMES - 1)}.1f}" for time in times[:-1])
    return "\n".join([*lines, f"{'':>{width}}  {ruler}{times[-1]:.1f} s", ""])


def _bars(share_C: Floats) -> str:
    highest = share_C.max() or 1.0
    return "".join(BARS[int(np.ceil(share / highest * (len(BARS) - 1)))] for share in share_C)
