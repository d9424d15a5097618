"""What the fuzz feeds of what comes over the network: requests to the server, and answers of endpoints and clusters.

Answers are whole HTTP, status line and headers included, in a socket that nobody else holds; nothing waits for them.
"""

import asyncio
import base64
import http.client
import io
import json
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import soundfile
import urllib3
from kubernetes import client

from af_pipelines import clock, kube
from af_pipelines.cluster import ClusterConfig
from af_pipelines.cluster_run import _job_line
from af_pipelines.follow import PodLogs, blocked, is_queued, restarts_of, show_status
from af_pipelines.kube import Kube
from af_pipelines.serving import _server
from af_pipelines.trainjob import ended, is_watched
from megatron_af.data.rows import parse_row, to_json
from megatron_af.evaluate.asking import Kept
from megatron_af.evaluate.metrics.judge import Judgement
from megatron_af.pipeline.job import Job
from megatron_af.prepare import generation
from megatron_af.prepare.caption_expansion import CaptionExpansion, ExpansionConfig
from megatron_af.prepare.dialogues import DialogueConfig, Dialogues
from megatron_af.prepare.generation import GenerationConfig, Task, generate, read_reply
from megatron_af.prepare.written_skills import WrittenSkill
from megatron_af.serve.server import make_app
from megatron_af.serve.settings import ServingConfig
from tests.serve.running import Parrot


@dataclass(frozen=True, kw_only=True)
class Parser:
    """What reads bytes from strangers."""

    examples: list[bytes]
    read: Callable[[Path, bytes], Any]
    """Told an empty folder, and bytes."""
    anywhere: bool = False
    """Whether what is read names files by right."""


ROW = parse_row(
    {"id": "a", "clips": [{"path": "a.wav", "duration": 9.0}], "captions": ["rain falls on a roof"],
     "questions": [{"prompt": "what?", "output": "rain"}], "meta": {"answer": "rain"}}, "a row",
)  # fmt: skip
TASKS: list[Task] = [
    Dialogues(DialogueConfig(source="", output="", endpoint="", model="")),
    CaptionExpansion(ExpansionConfig(source="", output="", endpoint="", model="", paraphrases=1, negatives=1)),
    WrittenSkill("plot"),
    Judgement(),
]
REPLIES = [
    {"dialogues": [{"id": 0, "turns": [{"user": "what falls?", "assistant": "rain"}]}]},
    {"captions": [{"id": 0, "paraphrases": ["rain drops on a roof"],
                   "negatives": [{"text": "hail", "change": "order"}]}]},
    {"questions": [{"id": 0, "question": "why?", "answer": "a", "options": ["a", "b", "c", "d"],
                    "evidence": ["rain falls on a roof"]}]},
    {"judgements": [{"id": 0, "correctness": 7, "detail": 5, "bluntness": 9}]},
]  # fmt: skip


def spoken(body: Any, status: str = "200 OK", **headers: str) -> bytes:
    """HTTP of an answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + data


@contextmanager
def answering(data: bytes) -> Iterator[None]:
    """Whoever asks anybody over HTTP hears these bytes, and no time passes."""
    with ExitStack() as kept:

        def connected(*_: Any) -> socket.socket:
            own, other = map(kept.enter_context, socket.socketpair())
            own.settimeout(10)
            other.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            other.setblocking(False)
            with suppress(BlockingIOError):
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)
            return own

        def connect(connection: Any) -> None:
            connection.sock = connected()

        kept.enter_context(mock.patch.object(http.client.HTTPConnection, "connect", connect))
        kept.enter_context(mock.patch.object(urllib3.connection.HTTPConnection, "_new_conn", connected))
        kept.enter_context(mock.patch.object(generation.time, "sleep", lambda seconds: None))
        yield


def _settings(folder: Path) -> GenerationConfig:
    return GenerationConfig(
        source=str(folder / "a.jsonl"), output=str(folder / "made.jsonl"), endpoint="http://judge:1/v1", model="m",
        concurrency=1, requests_per_minute=1e12,
    )  # fmt: skip


def _asked(folder: Path, data: bytes) -> None:
    (folder / "a.jsonl").write_text(to_json(ROW) + "\n")
    with answering(data):
        generate(Judgement(), _settings(folder), lambda done, rows: None)


def _replied(folder: Path, data: bytes) -> None:
    for task in TASKS:
        (found,) = read_reply(task, data.decode(errors="replace"), [ROW])
        if not isinstance(found, str):
            made = to_json(task.made(ROW, json.loads(json.dumps(found))))
            parse_row(json.loads(made.encode()), "what was made")


def _gone_on(folder: Path, data: bytes) -> None:
    (folder / "a.jsonl").write_text(to_json(ROW) + "\n")
    (folder / "made.jsonl.partial").write_bytes(data)
    with answering(spoken({"choices": [{"message": {"content": json.dumps(REPLIES[0])}}]})):
        generate(TASKS[0], _settings(folder))


PUT_DOWN = {"id": "a", "asked": ["m", 1, 4, TASKS[0].asked(ROW)], "found": {"turns": [["what falls?", "rain"]]}}


def _kept(folder: Path, data: bytes) -> None:
    (folder / "answers").write_bytes(data)
    for answer, logprobs in Kept(folder / "answers", "s").read().values():
        assert answer is None or isinstance(answer, str)
        assert logprobs is None or all(isinstance(one, float) for one in logprobs)


@cache
def _tone() -> str:
    out = io.BytesIO()
    soundfile.write(out, np.zeros(1600, np.float32), 16_000, format="WAV")
    return base64.b64encode(out.getvalue()).decode()


class _Served:
    """The server in this process; it is made at the first request."""

    def __init__(self) -> None:
        self._loop = self._app = None

    def __call__(self, folder: Path, data: bytes) -> None:
        (folder / "heard").mkdir()
        if self._app is None:
            settings = ServingConfig(audio_folder=str(folder / "heard"), max_request_bytes=100_000, batch_requests=1)
            self._loop = asyncio.new_event_loop()
            self._app = make_app(Parrot(), settings)
        (folder / "heard/a.wav").write_bytes(base64.b64decode(_tone()))
        (folder / "heard/out.wav").symlink_to("/etc/passwd")
        status, body = self._loop.run_until_complete(self._ask(data))
        assert status < 500, f"{status}: {body[:300]!r}"
        if status != 200:
            said = json.loads(body)["error"]["message"]
            assert said and "Traceback" not in said

    async def _ask(self, data: bytes) -> tuple[int, bytes]:
        sent: list[dict[str, Any]] = []
        waiting = [{"type": "http.request", "body": data, "more_body": False}]

        async def receive() -> Any:
            while not waiting:  # who asks stays connected
                await asyncio.sleep(3600)
            return waiting.pop()

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "headers": [],
                 "path": "/v1/chat/completions", "raw_path": b"", "query_string": b"", "scheme": "http"}  # fmt: skip
        await self._app(scope, receive, send)
        return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


def _chat(content: Any, **more: Any) -> bytes:
    return json.dumps({"model": "parrot", "messages": [{"role": "user", "content": content}], **more}).encode()


def _named(url: str) -> dict[str, Any]:
    return {"type": "audio_url", "audio_url": {"url": url}}


NAMED = {"name": "j", "uid": "u", "labels": {"megatron-af/step": "s", kube.INDEX_LABEL: "0"}, "annotations": {"a": "b"},
         "creationTimestamp": "2026-01-01T00:00:00Z"}  # fmt: skip
JOB = {"metadata": NAMED, "spec": {"trainer": {"numNodes": 2}, "predictor": {"annotations": {}}},
       "status": {"conditions": [{"type": "Failed", "status": "True", "reason": "r", "message": "m",
                                  "lastTransitionTime": "2026-01-01T00:00:00Z"}],
                  "trainerStatus": {"progressPercentage": 3}}}  # fmt: skip
POD = {"metadata": NAMED, "spec": {"containers": []}, "status": {"phase": "Running", "conditions": [
    {"type": "PodScheduled", "status": "False", "reason": "r", "message": "no room"}], "containerStatuses": [
    {"name": "node", "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": {
        "terminated": {"exitCode": 1, "message": "m", "finishedAt": "2026-01-01T00:00:00Z"}}}]}}  # fmt: skip
EVENT = {"metadata": NAMED, "involvedObject": {"name": "j"}, "reason": "r", "message": "m", "type": "Warning",
         "lastTimestamp": "2026-01-01T00:00:00Z"}  # fmt: skip
DEPLOYMENT = {"metadata": NAMED, "spec": {"replicas": 1, "selector": {}, "template": {"metadata": NAMED}}}
OUR_JOB = Job(name="s", owner="runs/toy", argv=("a",), nodes=2, processes=1)


@cache
def _address() -> client.Configuration:
    settings = client.Configuration(host="http://cluster:1")
    settings.retries = False
    return settings


def _clustered(folder: Path, data: bytes) -> None:
    """Every question that is put to a cluster, answered with the same."""
    asked = Kube(ClusterConfig(away_minutes=0.01), client.ApiClient(_address()))
    questions: list[Callable[[], Any]] = [
        lambda: [_job_line(job, asked) for job in asked.jobs("")],
        lambda: _followed(asked),
        lambda: _server(asked).annotations.get("a"),
        lambda: asked.has_queue("q"),
        lambda: asked.create({"metadata": {"name": "j"}}, dry_run=True),
        lambda: asked.annotate("j", {"a": "b"}),
        lambda: asked.delete("j"),
        lambda: asked.patch_deployment("d", {"a": "b"}),
    ]
    refused: list[Exception] = []
    with (
        answering(data),
        mock.patch.object(clock, "sleep", lambda seconds: None),
        # The client sets a logger's level for every object that it makes, and logging then forgets all loggers' levels.
        mock.patch.object(logging.Manager, "_clear_cache", lambda loggers: None),
    ):
        for question in questions:
            try:
                question()
            except kube.StepFailed as error:
                refused.append(error)
    assert all(str(error) for error in refused)


def _followed(asked: Kube) -> None:
    logs = PodLogs(asked, OUR_JOB, lambda line: None)
    found, pods = asked.get("j"), []
    with suppress(kube.ClusterError, kube.ClusterAway):
        pods = asked.pods("j")
    restarts_of(pods)
    logs.read(pods)
    logs.last_words(pods)
    if found is not None:
        ended(found)
        is_watched(found)
        is_queued(found)
        show_status(found, pods)
        blocked(asked, found, OUR_JOB, pods)
        asked.warnings(found)


TALKERS: dict[str, Parser] = {
    "request to the server": Parser(
        examples=[
            _chat("what?"),
            _chat("what?", temperature=0.5, top_p=0.9, seed=3, stop=["a"], n=2, max_tokens=3, logprobs=True),
            _chat([{"type": "text", "text": "what?"},
                   {"type": "input_audio", "input_audio": {"data": _tone(), "format": "wav"}}]),
            _chat([_named("a.wav"), {"type": "text", "text": "what?"}], stream=True),
            *(_chat([_named(url)]) for url in ("/etc/passwd", "../a.wav", "out.wav")),
            json.dumps({"model": "parrot", "messages": [
                {"role": "system", "content": "s"}, {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
                "stream_options": {"include_usage": True}}).encode(),
        ],
        read=_Served(),
    ),
    "answer of a language model's endpoint": Parser(
        examples=[
            spoken({"choices": [{"message": {"content": json.dumps(REPLIES[3])}}]}),
            spoken({"error": {"message": "slow down"}}, "429 Too Many Requests", Retry_After="1"),
            spoken(b"", "302 Found", Location="ftp://elsewhere/"), spoken(b"", "307 Temporary Redirect", Location="http://x/"),
            spoken(b"5\r\n{}{}{\r\n0\r\n\r\n", Transfer_Encoding="chunked"),
        ],
        read=_asked,
    ),
    "reply of a language model": Parser(examples=[json.dumps(reply).encode() for reply in REPLIES], read=_replied),
    "what a generator put down": Parser(
        examples=[json.dumps(PUT_DOWN).encode() + b"\n", json.dumps(PUT_DOWN | {"refused": "why"}).encode() + b"\n"],
        read=_gone_on,
    ),
    "what a measurement put down": Parser(
        examples=[b'{"state": "s", "wording": 0, "question": 1, "answer": "rain", "logprobs": [-1.5]}\n'], read=_kept
    ),
    "answer of a cluster": Parser(
        examples=[
            spoken(JOB), *(spoken({"items": [one]}) for one in (JOB, POD, EVENT)), spoken(DEPLOYMENT),
            spoken({"kind": "TrainJobList"}), spoken({"message": "no", "code": 403}, "403 Forbidden"),
            spoken({"message": "wait"}, "429 Too Many Requests", Retry_After="3"), spoken(b"2026-01-01T00:00:00Z a\n"),
        ],
        read=_clustered,
    ),
}  # fmt: skip
