"""A stage's plan covers what 5,000 of its steps need, and no more than it must."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from megatron_af.config import Config
from megatron_af.plan import stage_plan
from megatron_af.plan.case import Case
from megatron_af.plan.gpu import read_gpu
from megatron_af.plan.lengths import GivenLengths, Lengths, lengths_of
from megatron_af.plan.load import Cut, Load, draw_steps
from megatron_af.plan.memory import memory
from megatron_af.plan.stage_plan import case_of, plan_stage
from megatron_af.runs.sizes import steps_of_passes
from tests import tiny

STEPS = 5_000
ROOM = 0.15


def mixed(config: Config) -> Lengths:
    given = GivenLengths(samples=10_000, seconds=(5, 10, 10, 10, 20, 30), tokens=tuple(range(24, 128, 8)))
    return lengths_of(config, "stage", {"stage": given})


@pytest.mark.parametrize(
    "changes",
    [{}, {"pack_tokens": 256}, {"micro_batch_samples": 4}, {"trainable": tiny.FROZEN_LM}],
    ids=["rows", "packed", "larger micro-batches", "the encoder learns"],
)
def test_5000_shuffled_steps_stay_within_the_plan_and_come_close(changes: dict[str, object]) -> None:
    config = tiny.config(("transform.*", "added_rows", "lm.*.xattn.*"))
    stage = dataclasses.replace(config.curriculum["stage"], **changes)  # type: ignore[arg-type]
    case = Case(config=dataclasses.replace(config, curriculum={"stage": stage}), gpu=read_gpu("cpu"), world=1)
    lengths = mixed(case.config)
    plan = plan_stage(case, lengths, ahead=0)
    steps = draw_steps(Cut.of(case.config, stage), lengths.samples, per_rank=case.per_copy, count=STEPS, seed=1)
    most = max(memory(case, 0, load, ahead=0).total for load in steps)
    assert most <= plan.needed <= (1 + ROOM) * most


def test_numbers_follow_from_each_other() -> None:
    config = tiny.config()
    plan = plan_stage(case_of(config, "stage", read_gpu("cpu"), 2), mixed(config))
    assert plan.steps == 10_000 / 8
    assert plan.days * 86_400 == pytest.approx(plan.steps * plan.time.total)
    assert plan.gpu_hours == pytest.approx(plan.days * 48)
    assert plan.samples_per_second_and_gpu == pytest.approx(8 / plan.time.total / 2)
    assert plan.fits and 0 < plan.utilisation < 1 and 0 < plan.encoder_share < 1


@pytest.mark.parametrize("budget", [0, 2_000, 20_000])
def test_the_steps_that_a_stage_states_are_its_steps_whatever_its_batch(budget: int) -> None:
    config = tiny.config()
    stage = dataclasses.replace(config.curriculum["stage"], batch_tokens=budget, steps=20)
    config = dataclasses.replace(config, curriculum={"stage": stage})
    plan = plan_stage(case_of(config, "stage", read_gpu("cpu"), 2), lengths_of(config, "stage", {}))
    assert plan.steps == 20
    assert (plan.samples == 8) == (budget == 0)


def test_passes_are_as_many_steps_as_training_makes_of_them() -> None:
    config = tiny.config()
    case = case_of(config, "stage", read_gpu("cpu"), 2)
    for samples in (1, 8, 11, 13):
        given = {"stage": GivenLengths(samples=samples)}
        rows = dict.fromkeys(case.stage.blend, samples)
        passes = dataclasses.replace(case.stage, passes=1.0, blend=dict.fromkeys(rows, 1 / len(rows)))
        assert plan_stage(case, lengths_of(config, "stage", given)).steps == steps_of_passes(passes, rows)


def test_what_does_not_fit_is_told() -> None:
    config = tiny.config()
    small = dataclasses.replace(read_gpu("cpu"), memory_gib=0.01)
    assert not plan_stage(case_of(config, "stage", small, 1), mixed(config)).fits


def test_layouts_that_make_the_same_steps_draw_them_once(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def drawing(cut: Cut, *arguments: Any, **named: Any) -> Iterator[Load]:
        drawn.append(cut)
        return draw_steps(cut, *arguments, **named)

    monkeypatch.setattr(stage_plan, "draw_steps", drawing)
    config = tiny.config()
    lengths = mixed(config)
    for recompute in ("none", "full"):
        for tensor in (1, 2):
            parallel = dataclasses.replace(config.parallel, tensor=tensor, recompute=recompute)
            plan_stage(case_of(dataclasses.replace(config, parallel=parallel), "stage", read_gpu("cpu"), 2), lengths)
    assert [cut.tensor for cut in drawn] == [1, 2]
    plan_stage(case_of(config, "stage", read_gpu("cpu"), 2), mixed(config))
    assert len(drawn) == 3, "of other lengths"
