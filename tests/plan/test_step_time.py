"""Time follows from operations, bytes and links; tests/plan/test_memory.py holds operations to torch's counter."""

import dataclasses

import pytest

from megatron_af.config.loading import load_config
from megatron_af.plan.case import Case
from megatron_af.plan.gpu import read_gpu
from megatron_af.plan.load import Cut, Load, Sample, made_of
from megatron_af.plan.stage_plan import case_of
from megatron_af.plan.step_time import COMMUNICATION, ENCODER, PARTS, step_time


def case(stage: str = "finetune", world: int = 8, **parallel: object) -> Case:
    config = load_config("configs/af2_3b.yaml")
    config = dataclasses.replace(config, parallel=dataclasses.replace(config.parallel, **parallel))  # type: ignore[arg-type]
    return case_of(config, stage, read_gpu("h100"), world)


def load(found: Case) -> Load:
    """A step whose samples are all as long as the stage lets them be."""
    stage = found.stage
    tokens = stage.questions_per_sample * stage.max_text_tokens
    sample = Sample(windows=(stage.max_windows,), tokens=tokens, segments=stage.questions_per_sample)
    return made_of([sample] * found.per_copy, Cut.of(found.config, stage))


def test_parts_make_the_step() -> None:
    found = case()
    time = step_time(found, load(found))
    assert set(time.parts) == set(PARTS) and min(time.parts.values()) >= 0
    assert time.total == pytest.approx(sum(time.parts.values()))
    assert time.share(*PARTS) == pytest.approx(1) and {*COMMUNICATION, *ENCODER} <= set(PARTS)


def test_a_frozen_encoder_has_no_way_back() -> None:
    frozen, learns = case("pretrain"), case("finetune")
    # its transformation layers still have one, so what is left is theirs
    back = {name: step_time(c, load(c)).parts for name, c in (("frozen", frozen), ("learns", learns))}
    ratio = {name: parts["encoder backward"] / parts["encode"] for name, parts in back.items()}
    assert ratio["frozen"] < 1.1 < 2 < ratio["learns"]


def test_a_bubble_shrinks_with_chunks_and_with_micro_batches() -> None:
    def bubble(**parallel: object) -> float:
        found = case(tensor=1, sequence=False, pipeline=4, **parallel)
        return step_time(found, load(found)).parts["bubble"]

    assert step_time(case(), load(case())).parts["bubble"] == 0
    assert bubble(virtual_pipeline=3) == pytest.approx(bubble() / 3, rel=0.1)
    found = case(tensor=1, sequence=False, pipeline=4)
    step = load(found)
    equal = 3 / step.micro_batches  # (p - 1) / m, Narayanan et al. 2021, section 2.2
    time = step_time(found, step)
    assert time.parts["bubble"] / time.parts["decoder"] == pytest.approx(equal, rel=0.1)


def test_tensor_parallelism_costs_links_and_recomputation_operations() -> None:
    alone, cut = case(tensor=1, sequence=False), case(tensor=2)
    seconds = [step_time(c, load(c)).parts["tensor parallel"] for c in (alone, cut)]
    assert seconds[0] == 0 < seconds[1]
    again = case(tensor=1, sequence=False, recompute="full")
    one, two = (step_time(c, load(c)) for c in (alone, again))
    assert 1.2 < two.parts["decoder"] / one.parts["decoder"] < 1.5
    assert one.operations == two.operations, "what is computed again is no useful work"


def test_gradients_are_reduced_behind_the_backward_pass() -> None:
    hidden, plain = case(world=64), case(world=64, overlap=False)
    assert step_time(hidden, load(hidden)).parts["reduce"] < step_time(plain, load(plain)).parts["reduce"]


def test_cached_features_spare_the_encoder() -> None:
    found = case("pretrain")
    cached = dataclasses.replace(load(found), encoded=0.0)
    assert step_time(found, cached).parts["encode"] < 0.5 * step_time(found, load(found)).parts["encode"]
