"""A model's first answers, by what the process that tries it says."""

import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import mlflow.pyfunc
import pytest

from megatron_af.release import trial
from megatron_af.release.trial import LOADING_SECONDS, main, try_loading


def answer(monkeypatch: pytest.MonkeyPatch, code: int = 0, out: str = "", err: str = "") -> list[Any]:
    asked: list[Any] = []

    def run(command: list[str], **settings: Any) -> Any:
        asked.append((command, settings))
        return SimpleNamespace(returncode=code, stdout=out, stderr=err)

    monkeypatch.setattr(trial.subprocess, "run", run)
    return asked


def test_the_second_answers_time_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answer(monkeypatch, out='loading\n{"seconds": 1.5, "answers": ["a dog"]}\n')
    assert try_loading("sqlite:///x", "models:/m-1") == (1.5, "")
    (command, settings), *_ = asked
    assert command[1:] == ["-m", "megatron_af.release.trial", "models:/m-1"]
    assert settings["env"]["MLFLOW_TRACKING_URI"] == "sqlite:///x" and settings["timeout"] == LOADING_SECONDS


@pytest.mark.parametrize(
    ("said", "trouble"),
    [
        ({"out": '{"seconds": 1.5, "answers": ["a", null]}'}, "expected text, got None"),
        ({"code": 1, "err": "Traceback\nValueError: no such layer\n\n"}, "ValueError: no such layer"),
        ({"code": 137}, "exit code 137"),
    ],
)
def test_what_went_wrong_is_one_line(monkeypatch: pytest.MonkeyPatch, said: dict[str, Any], trouble: str) -> None:
    answer(monkeypatch, **said)
    assert try_loading("", "x")[1] == trouble


def test_a_model_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **settings: Any) -> Any:
        raise subprocess.TimeoutExpired(command, settings["timeout"])

    monkeypatch.setattr(trial.subprocess, "run", run)
    assert try_loading("", "x") == (0.0, "it did not load and answer within 900 s")


def test_the_process_warms_up_and_answers_its_own_example(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []

    def predict(example: Any) -> list[str]:
        asked.append(example)
        return [f"answer {len(asked)}"]

    model = SimpleNamespace(input_example="example", predict=predict)
    monkeypatch.setattr(mlflow.pyfunc, "load_model", lambda source: asked.append(source) or model)
    monkeypatch.setattr(sys, "argv", ["trial", "models:/m-1"])
    main()
    said = json.loads(capsys.readouterr().out)
    assert asked == ["models:/m-1", "example", "example"] and said["answers"] == ["answer 3"] and said["seconds"] >= 0
