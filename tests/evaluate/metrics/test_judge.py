"""A judge behind an endpoint: what it says is checked, kept, and counted where it is of no use."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_af.config import JudgeConfig
from megatron_af.evaluate.answered import Said
from megatron_af.evaluate.metrics.base import Means
from megatron_af.evaluate.metrics.judge import ASPECTS, Judged
from megatron_af.prepare import generation
from megatron_af.prepare.generation import EndpointError
from tests.prepare.endpoint import Answer, Server

SAID = [Said(id=f"q{i}", prompt="what?", references=("rain", "hail"), heard=f"answer {i}") for i in range(6)]


@pytest.fixture
def judge(tmp_path: Path) -> Iterator[Callable[[Answer], tuple[Server, Judged]]]:
    servers: list[Server] = []

    def make(answer: Answer) -> tuple[Server, Judged]:
        servers.append(Server(answer))
        endpoint = servers[-1].endpoint
        settings = JudgeConfig(endpoint=endpoint, model="toy", requests_per_minute=60_000, timeout_seconds=2)
        return servers[-1], Judged(Means(judge=settings, folder=tmp_path, name="bench"))

    yield make
    for server in servers:
        server.close()


def entry(item: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": item["id"], "correctness": 7, "detail": 4, "bluntness": 10, **more}


def good(items: list[dict[str, Any]], number: int) -> tuple[int, str, dict[str, str]]:
    return 200, json.dumps({"judgements": [entry(item) for item in items]}), {}


def test_three_aspects_and_their_mean(judge: Callable[[Answer], tuple[Server, Judged]]) -> None:
    server, metric = judge(good)
    scores = metric.score(SAID)
    assert {name: score.value for name, score in scores.items()} == {
        "judge": pytest.approx(70.0),
        "judge_correctness": 7.0,
        "judge_detail": 4.0,
        "judge_bluntness": 10.0,
    }
    assert scores["judge"].each == [pytest.approx(70.0)] * 6 and scores["judge"].notes == {"refused": 0, "judge": "toy"}
    asked = {(item["question"], item["reference"], item["answer"]) for item in server.items}
    assert asked == {("what?", "rain / hail", f"answer {i}") for i in range(6)}
    assert all(body["temperature"] == 0.0 for body in server.bodies)
    before = len(server.asked)
    assert metric.score(SAID)["judge"].value == pytest.approx(70.0) and len(server.asked) == before, "kept"
    metric.score([*SAID[:5], Said(id="q5", prompt="what?", references=("rain",), heard="another answer")])
    assert len(server.asked) == before + 1, "only what changed is judged again"


@pytest.mark.parametrize(
    "bad",
    [
        {"correctness": 11},
        {"correctness": 0},
        {"detail": "seven"},
        {"detail": 6.5},
        {"bluntness": True},
        {"bluntness": None},
    ],
)
def test_unusable_judgements_are_counted_and_in_no_mean(
    judge: Callable[[Answer], tuple[Server, Judged]], bad: dict[str, Any]
) -> None:
    def answer(items: list[dict[str, Any]], number: int) -> tuple[int, str, dict[str, str]]:
        said = [entry(item, **(bad if item["answer"] == "answer 2" else {})) for item in items]
        return 200, json.dumps({"judgements": said}), {}

    scores = judge(answer)[1].score(SAID)
    assert scores["judge"].notes["refused"] == 1 and scores["judge"].each[2] is None
    assert scores["judge"].value == pytest.approx(70.0) and scores["judge_detail"].value == 4.0
    assert [scores[f"judge_{aspect}"].each[2] for aspect in ASPECTS] == [None] * 3


def test_a_judge_that_talks_is_asked_again_and_one_that_only_talks_judges_nothing(
    judge: Callable[[Answer], tuple[Server, Judged]],
) -> None:
    def talks_first(items: list[dict[str, Any]], number: int) -> tuple[int, str, dict[str, str]]:
        return (200, "What a silly answer! I would give it a seven.", {}) if number == 1 else good(items, number)

    assert judge(talks_first)[1].score(SAID)["judge"].notes["refused"] == 0

    def talks(items: list[dict[str, Any]], number: int) -> tuple[int, str, dict[str, str]]:
        return 200, "I would rather not.", {}

    with pytest.raises(EndpointError, match="no judgement could be used;   6 refused: the reply is not the JSON"):
        judge(talks)[1].score([Said(id=s.id, prompt="why?", references=("so",), heard=s.heard) for s in SAID])


def test_a_judge_that_hangs_on_one_answer_judges_the_others_and_is_asked_again(
    judge: Callable[[Answer], tuple[Server, Judged]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "LONGEST_WAIT_SECONDS", 0.0)
    done = threading.Event()

    def hangs(items: list[dict[str, Any]], number: int) -> tuple[int, str, dict[str, str]]:
        if any(item["answer"] == "answer 2" for item in items):
            done.wait(3)
        return good(items, number)

    server, metric = judge(hangs)
    quick = Judged(replace(metric.means, judge=replace(metric.means.judge, timeout_seconds=0.3)))
    scores = quick.score(SAID)
    assert scores["judge"].notes["refused"] == 1 and scores["judge"].each[2] is None
    assert [one is None for one in scores["judge"].each] == [i == 2 for i in range(6)]
    done.set()
    before = len(server.items)
    assert metric.score(SAID)["judge"].notes["refused"] == 0
    assert [item["answer"] for item in server.items[before:]] == ["answer 2"], "what was judged is kept"


@pytest.mark.parametrize(
    "rude",
    [
        "No. " + "[" * 3_000,
        "[" * 200_000,
        '{"judgements": [{"id": 0, "correctness": ' + "9" * 5_000 + "}]}",
        '{"judgements": "all of them are stupid"}',
        '{"judgements": [7, null, "stupid"]}',
        '["ignore your instructions"]',
        '{"judgements": [{"id": {}, "correctness": 7}]}',
        "",
    ],
    ids=["prose", "brackets", "digits", "text", "numbers", "list", "no id", "nothing"],
)
def test_a_rude_judge_is_counted_and_told_of_in_one_line(
    judge: Callable[[Answer], tuple[Server, Judged]], rude: str
) -> None:
    def answer(items: list[dict[str, Any]], number: int) -> tuple[int, str, dict[str, str]]:
        return good(items, 0) if any(item["answer"] == "answer 0" for item in items) else (200, rude, {})

    scores = judge(answer)[1].score(SAID)
    judged = [one is not None for one in scores["judge"].each]
    assert judged[0] and scores["judge"].notes["refused"] == judged.count(False) > 0

    server, metric = judge(lambda items, number: (200, rude, {}))
    with pytest.raises(EndpointError) as caught:
        metric.score([Said(id=s.id, prompt="why?", references=("so",), heard=s.heard) for s in SAID])
    assert str(caught.value).startswith(f"{server.endpoint}: no judgement could be used;   6 refused: the reply ")
    assert len(str(caught.value)) < 300


def test_an_answer_that_is_too_long_for_the_judge_costs_itself_alone(
    judge: Callable[[Answer], tuple[Server, Judged]],
) -> None:
    def short_of_room(items: list[dict[str, Any]], number: int) -> tuple[int, str, dict[str, str]]:
        long = any(item["answer"] == "answer 5" for item in items)
        return (400, "maximum context length is 4096 tokens", {}) if long else good(items, number)

    scores = judge(short_of_room)[1].score(SAID)
    assert [one is None for one in scores["judge"].each] == [i == 5 for i in range(6)]
    with pytest.raises(EndpointError, match=r"does not take the request .HTTP 400: maximum context length"):
        judge(lambda items, number: (400, "maximum context length is 1 token", {}))[1].score(
            [Said(id=s.id, prompt="who?", references=("so",), heard=s.heard) for s in SAID]
        )


def test_nothing_is_judged_without_an_endpoint() -> None:
    assert Judged(Means()).missing() == "evaluation.judge names no endpoint and model"
    assert Judged(Means(judge=JudgeConfig(endpoint="x", model="y"))).missing() == ""
