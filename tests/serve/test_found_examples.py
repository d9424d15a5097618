"""Examples come from an index of the model's own, which is named where there are several."""

from pathlib import Path
from typing import Any

import pytest

from megatron_af.config import Config
from megatron_af.inference.requests import BadRequest
from megatron_af.runs.bundle import INDEXES
from megatron_af.serve.found_examples import FoundExamples


class Near:
    """A retriever whose examples say what was asked of it."""

    made: list[str]

    def __init__(self, config: Config, dataset: str, opens: Any) -> None:
        self.dataset, self.closed = dataset, False

    def request(self, audio: Any, prompt: str, count: int) -> dict[str, Any]:
        return {"audio": audio, "prompt": prompt, "examples": [self.dataset] * count}

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setattr("megatron_af.retrieval.retriever.Retriever", Near)
    return Config(name="run", output=str(tmp_path))


def index(config: Config, name: str) -> None:
    folder = Path(config.output) / config.name / INDEXES / name
    folder.mkdir(parents=True)
    (folder / "index.json").write_text("{}")


def test_the_only_index_needs_no_name_and_is_read_once(config: Config) -> None:
    index(config, "train")
    found = FoundExamples(config)
    asked = [{"audio": "a.wav", "prompt": "what?", "id": 7}, {"audio": "b.wav", "prompt": None}]
    assert found.before(asked, 2, "") == [
        {"audio": "a.wav", "prompt": "what?", "id": 7, "examples": ["train"] * 2},
        {"audio": "b.wav", "prompt": "", "examples": ["train"] * 2},
    ]
    (near,) = found._retrievers.values()
    found.before(asked, 1, "train")
    assert list(found._retrievers.values()) == [near]
    found.close()
    assert near.closed and not found._retrievers  # type: ignore[attr-defined]


def test_an_index_that_was_built_again_is_another(config: Config) -> None:
    index(config, "train")
    found = FoundExamples(config)
    before = found.digest("")
    assert before == found.digest("train") and before.startswith("sha256:")
    (Path(config.output) / config.name / INDEXES / "train/index.json").write_text('{"rows": 2}')
    assert found.digest("train") != before
    with pytest.raises(BadRequest, match="got 'test'; it has train"):
        found.digest("test")


def test_several_indexes_and_none_are_told(config: Config) -> None:
    with pytest.raises(BadRequest, match="it has none: build one"):
        FoundExamples(config).before([], 1, "")
    index(config, "one")
    index(config, "two")
    with pytest.raises(BadRequest, match="got ''; it has one, two"):
        FoundExamples(config).before([], 1, "")
    with pytest.raises(BadRequest, match="got 'three'; it has one, two"):
        FoundExamples(config).before([], 1, "three")


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"audio": "a.wav", "history": [{"user": "x", "assistant": "y"}]}, "request 1: expected few_shot or history"),
        ({"audio": "a.wav", "examples": [1]}, "request 1: expected few_shot or examples"),
        ({"prompt": "what?"}, "request 1: audio: expected a recording"),
    ],
)
def test_what_cannot_have_examples_is_told(config: Config, request_: dict[str, Any], said: str) -> None:
    index(config, "train")
    with pytest.raises(BadRequest, match=said):
        FoundExamples(config).before([{"audio": "a.wav"}, request_], 1, "")
