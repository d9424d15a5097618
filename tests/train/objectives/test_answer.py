"""The answering objective before a model is built: its parameters' names, its parts, what keeps it from running."""

from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import pytest

from megatron_af.model import build
from megatron_af.parallel import groups as process_groups
from megatron_af.parallel.device import current_device
from megatron_af.train.objectives.answer import Answer
from megatron_af.train.trainable import part_of
from tests import tiny
from tests.distributed import run_distributed


def names(rank: int, world_size: int, settings: dict[str, Any]) -> list[str]:
    config = tiny.config(**settings)
    process_groups.initialize(config.parallel, config.seed)
    return [name for name, _ in build(config, tiny.VOCABULARY, current_device()).named_parameters()]


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"interval": 2}, {"tied": False}], ids=["plain", "interval", "untied"])
def test_the_patterns_are_those_of_the_models_parameters(settings: dict[str, Any]) -> None:
    """Each parameter has one, and none is of nothing."""
    (found,) = run_distributed(names, 1, settings)
    patterns = Answer().parameters(tiny.config(**settings))
    matched = {name: [p for p in patterns if fnmatchcase(name, p)] for name in found}
    assert all(len(matching) == 1 for matching in matched.values()), matched
    assert {p for matching in matched.values() for p in matching} == set(patterns)
    assert {part_of(name) for name in found} == set(Answer.parts)


def test_texts_longer_than_the_language_model_reads_are_refused() -> None:
    config = tiny.config()
    positions = config.model.lm.max_positions
    for tokens, problems in ((positions, 0), (positions + 1, 1)):
        stage = replace(config.curriculum["stage"], max_text_tokens=tokens)
        found = list(Answer().problems(replace(config, curriculum={"stage": stage}), "stage"))
        assert len(found) == problems
        assert all(f"curriculum.stage.max_text_tokens = {tokens}" in problem for problem in found)


def test_an_answer_must_have_places_where_they_are_learnt() -> None:
    config = tiny.config()
    positions, answer = config.model.lm.max_positions, config.evaluation.max_answer_tokens
    for family, tokens, problems in (
        ("opt", positions - answer, 0),
        ("opt", positions - answer + 1, 1),
        ("qwen2", positions - answer + 1, 0),
        ("nobody's", positions - answer + 1, 0),
    ):
        lm = replace(config.model.lm, family=family, kv_heads=config.model.lm.heads)
        stage = replace(config.curriculum["stage"], max_text_tokens=tokens)
        asked = replace(config, model=replace(config.model, lm=lm), curriculum={"stage": stage})
        found = list(Answer().problems(asked, "stage"))
        assert len(found) == problems
        assert all(f"evaluation.max_answer_tokens = {answer}" in problem for problem in found)


def test_only_fresh_rows_are_filled() -> None:
    filled: list[str] = []

    class Model:
        def start_added_rows_at_mean(self, group: object) -> None:
            filled.append("rows")

    class Groups:
        model = None

    Answer().fill(Model(), ["encoder", "xattn"], Groups())  # type: ignore[arg-type]
    assert filled == []
    Answer().fill(Model(), ["rows"], Groups())  # type: ignore[arg-type]
    assert filled == ["rows"]
