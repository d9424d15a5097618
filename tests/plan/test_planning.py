"""A run's plan: every stage, its verdict and what would be better; told in tables, sentences and numbers."""

import dataclasses
import json
import re
from typing import Any

import pytest
from rich.console import Console

from megatron_af.config import ConfigError, LoRAConfig
from megatron_af.plan.gpu import read_gpu
from megatron_af.plan.planning import plan_run
from megatron_af.plan.report import record, tables, verdicts
from tests.plan.sized import runnable


def test_a_plan_is_told_whole() -> None:
    config = runnable(pipeline=2)
    planned, refused = plan_run(config, ["stage"], read_gpu("cpu"), 4, {}, most=2)
    console = Console(width=120, record=True, file=None)
    with console.capture() as shown:
        console.print(*tables(planned))
    for word in ("weights", "bubble", "GPU hours", "the fastest that fit", "curriculum"):
        assert word in shown.get()
    assert refused == []
    told = json.loads(json.dumps(record(planned)))["stages"]["stage"]
    assert told["fits"] and told["needed"] == pytest.approx(sum(told["memory"].values()))
    assert told["step_seconds"] == pytest.approx(sum(told["seconds"].values()))
    assert told["layers"] == "2-2" and len(told["best"]) == 2
    assert any("as long as the stage allows" in line for line in verdicts(planned))


def test_what_does_not_fit_has_a_verdict_with_numbers_and_a_way() -> None:
    config = runnable()
    whole = plan_run(config, ["stage"], read_gpu("cpu"), 1, {}, most=0)[0][0].plan.needed
    small = dataclasses.replace(read_gpu("cpu"), memory_gib=0.9 * whole / 2**30)
    planned, _ = plan_run(config, ["stage"], small, 1, {}, most=0)
    told = "\n".join(verdicts(planned))
    assert "stage does not fit: a rank of pipeline stage 0 needs" in told and "GiB at the moment '" in told
    assert "nearest that fits: " in told


def test_a_model_that_fits_nowhere_says_so() -> None:
    tiny_gpu = dataclasses.replace(read_gpu("cpu"), memory_gib=0.001)
    told = "\n".join(verdicts(plan_run(runnable(), ["stage"], tiny_gpu, 2, {}, most=0)[0]))
    assert "no layout of 2 GPUs fits; the least takes" in told and "take more GPUs, larger ones" in told


def test_a_stage_that_cannot_be_laid_as_it_is_configured_is_planned_with_the_fewest_changes() -> None:
    (planned,), _ = plan_run(runnable(), ["stage"], read_gpu("cpu"), 8, {}, most=0)
    told = "\n".join(verdicts([planned]))
    assert planned.plan.fits and "cannot be laid on 8 GPUs as it is configured; --gpus 4 works" in told
    assert "\n  planned with parallel." in told


def test_gpus_that_no_layout_can_share_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"cannot be laid on 512 GPUs as it is configured; --gpus 4 works"):
        plan_run(runnable(), ["stage"], read_gpu("cpu"), 512, {}, most=0)


def test_a_stage_that_no_layout_can_share_leaves_the_others() -> None:
    config = runnable()
    small = dataclasses.replace(config.curriculum["stage"], global_batch_samples=2)
    config = dataclasses.replace(config, curriculum={**config.curriculum, "small": small})
    planned, refused = plan_run(config, ["stage", "small"], read_gpu("cpu"), 64, {}, most=0)
    assert [one.name for one in planned] == ["stage"]
    assert len(refused) == 1 and refused[0].startswith("stage small of tiny cannot be laid on 64 GPUs")


def test_a_model_that_cannot_be_built_is_refused() -> None:
    config = runnable()
    lm = dataclasses.replace(config.model.lm, heads=5)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, lm=lm))
    with pytest.raises(ConfigError, match=r"cannot be planned[^$]*model\.lm\.heads"):
        plan_run(config, ["stage"], read_gpu("cpu"), 1, {}, most=0)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"pack_tokens": 511}, "pack_tokens = 511: the longest sample has 512 tokens"),
        ({"trainable": ("encodr.*",)}, r"pattern 'encodr\.\*' matches no parameter"),
        ({"objective": "contrastiv"}, "objective = "),
        ({"lora": LoRAConfig()}, "its language model must be frozen"),
        ({"max_windows": 361}, "at most 3600 s long"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_training_refuses_has_no_plan_that_fits(changes: dict[str, Any], told: str) -> None:
    config = runnable()
    stage = dataclasses.replace(config.curriculum["stage"], **changes)
    config = dataclasses.replace(config, curriculum={**config.curriculum, "other": stage})
    planned, (refused,) = plan_run(config, ["stage", "other"], read_gpu("cpu"), 4, {}, most=0)
    assert [one.name for one in planned] == ["stage"]
    assert refused.startswith("stage other of tiny cannot be trained") and re.search(told, refused)
