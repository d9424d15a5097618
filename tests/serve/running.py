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
from megatron_af.inference.requests import BadRequest
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

    def prompt_tokens(self, row: Row) -> int:
        tokens = len(row.questions[-1].prompt.split())
        if tokens > 100:
            raise BadRequest(f"{row.id}: expected a question that takes at most 100 tokens, got one of {tokens}")
        return tokens

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def answer_rows(self, rows: Sequence[Row], root: Path, *, max_new_tokens: int) -> list[str]:
        self.batches.append([row.questions[-1].prompt for row in rows])
        self.files = sorted(path.name for path in root.iterdir())
        self.begun.release()
        assert self.go.wait(60)
        if any(row.questions[-1].prompt == "fail" for row in rows):
            raise RuntimeError("the weights are gone")
        if any(row.questions[-1].prompt == "silence" for row in rows):
            raise BadRequest("messages: expected a recording, got what cannot be decoded")
        said = [" ".join([row.questions[-1].prompt, *(f"{clip.duration:g}" for clip in row.clips)]) for row in rows]
        return [" ".join(text.split()[:max_new_tokens]) for text in said]

    def close(self) -> None:
        self.closed = True


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
