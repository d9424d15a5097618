"""The answering objective before a model is built: its parameters' names, its parts, what keeps it from running."""

from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import pytest

from megatron_af.config import Config, LoRAConfig
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
@pytest.mark.parametrize(
    "settings",
    [{}, {"interval": 2}, {"tied": False}, {"lora": LoRAConfig(targets=("linear_proj", "linear_fc1"), rank=2)}],
    ids=["plain", "interval", "untied", "adapters"],
)
def test_the_patterns_are_those_of_the_models_parameters(settings: dict[str, Any]) -> None:
    """Each parameter has one, and none is of nothing."""
    (found,) = run_distributed(names, 1, settings)
    config = tiny.config(**settings)
    patterns = Answer().parameters(config)
    matched = {name: [p for p in patterns if fnmatchcase(name, p)] for name in found}
    assert all(len(matching) == 1 for matching in matched.values()), matched
    assert {p for matching in matched.values() for p in matching} == set(patterns)
    assert {part_of(name) for name in found} == set(Answer().parts_of(config.curriculum["stage"]))


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


def with_lora(earlier: LoRAConfig | None, lora: LoRAConfig | None, **changes: Any) -> Config:
    config = tiny.config(trainable=tiny.ADAPTERS)
    stage = replace(config.curriculum["stage"], max_text_tokens=64)
    stages = {"before": replace(stage, lora=earlier), "stage": replace(stage, lora=lora, **changes)}
    return replace(config, curriculum=stages)


OTHER = replace(tiny.LORA, alpha=9.0)


@pytest.mark.parametrize(
    ("earlier", "lora", "changes", "told"),
    [
        (None, tiny.LORA, {}, None),
        (tiny.LORA, tiny.LORA, {"entry": {"all": "before"}}, None),
        (None, tiny.LORA, {"entry": {"all": "before"}}, None),
        (tiny.LORA, replace(tiny.LORA, dropout=0.1), {"entry": {"all": "before"}}, None),
        (tiny.LORA, tiny.LORA, {"entry": {"all": "before"}, "trainable": tiny.FROZEN_LM}, None),
        (None, tiny.LORA, {"trainable": ("lm.*",)}, "must be frozen, but trainable takes in lm.decoder.layers.0.input"),
        (None, tiny.LORA, {"trainable": ("lm.*.lora.*", "lm.*.final*")}, "takes in lm.decoder.final_layernorm.weight;"),
        (None, tiny.LORA, {"trainable": tiny.FROZEN_LM}, "add 'lm.*.lora.*' to curriculum.stage.trainable"),
        (None, replace(tiny.LORA, rank=65), {}, "lora.rank = 65: the linears have no higher rank than 64"),
        (tiny.LORA, None, {"entry": {"lm": "before"}}, "entry.lm = before: its language model has adapters"),
        (tiny.LORA, None, {"entry": {"all": "before"}}, "entry.all = before: its language model has adapters"),
        (tiny.LORA, OTHER, {"entry": {"all": "before"}}, "has other targets, rank or alpha than curriculum.before"),
        (None, tiny.LORA, {"entry": {"lora": "before"}}, "entry.lora = before: that stage has no lora"),
    ],
)
def test_adapters_stand_on_a_frozen_language_model_and_are_what_they_were(
    earlier: LoRAConfig | None, lora: LoRAConfig | None, changes: dict[str, Any], told: str | None
) -> None:
    found = list(Answer().problems(with_lora(earlier, lora, **changes), "stage"))
    assert [told in problem for problem in found] == [True] if told else not found, found


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
