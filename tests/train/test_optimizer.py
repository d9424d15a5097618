"""Schedules, learning rates by group, and the refusal of gradients that are not finite."""

import math
from typing import Any

import pytest
import torch

from megatron_af.model import build
from megatron_af.parallel import groups as process_groups
from megatron_af.parallel.device import current_device
from megatron_af.train.objectives.answer_learner import AnswerLearner
from megatron_af.train.optimizer import NonFiniteGradient, build_schedule
from megatron_af.train.trainable import select
from tests import tiny
from tests.distributed import run_distributed

pytestmark = pytest.mark.slow


def objective_of(config: Any) -> tuple[Any, AnswerLearner]:
    stage = config.curriculum["stage"]
    groups = process_groups.initialize(config.parallel, config.seed)
    model = build(config, tiny.VOCABULARY, current_device())
    tiny.fill(model)
    select(model.named_parameters(), stage)
    return model, AnswerLearner(config, stage, model, groups, torch.device("cpu"))


PLAIN, ENCODER, GATE = (
    "lm.decoder.layers.0.mlp.linear_fc1.weight",
    "encoder.norm.weight",
    "lm.decoder.layers.0.xattn.gate_ffn",
)


def learning_rates(rank: int, world_size: int) -> list[dict[str, float]]:
    config = tiny.with_optimizer(
        tiny.config(),
        learning_rate=1.0,
        min_learning_rate=0.1,
        schedule="cosine",
        warmup_steps=4,
        gate_learning_rate_scale=10.0,
        encoder_learning_rate_scale=0.5,
        weight_decay=0.01,
    )
    model, objective = objective_of(config)
    schedule = build_schedule(config.curriculum["stage"].optimizer, 20, objective.optimizer)
    names = {id(p): n for n, p in model.named_parameters() if n in (PLAIN, ENCODER, GATE)}
    rates = []
    for _ in range(20):
        schedule.step(1)
        groups = [(g, names[id(p)]) for g in objective.optimizer.param_groups for p in g["params"] if id(p) in names]
        rates.append({name: group["lr"] for group, name in groups})
        assert all((group["weight_decay"] == 0.0) == (name != PLAIN) for group, name in groups)
    process_groups.destroy()
    return rates


def test_warm_up_then_cosine_with_rates_of_their_own_for_gates_and_encoder() -> None:
    rates = run_distributed(learning_rates, 1)[0]
    plain = [rate[PLAIN] for rate in rates]
    assert plain[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert plain[-1] == pytest.approx(0.1)
    middle = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 8 / 16))
    assert plain[11] == pytest.approx(middle)
    for rate in rates:
        assert rate[GATE] == pytest.approx(10 * rate[PLAIN])
        assert rate[ENCODER] == pytest.approx(0.5 * rate[PLAIN])


def poisoned(rank: int, world_size: int, gradient: float | None) -> tuple[str, bool]:
    """One rank alone gets a NaN to hear, or such a gradient of one number; all must refuse, with no weight changed."""
    model, objective = objective_of(tiny.config())
    batch = tiny.step_batch(0, dp_rank=rank, dp_size=2, mp_rank=0, mp_size=1)
    if rank == 1 and gradient is not None:
        weight = dict(model.named_parameters())[PLAIN]

        def spoil(grad: torch.Tensor) -> torch.Tensor:
            grad = grad.clone()
            grad.view(-1)[0] = gradient
            return grad

        weight.register_hook(spoil)
    elif rank == 1 and batch.audio.mel_WFM is not None:
        batch.audio.mel_WFM[0, 0, 0] = float("nan")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    objective.forward_backward(batch)
    try:
        objective.optimizer.step_checked()
    except NonFiniteGradient as error:
        return str(error), all(torch.equal(before[name], p) for name, p in model.named_parameters())
    return "", False


@pytest.mark.parametrize(
    ("gradient", "norm"), [(None, "nan"), (math.nan, "nan"), (math.inf, "inf"), (-math.inf, "inf"), (3e38, "inf")]
)
def test_gradients_that_are_not_finite_change_no_weight_on_any_rank(gradient: float | None, norm: str) -> None:
    for message, unchanged in run_distributed(poisoned, 2, gradient):
        assert f"gradient norm is {norm}" in message and unchanged


def norms(rank: int, world_size: int) -> tuple[float, float, int, int]:
    """The gradients' norm and what it is, how often the device is waited for, and how many gradients there are."""
    model, learner = objective_of(tiny.config())
    gradients = []
    for seed, (_, parameter) in enumerate(model.named_parameters()):
        if parameter.requires_grad:
            parameter.main_grad.normal_(generator=torch.Generator().manual_seed(seed))
            gradients.append(parameter.main_grad.flatten())
    learner.optimizer.prepare_grads()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        norm = float(learner.optimizer.get_grad_norm())
    waits = sum(event.name == "aten::_local_scalar_dense" for event in seen.events())
    return norm, float(torch.cat(gradients).double().norm()), waits, len(gradients)


def test_a_norm_waits_for_the_device_no_more_often_the_more_gradients_there_are() -> None:
    ((norm, wanted, waits, gradients),) = run_distributed(norms, 1)
    assert math.isclose(norm, wanted, rel_tol=1e-6)
    assert waits <= 4 < gradients
