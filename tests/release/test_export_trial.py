"""Before a version may be the champion, its exported folder has to answer as it does, in a stranger's process."""

import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_af.config import Config
from megatron_af.release import export_trial
from megatron_af.release.export_trial import requests, try_export
from megatron_af.runs.bundle import make_release
from tests.trained_run import trained_run


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config: Config = trained_run(tmp_path_factory.mktemp("trial"), "demo", seed=1)
    return make_release(config, "stage")


@pytest.mark.slow
def test_a_release_answers_alike_and_leaves_nothing(release: Path) -> None:
    assert try_export(release, questions=5) == ""
    assert [folder.name for folder in release.parent.iterdir()] == [release.name]


@pytest.mark.slow
def test_one_in_half_precision_is_exported_and_compared_too(release: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs/half"
    shutil.copytree(release, run / "releases/half")
    settings = run / "releases/half/config.yaml"
    settings.write_text(settings.read_text().replace("precision: fp32", "precision: bf16"))
    assert "precision: bf16" in settings.read_text()
    assert try_export(run / "releases/half", questions=3) == ""


@pytest.mark.slow
def test_a_release_that_cannot_be_read_is_named(release: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(release, broken)
    (broken / "tokenizer/tokenizer.json").unlink()
    assert "it cannot be exported and asked: " in try_export(broken, questions=1)


SAID = ["a dog", "rain", "nothing"]


@pytest.mark.parametrize(
    ("stranger", "trouble"),
    [
        ({"stdout": json.dumps(SAID)}, ""),
        (
            {"stdout": json.dumps(["a dog", "wind", "hail"])},
            "2 of 3 answers differ once exported, the first: expected 'rain', got 'wind'",
        ),
        ({"returncode": 1, "stderr": "Traceback\nKeyError: 'lm'\n"}, "does not load or answer: KeyError: 'lm'"),
        ({"returncode": 137}, "does not load or answer: exit code 137"),
    ],
)
def test_what_is_different_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stranger: dict[str, Any], trouble: str
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **settings: Any) -> Any:
        commands.append(command)
        if "-P" in command:
            assert "PYTHONPATH" not in settings["env"] and settings["input"] == "[]"
            return SimpleNamespace(**{"returncode": 0, "stdout": "", "stderr": ""} | stranger)
        (Path(command[4]) / "chats.json").write_text("[]")
        return SimpleNamespace(returncode=0, stdout=f"loading\n{json.dumps(SAID)}\n", stderr="")

    monkeypatch.setenv("PYTHONPATH", "somewhere")
    monkeypatch.setattr(export_trial.subprocess, "run", run)
    release = tmp_path / "release"
    found = try_export(release, questions=3)
    assert found.endswith(trouble) and bool(found) is bool(trouble)
    assert commands[0][1:4] == ["-m", "megatron_af.release.export_trial", str(release)] and len(commands) == 2
    assert not list(tmp_path.iterdir())


def test_a_model_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run(command: list[str], **settings: Any) -> Any:
        raise subprocess.TimeoutExpired(command, settings["timeout"])

    monkeypatch.setattr(export_trial.subprocess, "run", run)
    assert try_export(tmp_path / "release", 1).endswith("not done within 900 s")


def test_questions_are_about_recordings_of_several_lengths_and_about_none(tmp_path: Path) -> None:
    asked = requests(tmp_path, 6)
    assert len({Path(request["audio"]).stat().st_size for request in asked[:-1]}) == 5
    assert "audio" not in asked[-1] and len({request["prompt"] for request in asked}) > 3
