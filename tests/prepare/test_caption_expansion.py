"""Caption expansion against a local server that speaks the chat completions protocol, well-behaved and not."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from megatron_af.data.rows import Clip, Manifest, Row, RowError, to_json
from megatron_af.prepare.caption_expansion import EndpointError, Expanded, ExpansionConfig, expand, read_reply

Answer = Callable[[list[dict[str, Any]], int], tuple[int, str, dict[str, str]]]


def good_entry(item: dict[str, Any]) -> dict[str, Any]:
    caption = item["caption"]
    return {
        "id": item["id"],
        "paraphrases": [f"one hears {caption}", f"there is {caption}"],
        "negatives": [
            {"text": f"backwards {caption}", "change": "order"},
            {"text": f"quiet {caption}", "change": "attribute"},
        ],
    }


def good(items: list[dict[str, Any]], number: int) -> tuple[int, str, dict[str, str]]:
    return 200, json.dumps({"captions": [good_entry(item) for item in items]}), {}


class Server:
    """Answers by a function of the captions asked for and the number of the request."""

    def __init__(self, answer: Answer) -> None:
        self.asked: list[list[str]] = []
        self.times: list[float] = []
        self.keys: list[str | None] = []
        self.bodies: list[dict[str, Any]] = []
        server, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                items = json.loads(body["messages"][1]["content"])
                with lock:
                    server.times.append(time.monotonic())
                    server.asked.append([item["caption"] for item in items])
                    server.keys.append(self.headers.get("Authorization"))
                    server.bodies.append(body)
                    number = len(server.asked)
                assert self.path == "/v1/chat/completions"
                status, content, headers = answer(items, number)
                reply = {"choices": [{"message": {"role": "assistant", "content": content}}]}
                data = json.dumps(reply).encode() if status == 200 else content.encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None: ...

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._http.server_address[1]}/v1"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def start() -> Iterator[Callable[[Answer], Server]]:
    servers: list[Server] = []

    def make(answer: Answer) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


def job(folder: Path, server: Server, rows: int = 7) -> ExpansionConfig:
    source = folder / "in.jsonl"
    clip = Clip(path="a.flac", duration=1.0)
    made = [Row(id=f"r{i}", clips=(clip,), captions=(f"sound {i} then bell",), meta={"kept": i}) for i in range(rows)]
    source.write_text("".join(to_json(row) + "\n" for row in made))
    return ExpansionConfig(
        source=str(source),
        output=str(folder / "out.jsonl"),
        endpoint=server.endpoint,
        model="toy",
        paraphrases=2,
        negatives=2,
        captions_per_request=3,
        concurrency=2,
        requests_per_minute=60_000,
        timeout_seconds=5,
    )


def test_rows_come_back_in_order_with_typed_negatives(tmp_path, start, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server = start(good)
    config = job(tmp_path, server)
    report = expand(config)
    assert (report.rows, report.expanded, report.requests, report.refused) == (7, 7, 3, {})
    assert sorted(map(len, server.asked)) == [1, 3, 3]
    assert set(server.keys) == {"Bearer secret"}
    rows = list(Manifest(Path(config.output)))
    assert [row.id for row in rows] == [f"r{i}" for i in range(7)]
    assert rows[3].captions == ("sound 3 then bell", "one hears sound 3 then bell", "there is sound 3 then bell")
    assert rows[3].negatives == ("backwards sound 3 then bell", "quiet sound 3 then bell")
    assert rows[3].meta == {"kept": 3, "negative_kinds": ["order", "attribute"]}
    assert "2 paraphrases and 2 negatives" in server.bodies[0]["messages"][0]["content"]


def test_a_stopped_job_asks_only_for_the_rest(tmp_path, start):
    def fails_later(items: list[dict[str, Any]], number: int) -> tuple[int, str, dict[str, str]]:
        return good(items, number) if number == 1 else (401, "who are you?", {})

    server = start(fails_later)
    config = replace(job(tmp_path, server), concurrency=1)
    with pytest.raises(EndpointError, match=r"HTTP 401: who are you\?.*OPENAI_API_KEY"):
        expand(config)
    with Path(f"{config.output}.partial").open("a") as file:
        file.write('{"id": "r5", "row"')  # killed in the middle of a line
    again = start(good)
    report = expand(replace(config, endpoint=again.endpoint))
    assert report.expanded == 7
    assert sorted(text for asked in again.asked for text in asked) == [f"sound {i} then bell" for i in range(3, 7)]
    assert expand(replace(config, endpoint=again.endpoint)).requests == 0
    assert expand(replace(config, endpoint=again.endpoint, negatives=1)).requests == 3  # other numbers: all over


def test_a_caption_that_was_corrected_is_asked_for_again(tmp_path, start):
    server = start(good)
    config = job(tmp_path, server)
    expand(config)
    source = Path(config.source)
    corrected = source.read_text().replace("sound 3 then", "noise 3 then").replace("a.flac", "b.flac")
    source.write_text(corrected)
    before = len(server.asked)
    expand(config)
    assert server.asked[before:] == [["noise 3 then bell"]]
    rows = list(Manifest(Path(config.output)))
    assert rows[3].captions[1] == "one hears noise 3 then bell"
    assert {row.clips[0].path for row in rows} == {"b.flac"}, "all but the captions is the source's"


def test_two_rows_of_one_id_are_refused(tmp_path, start):
    config = job(tmp_path, start(good))
    source = Path(config.source)
    source.write_text(source.read_text().replace('"r4"', '"r3"'))
    with pytest.raises(RowError, match="two rows have the id 'r3'"):
        expand(config)


def test_a_reply_that_breaks_off_is_asked_for_again(tmp_path, start):
    def answer(items, number):
        status, content, _ = good(items, number)
        return status, content, {"Content-Length": "100000"} if number == 1 else {}

    config = replace(job(tmp_path, start(answer), rows=2), timeout_seconds=1, attempts=2)
    told = []
    assert expand(config, lambda done, rows: told.append((done, rows))).expanded == 2
    assert (told[0], told[-1]) == ((0, 2), (2, 2))


def test_a_busy_server_is_waited_for_and_a_dead_one_named(tmp_path, start):
    def busy(items: list[dict[str, Any]], number: int) -> tuple[int, str, dict[str, str]]:
        return (429, "slow down", {"Retry-After": "0.05"}) if number % 2 else good(items, number)

    config = replace(job(tmp_path, start(busy)), concurrency=1)
    assert expand(config).expanded == 7
    dead = replace(config, endpoint="http://127.0.0.1:9/v1", output=str(tmp_path / "dead.jsonl"), attempts=1)
    with pytest.raises(EndpointError, match="did not answer 1 times"):
        expand(dead)


def test_requests_keep_to_the_limit(tmp_path, start):
    server = start(good)
    expand(replace(job(tmp_path, server), captions_per_request=1, requests_per_minute=60 / 0.05))
    assert max(server.times) - min(server.times) >= 6 * 0.05 * 0.8


def test_unusable_replies_are_asked_again_and_then_refused(tmp_path, start):
    def odd(items: list[dict[str, Any]], number: int) -> tuple[int, str, dict[str, str]]:
        entries = [good_entry(item) for item in items]
        for entry, item in zip(entries, items, strict=True):
            if "sound 1" in item["caption"]:
                entry["negatives"][0]["text"] = item["caption"].upper() + "."
            if "sound 2" in item["caption"] and len(items) > 1:
                entry["paraphrases"] = []  # mends itself when asked again
        return 200, "```json\n" + json.dumps({"captions": entries}) + "\n```", {}

    config = job(tmp_path, start(odd))
    report = expand(config)
    assert report.refused == {"r1": "a negative equals the caption or a paraphrase"}
    assert [row.id for row in Manifest(Path(config.output))] == ["r0", "r2", "r3", "r4", "r5", "r6"]
    assert json.loads(Path(f"{config.output}.refused").read_text())["id"] == "r1"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"paraphrases": ["x", "X!"]}, "1 different paraphrases instead of 2"),
        ({"paraphrases": ["x", ""]}, "a text is empty or missing"),
        ({"paraphrases": "x"}, "must be lists"),
        ({"paraphrases": ["x " * 50, "y"]}, "far longer than the caption"),
        ({"negatives": [{"text": "a", "change": "mood"}]}, "none of order, attribute"),
        ({"negatives": [{"text": "a", "change": "order"}, {"text": "A", "change": "order"}]}, "1 different negatives"),
        ({"negatives": ["a"]}, "a text is empty or missing"),
        ({"id": 7}, "leaves this caption out"),
    ],
)
def test_each_defect_of_a_reply_has_its_reason(tmp_path, start, change, reason):
    config = job(tmp_path, start(good))
    entry = good_entry({"id": 0, "caption": "a dog"}) | change
    (problem,) = read_reply(json.dumps({"captions": [entry]}), ["a dog"], config)
    assert isinstance(problem, str)
    assert reason in problem


def test_replies_that_are_no_json_are_unusable(tmp_path, start):
    config = job(tmp_path, start(good))
    for reply in ("Sure! Here you are", "[]", '{"captions": 3}', '{"captions": [1]}'):
        assert all(isinstance(r, str) for r in read_reply(reply, ["a", "b"], config))
    kept = read_reply(json.dumps({"captions": [good_entry({"id": 0, "caption": "a"})]}), ["a"], config)
    assert isinstance(kept[0], Expanded)
