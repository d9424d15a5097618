"""What every kind of written text shares: stopping and going on, a server that is busy, slow or gone."""

import http.client
import io
import json
import urllib.error
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_af.data.rows import Row, RowError
from megatron_af.evaluate.metrics.judge import Judgement
from megatron_af.prepare.caption_expansion import expand
from megatron_af.prepare.generation import EndpointError, Report, read_reply
from tests.prepare.endpoint import good, job


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
    assert report.written == 7
    assert sorted(text for asked in again.asked for text in asked) == [f"sound {i} then bell" for i in range(3, 7)]
    assert expand(replace(config, endpoint=again.endpoint)).requests == 0
    assert expand(replace(config, endpoint=again.endpoint, negatives=1)).requests == 3  # other numbers: all over


def test_what_was_put_down_and_is_damaged_since_is_asked_again(tmp_path, start):
    config = job(tmp_path, start(good))
    expand(config)
    partial = Path(f"{config.output}.partial")
    _, second, third, *rest = partial.read_bytes().splitlines(keepends=True)
    broken = json.dumps(json.loads(second) | {"found": {"paraphrases": 3}}).encode() + b"\n"
    for damage in (b"[]\n", b"\xff\n", b"[" * 9000 + b"\n", broken, b'{"id": "r1"}\n'):
        partial.write_bytes(damage + third + b"".join(rest))
        report = expand(config)
        assert (report.written, report.requests) == (7, 1), damage[:20]


def test_nobody_who_answers_sends_rows_and_key_elsewhere(tmp_path, start):
    other = start(good)
    moved = start(lambda items, number: (307, "", {"Location": f"{other.endpoint}/chat/completions"}))
    with pytest.raises(EndpointError, match=rf"HTTP 307: , it is at {other.endpoint}"):
        expand(job(tmp_path, moved))
    assert other.asked == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_an_address_elsewhere_that_is_none_is_told_of(tmp_path, start, status):
    moved = start(lambda items, number: (status, "", {"Location": "//]"}))
    with pytest.raises(EndpointError, match=rf"HTTP {status}: , it is at //\]"):
        expand(job(tmp_path, moved))


def test_a_row_that_cannot_be_read_is_refused_and_the_others_are_asked_about(tmp_path, start):
    config = job(tmp_path, start(good))
    source = Path(config.source)
    lines = source.read_text().splitlines()
    source.write_text("\n".join([lines[0], "{", *lines[1:]]))
    report = expand(config)
    assert report.rows == len(lines) + 1 and report.written == len(lines) and list(report.refused) == [f"{source}:2"]
    assert json.loads(Path(f"{config.output}.refused").read_text())["id"] == f"{source}:2"


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
    assert expand(config, lambda done, rows: told.append((done, rows))).written == 2
    assert (told[0], told[-1]) == ((0, 2), (2, 2))


def test_a_busy_server_is_waited_for_and_a_dead_one_named(tmp_path, start):
    def busy(items: list[dict[str, Any]], number: int) -> tuple[int, str, dict[str, str]]:
        return (429, "slow down", {"Retry-After": "0.05"}) if number % 2 else good(items, number)

    config = replace(job(tmp_path, start(busy)), concurrency=1)
    assert expand(config).written == 7
    dead = replace(config, endpoint="http://127.0.0.1:9/v1", output=str(tmp_path / "dead.jsonl"), attempts=1)
    with pytest.raises(EndpointError, match="did not answer 1 times"):
        expand(dead)


@pytest.mark.parametrize("endpoint", ["a\0b", "localhost", "x y"])
def test_an_endpoint_that_is_no_address_is_told(tmp_path, endpoint):
    with pytest.raises(EndpointError, match=r"endpoint: expected an address such as http://localhost:8000/v1, got '"):
        expand(job(tmp_path, SimpleNamespace(endpoint=endpoint), rows=1))


@pytest.mark.parametrize("reply", ["[" * 200_000, "{}", '{"choices": [{"message": {"content": "', " " * 17 * 2**20])
def test_what_is_no_chat_completion_is_told(tmp_path, monkeypatch, reply):
    monkeypatch.setattr("urllib.request.OpenerDirector.open", lambda *_, **__: io.BytesIO(reply.encode()))
    with pytest.raises(EndpointError, match="does not speak the chat completions protocol"):
        expand(job(tmp_path, SimpleNamespace(endpoint="http://127.0.0.1:9/v1"), rows=1))


@pytest.mark.parametrize("status", ["200 OK", "503 Away"])
def test_an_answer_in_pieces_of_less_than_nothing_is_one_that_broke_off(tmp_path, monkeypatch, status):
    def answered(*_, **__):
        said = f"HTTP/1.1 {status}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{{}}{{}}{{\r\n-10\r\n".encode()
        response = http.client.HTTPResponse(SimpleNamespace(makefile=lambda mode: io.BufferedReader(io.BytesIO(said))))
        response.begin()
        if response.status != 200:
            raise urllib.error.HTTPError("http://a", response.status, "away", response.headers, response)
        return response

    monkeypatch.setattr("urllib.request.OpenerDirector.open", answered)
    config = replace(job(tmp_path, SimpleNamespace(endpoint="http://127.0.0.1:9/v1"), rows=1), attempts=1)
    with pytest.raises(EndpointError, match="did not answer 1 times"):
        expand(config)


def test_a_request_that_is_not_answered_costs_its_own_rows_alone(tmp_path, start):
    def moody(items: list[dict[str, Any]], number: int) -> tuple[int, str, dict[str, str]]:
        bad = any("sound 4 " in item["caption"] for item in items)
        return (413, "too long", {}) if bad else good(items, number)

    config = replace(job(tmp_path, start(moody)), concurrency=1)
    report = expand(config)
    assert report.written == 6 and report.refused.keys() == {"r4"} and "HTTP 413: too long" in report.refused["r4"]
    assert "does not take the request" in Path(f"{config.output}.refused").read_text()
    again = start(good)
    assert expand(replace(config, endpoint=again.endpoint)).written == 7
    assert again.asked == [["sound 4 then bell"]], "asked about again, and nothing else"
    single = replace(config, output=str(tmp_path / "single.jsonl"), attempts=1)
    assert expand(single).refused.keys() == {"r3", "r4", "r5"}
    assert expand(replace(single, endpoint=again.endpoint)).written == 7


def test_nobody_there_in_the_middle_ends_the_job(tmp_path, start):
    def dies(items: list[dict[str, Any]], number: int) -> tuple[int, str, dict[str, str]]:
        return good(items, number) if number == 1 else (413, "gone", {})

    server = start(dies)
    config = replace(job(tmp_path, server, rows=60), concurrency=1, attempts=1)
    with pytest.raises(EndpointError, match="HTTP 413: gone"):
        expand(config)
    assert len(server.asked) <= 4, "it is not asked about all the others"
    assert expand(replace(config, endpoint=start(good).endpoint)).written == 60


def test_requests_keep_to_the_limit(tmp_path, start):
    server = start(good)
    expand(replace(job(tmp_path, server), rows_per_request=1, requests_per_minute=60 / 0.05))
    assert max(server.times) - min(server.times) >= 6 * 0.05 * 0.8


def test_a_report_says_what_was_refused_and_how_often():
    report = Report(rows=21, written=18, refused={"a": "too long", "b": "no clip", "c": "too long"}, requests=5)
    told = replace(report, refused={str(n): f"the reply is no JSON: 'prose {n}, isn't it?'" for n in range(3)})
    assert told.lines[1:] == ["  3 refused: the reply is no JSON: …"], "one line for each kind"
    assert report.lines == ["18 of 21 rows written with 5 requests", "  2 refused: too long", "  1 refused: no clip"]
    assert report.exit_code == 1 and replace(report, rows=30).exit_code == 0


def test_half_of_a_surrogate_pair_costs_its_row_alone() -> None:
    task, row = Judgement(), Row(id="a", meta={"answer": "rain"})
    entries = [{"id": i, "correctness": 7, "detail": 5, "bluntness": 9, "why": why} for i, why in enumerate("a\ud800")]
    found, refused = read_reply(task, json.dumps({"judgements": entries}), [row, row])
    assert found == {"correctness": 7, "detail": 5, "bluntness": 9}
    assert refused == "the reply holds half of a surrogate pair"
