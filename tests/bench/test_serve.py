"""What a crowd's clients met is told; a short crowd of a real server gets what each gets alone."""

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from megatron_af.bench import serve

ROOT = Path(__file__).parents[2]
BENCH = [sys.executable, str(ROOT / "tools/bench.py")]


class Fake:
    """Serves the answers in turn; where one is an error, it raises it."""

    def __init__(self, *answers: Any) -> None:
        self._answers, self.left = list(answers), 0

    def ask(self, body: Mapping[str, Any]) -> serve.Said:
        answer: Any = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[no-any-return]

    def stream(self, body: Mapping[str, Any], *, leave: bool = False) -> tuple[serve.Said | None, float]:
        self.left += leave
        return (None if leave else self.ask(body)), 0.5


def crowd(fake: Fake, alone: serve.Said = (200, ["a dog"])) -> serve._Crowd:
    return serve._Crowd(fake, [{}], [alone], until=time.monotonic() + 60)  # type: ignore[arg-type]


def test_what_is_neither_an_answer_as_alone_nor_429_is_a_failure() -> None:
    told = crowd(Fake((200, ["a dog"]), (429, "full"), (500, "it failed"), (200, ["a cat"])))
    assert [told._one(0, streamed=streamed, leave=False) for streamed in (True, False, False, False)] == [
        True, False, True, True
    ]  # fmt: skip
    assert told.failures == ["request 0: status 500: it failed"]
    assert told.different == ["request 0: expected ['a dog'], got ['a cat']"]
    assert told.statuses == {"200": 2, "429": 1, "500": 1} and len(told.latency) == 2 and told.first_piece == [0.5]


def test_an_error_that_comes_alone_too_is_none_but_its_sentence_is_compared() -> None:
    told = crowd(Fake((400, "too long"), (400, "too loud")), alone=(400, "too long"))
    assert told._one(0, streamed=False, leave=False) and told._one(0, streamed=False, leave=False)
    assert told.failures == [] and told.different == ["request 0: expected too long, got too loud"]
    assert told.latency == []


def test_a_server_that_is_gone_is_a_failure_and_who_leaves_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    told = crowd(Fake(ConnectionResetError("gone"), (200, ["a dog"])))
    monkeypatch.setattr(serve, "LEAVES", 2)

    def slept(seconds: float) -> None:
        if len(told.statuses) == 2:  # "none" and "200" are there
            told.until = 0

    monkeypatch.setattr(serve.time, "sleep", slept)
    fake: Any = told.server
    fake._answers += [ConnectionResetError("gone")]
    told.client(1)
    assert told.failures == ["request 0: ConnectionResetError: gone"] * 2
    assert told.left == fake.left == 1


def test_requests_have_every_form_and_the_table_every_figure() -> None:
    asked = serve.requests("demo")
    parts = [part["type"] for body in asked for turn in body["messages"] if isinstance(turn["content"], list)
             for part in turn["content"]]  # fmt: skip
    assert parts.count("input_audio") >= 8 and {"n", "temperature", "stop", "logprobs"} <= set().union(*asked)
    result = {
        "clients": 2, "seconds": 1.0, "requests": {"200": 3, "429": 1}, "failures": [], "different": ["x"], "left": 1,
        "held": 0, "latency": {"p50": 1.0, "p95": 2.0}, "first piece": {"p50": 1.0, "p95": 2.0}, "tokens/s": 3.0,
        "rows together": 2.0, "MiB": {"start": 1, "middle": 2, "end": 3, "most": 3},
    }  # fmt: skip
    (table,) = serve.tables(result)
    assert table.row_count == 11 and "1: x" in list(table.columns[1].cells)


@pytest.mark.slow
def test_an_option_of_another_subject_is_refused() -> None:
    done = subprocess.run([*BENCH, "step", "--clients", "3"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--clients: step does not take it" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_short_crowd(tmp_path: Path) -> None:
    file = tmp_path / "serve.json"
    command = [*BENCH, "serve", "--clients", "24", "--seconds", "8", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(file.read_text())
    assert result["failures"] == result["different"] == [] and result["held"] == 0
    assert result["requests"]["200"] > 10 and result["requests"]["400"] > 0, result["requests"]
    assert result["requests"]["429"] > 0 and result["left"] > 0 and result["rows together"] > 2
    assert result["tokens/s"] > 0 and result["latency"]["p50"] <= result["latency"]["p95"]
    assert result["MiB"]["most"] >= result["MiB"]["end"] > 100


@pytest.mark.slow
def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    command = [*BENCH, "serve", "--model", str(tmp_path / "gone")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "did not start" in done.stderr and "not there" in done.stderr, done.stderr
