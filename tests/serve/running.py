"""A server of answers in this process, with a model that says what it was asked.

    with running(Parrot(), ServingConfig()) as server:
        server.client.chat.completions.create(…)          # OpenAI's client
        server.http().request("GET", "/health")           # and anybody else's
"""

import http.client
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import uvicorn

from megatron_af.data.rows import Row
from megatron_af.inference.decoding import Decoding
from megatron_af.inference.requests import BadRequest
from megatron_af.inference.writing import Answer, Piece, Tell, TokenScore
from megatron_af.serve.server import make_app
from megatron_af.serve.settings import ServingConfig


class Parrot:
    """Answers ``PROMPT SECONDS``, whenever it is let; ``fail`` fails, ``silence`` cannot be decoded."""

    name = "parrot"

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()
        self.begun = threading.Semaphore(0)
        self.batches: list[list[str]] = []
        self.files: list[str] = []
        self.closed = False
        self._going: list[_Saying] = []

    def prompt_tokens(self, row: Row) -> int:
        tokens = len(row.questions[-1].prompt.split())
        if tokens > 100:
            raise BadRequest(f"{row.id}: expected a question that takes at most 100 tokens, got one of {tokens}")
        return tokens

    def join(self, rows: Sequence[Row], decodings: Sequence[Decoding], root: Path, tell: Sequence[Tell]) -> None:
        self.batches.append([row.questions[-1].prompt for row in rows])
        self.files = sorted(path.name for path in root.iterdir())
        self.begun.release()
        assert self.go.wait(60)
        if any(row.questions[-1].prompt == "fail" for row in rows):
            raise RuntimeError("the weights are gone")
        if any(row.questions[-1].prompt == "silence" for row in rows):
            raise BadRequest("messages: expected a recording, got what cannot be decoded")
        said = [" ".join([row.questions[-1].prompt, *(f"{clip.duration:g}" for clip in row.clips)]) for row in rows]
        self._going += [
            _Saying(text.split(), decoding, told) for text, decoding, told in zip(said, decodings, tell, strict=True)
        ]

    def step(self) -> int:
        self._going = [saying for saying in self._going if saying.goes_on()]
        return len(self._going)

    def abandon(self) -> None:
        self._going = []

    def close(self) -> None:
        self.closed = True


class _Saying:
    """A word with each token, whose log-probability is minus the length of the word."""

    def __init__(self, words: list[str], decoding: Decoding, tell: Tell) -> None:
        self._words, self._decoding, self._tell = words, decoding, tell
        self._scores: list[TokenScore] = []

    def goes_on(self) -> bool:
        at, new = len(self._scores), self._decoding.max_new_tokens
        score = TokenScore(token=at, text=self._words[at], logprob=-len(self._words[at]), top=(("up", 0.0),))
        self._scores.append(score)
        scores = () if self._decoding.logprobs is None else (score,)
        wanted = self._tell(Piece(text=" " * bool(at) + self._words[at], scores=scores))
        if wanted and at + 1 < min(new, len(self._words)):
            return True
        self._tell(
            Answer(
                text=" ".join(self._words[: at + 1]),
                tokens=tuple(range(at + 1)),
                finish="stop" if at + 1 < new else "length",
                prompt_tokens=0,
                scores=() if self._decoding.logprobs is None else tuple(self._scores),
            )
        )
        return False


@dataclass(frozen=True)
class Running:
    """A server that listens."""

    port: int
    server: Any

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="one", max_retries=0)

    def http(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)

    def post(self, body: Any, **headers: str) -> tuple[int, Any]:
        """Status and body of a request with these bytes, or this JSON."""
        connection = self.http()
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", "/v1/chat/completions", data, {"Content-Type": "application/json"} | headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())

    def get(self, path: str) -> tuple[int, str]:
        connection = self.http()
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    def count(self, sample: str) -> float:
        """A sample of ``/metrics``; 0 where it was never counted."""
        lines = [line.rsplit(" ", 1) for line in self.get("/metrics")[1].splitlines()]
        return next((float(value) for name, value in lines if name == sample), 0.0)

    def wait_for(self, sample: str, value: float) -> None:
        while self.count(sample) != value:  # pytest's own limit ends it
            pass


@contextmanager
def running(model: Any, settings: ServingConfig) -> Iterator[Running]:
    config = uvicorn.Config(make_app(model, settings), host="127.0.0.1", port=0, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    try:
        yield Running(server.servers[0].sockets[0].getsockname()[1], server)
    finally:
        server.should_exit = True
        thread.join()
