"""The server as its clients meet it, with a model that says what it was asked."""

import base64
import io
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import soundfile

from megatron_af.serve.settings import KEYS, ServingConfig
from tests.serve.running import Parrot, Running, running

SMALL = ServingConfig(batch_requests=2, waiting_requests=3, max_audio_seconds=20, max_request_bytes=500_000)


def wav(seconds: float) -> str:
    file = io.BytesIO()
    soundfile.write(file, np.sin(np.arange(int(8_000 * seconds)) * 0.1).astype(np.float32), 8_000, format="WAV")
    return base64.b64encode(file.getvalue()).decode()


def asking(text: str, audio: str | None = None, **more: Any) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if audio is not None:
        parts.append({"type": "input_audio", "input_audio": {"data": audio, "format": "wav"}})
    return {"model": "parrot", "messages": [{"role": "user", "content": parts}]} | more


@pytest.fixture
def parrot() -> Parrot:
    return Parrot()


@pytest.fixture
def server(parrot: Parrot) -> Iterator[Running]:
    with running(parrot, SMALL) as server:
        yield server
    assert parrot.closed


def message(status_and_body: tuple[int, Any]) -> tuple[int, str]:
    status, body = status_and_body
    return status, body["error"]["message"]


def test_openais_client_is_answered(server: Running) -> None:
    assert [model.id for model in server.client.models.list()] == ["parrot"]
    assert server.client.models.retrieve("parrot") == server.client.models.list().data[0]
    with pytest.raises(openai.NotFoundError, match="expected 'parrot', which is served here, got 'gpt/5'"):
        server.client.models.retrieve("gpt/5")
    answer = server.client.chat.completions.create(**asking("a b", wav(2), n=2))
    assert [choice.message.content for choice in answer.choices] == ["a b 2", "a b 2"]
    assert answer.choices[0].finish_reason == "stop" and answer.model == "parrot"
    assert answer.usage is not None and (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 6)
    cut = server.client.chat.completions.create(**asking("a b c d", max_tokens=2))
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == ("a b", "length")


def test_a_stream_ends_with_its_usage_and_done(server: Running) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(server.client.chat.completions.create(**asking("a b", **options)))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "a b"
    assert chunks[-1].usage.completion_tokens == 2
    connection = server.http()
    connection.request("POST", "/v1/chat/completions", json.dumps(asking("a b", **options)))
    answer = connection.getresponse()
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    lines = answer.read().decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""] and all(line.startswith("data: ") for line in lines[:-1])


def test_a_stream_comes_word_by_word_with_log_probabilities(server: Running, parrot: Parrot) -> None:
    pause, step = threading.Semaphore(0), parrot.step

    def one_word() -> int:
        assert pause.acquire(timeout=60)
        return step()

    parrot.step = one_word  # type: ignore[method-assign]
    asked = asking("a bb ccc", stream=True, logprobs=True, top_logprobs=1)
    pause.release()  # the status is sent with the first word
    stream = iter(server.client.chat.completions.create(**asked))
    said, told = "", []
    for word in range(3):
        if word:
            pause.release()
        while len(told) == word:  # each word comes before the next is made
            (choice,) = next(stream).choices
            said += choice.delta.content or ""
            told += [token.logprob for token in choice.logprobs.content] if choice.logprobs else []
    assert said == "a bb ccc" and told == [-1, -2, -3]
    assert [chunk.choices[0].finish_reason for chunk in stream] == ["stop"]


def test_who_leaves_a_stream_gives_the_place_back(server: Running, parrot: Parrot) -> None:
    pause, step = threading.Semaphore(0), parrot.step

    def one_word() -> int:
        assert pause.acquire(timeout=60)
        return step()

    parrot.step = one_word  # type: ignore[method-assign]
    pause.release()
    stream = server.client.chat.completions.create(**asking("word " * 90, stream=True))
    next(iter(stream))
    stream.close()
    server.wait_for("af_requests_held", 0)
    pause.release(3)
    assert server.post(asking("next"))[0] == 200
    assert parrot._going == [], "the other answer was not written to its end"


def test_what_comes_together_is_answered_together_and_each_gets_its_own_error(server: Running, parrot: Parrot) -> None:
    parrot.go.clear()
    with ThreadPoolExecutor(5) as pool:
        first = pool.submit(server.post, asking("first"))
        parrot.begun.acquire()
        texts = ["one", "fail", "silence"]
        others = []
        for waiting, text in enumerate(texts, 1):
            others.append(pool.submit(server.post, asking(text)))
            server.wait_for("af_requests_waiting", waiting)
        parrot.go.set()
        answers = [other.result() for other in others]
        assert first.result()[0] == 200
    assert parrot.batches[:2] == [["first"], ["one", "fail"]]
    assert answers[0][1]["choices"][0]["message"]["content"] == "one"
    assert message(answers[1]) == (500, "the server failed (RuntimeError); its log says more")
    assert message(answers[2]) == (400, "messages: expected a recording, got what cannot be decoded")
    assert server.get("/health") == (200, '{"status":"ok"}')


def test_when_all_places_are_taken_it_says_so_and_who_goes_away_gives_a_place_back(
    server: Running, parrot: Parrot
) -> None:
    parrot.go.clear()
    with ThreadPoolExecutor(5) as pool:
        began = pool.submit(server.post, asking("first"))
        parrot.begun.acquire()
        connections = [server.http() for _ in range(4)]
        for connection in connections:
            connection.request("POST", "/v1/chat/completions", json.dumps(asking("waits", wav(1))))
        server.wait_for("af_requests_waiting", 4)
        with pytest.raises(openai.RateLimitError, match="all 5 places of this server are taken") as refused:
            server.client.chat.completions.create(**asking("one more"))
        assert refused.value.response.headers["Retry-After"] == "1" and refused.value.code == "rate_limit_exceeded"
        connections[0].close()
        server.wait_for("af_requests_held", 4)
        last = pool.submit(server.post, asking("has its place"))
        server.wait_for("af_requests_waiting", 4)
        parrot.go.set()
        assert last.result()[1]["choices"][0]["message"]["content"] == "has its place"
        assert began.result()[0] == 200
    assert sum(batch.count("waits") for batch in parrot.batches) == 3, "nobody worked for the one that had gone"
    assert server.count('af_requests_total{status="499"}') == 1 and server.count('af_requests_total{status="429"}') == 1
    assert server.count("af_requests_held") == 0


def test_recordings_are_forgotten_when_they_are_answered(server: Running, parrot: Parrot) -> None:
    for _ in range(3):
        assert server.post(asking("x", wav(1)))[0] == 200
    assert len(parrot.files) == 1, "its own"
    assert server.post(asking("x " * 101, wav(1)))[0] == 400
    assert server.post(asking("y"))[0] == 200
    assert parrot.files == [], "and those of a prompt that did not fit"


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"", 400, "the body: expected JSON: its JSON ends too early"),
        (b"{", 400, "the body: expected JSON: its JSON ends too early"),
        (b"a=b", 400, "the body: expected JSON: no JSON in column 1 ('a=b')"),
        (b"[" * 100_000, 400, "the body: expected JSON: nested too deeply to be data"),
        (b"\xff\xfe", 400, "the body: expected JSON: not UTF-8 (byte 0xff)"),
        (b"\x1f\x8b\x08", 400, "the body: expected JSON: is compressed (gzip): unpack it"),
        (b'{"n": ' + b"9" * 5000 + b"}", 400, "the body: expected JSON: a number of thousands of digits"),
        (b'{"n": 1, "n": 2}', 400, "has the key 'n' twice, and only the last would count"),
        (b"[]", 400, "the body: expected a JSON object"),
        (b" " * 500_001, 413, "the body: expected at most 500000 bytes"),
        (asking("x", wav(21)), 413, "messages: audio: expected at most 20 s, got a recording of 21.0 s"),
        (asking("x", base64.b64encode(b"no sound").decode()), 400, "expected a recording, got what cannot be decoded"),
        (asking("x", base64.b64encode(bytes(3000)).decode()), 400, "expected a recording, got what cannot be decoded"),
        (asking(" "), 400, "messages: prompt: expected text"),
        (asking("x " * 101), 400, "expected a question that takes at most 100 tokens, got one of 101"),
        (asking("x", model="gpt"), 404, "model: expected 'parrot'"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(server: Running, body: Any, status: int, says: str) -> None:
    found, sentence = message(server.post(body))
    assert found == status and says in sentence and "\n" not in sentence
    assert server.post(asking("still well"))[0] == 200


def test_a_body_that_never_says_how_long_it_is(server: Running) -> None:
    connection = server.http()
    pieces = (b" " * 50_000 for _ in range(11))
    chunked = {"Transfer-Encoding": "chunked"}
    connection.request("POST", "/v1/chat/completions", pieces, chunked, encode_chunked=True)
    answer = connection.getresponse()
    assert (answer.status, b"expected at most 500000 bytes, got 550000" in answer.read()) == (413, True)


def test_a_body_that_takes_too_long(parrot: Parrot) -> None:
    with running(parrot, replace(SMALL, upload_seconds=0.05)) as server:
        connection = server.http()
        connection.putrequest("POST", "/v1/chat/completions")
        connection.putheader("Content-Length", "100")
        connection.endheaders()
        answer = connection.getresponse()
        assert (answer.status, b"got 0 bytes by then" in answer.read()) == (408, True)
        server.wait_for("af_requests_held", 0)


def test_routes_that_are_not_there(server: Running) -> None:
    status, body = server.get("/v1/chat/completions")
    assert (status, json.loads(body)["error"]["message"]) == (405, "GET /v1/chat/completions: Method Not Allowed")
    assert server.get("/etc/passwd")[0] == 404


def test_only_who_shows_a_key_is_answered(parrot: Parrot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEYS, "zero,one")
    with running(parrot, SMALL) as server:
        assert server.client.chat.completions.create(**asking("x")).choices[0].message.content == "x"
        for headers in ({}, {"Authorization": "Bearer two"}, {"Authorization": "Basic one"}, {"Authorization": "one"}):
            status, sentence = message(server.post(asking("x"), **headers))
            assert (status, "expected `Authorization: Bearer KEY`" in sentence) == (401, True)
        assert [server.get(path)[0] for path in ("/v1/models/x", "/health", "/metrics")] == [401, 200, 200]


def test_a_request_names_files_of_one_folder_only(parrot: Parrot, tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    for path, seconds in ((folder / "in.wav", 1), (tmp_path / "out.wav", 2)):
        path.write_bytes(base64.b64decode(wav(seconds)))

    def ask(server: Running, url: str) -> tuple[int, Any]:
        parts = [{"type": "audio_url", "audio_url": {"url": url}}, {"type": "text", "text": "x"}]
        return server.post({"model": "parrot", "messages": [{"role": "user", "content": parts}]})

    with running(parrot, replace(SMALL, audio_folder=str(folder))) as server:
        for url in ("in.wav", f"file://{folder}/in.wav", f"data:audio/wav;base64,{wav(1)}"):
            assert ask(server, url)[1]["choices"][0]["message"]["content"] == "x 1"
        for url in (f"file://{tmp_path}/out.wav", "../out.wav", "/etc/passwd", "gone.wav"):
            status, sentence = message(ask(server, url))
            assert (status, "which is neither" in sentence) == (400, True), "whether it is there or not"
    with running(parrot, SMALL) as server:
        assert ask(server, f"file://{folder}/in.wav")[0] == 400


def test_a_server_that_ends_answers_what_it_began(parrot: Parrot) -> None:
    parrot.go.clear()
    with ThreadPoolExecutor(2) as pool, running(parrot, SMALL) as server:
        began = pool.submit(server.post, asking("first"))
        parrot.begun.acquire()
        server.server.should_exit = True
        threading.Timer(0.2, parrot.go.set).start()
        assert began.result()[1]["choices"][0]["message"]["content"] == "first"
