"""No rank holds the state of a ZeRO-1 optimizer whole, and together they write every parameter once."""

from collections import Counter

import pytest
import torch

from megatron_af.model import build
from megatron_af.parallel import groups as process_groups
from megatron_af.parallel.device import current_device
from megatron_af.train.objectives.answer_learner import AnswerLearner
from megatron_af.train.trainable import select
from megatron_af.train.zero1_state import held, held_ranges, parts_of, whole_states
from tests import tiny
from tests.distributed import run_distributed

pytestmark = pytest.mark.slow
RANKS = 4


def states(rank: int, world_size: int) -> tuple[dict[str, torch.Tensor], int, int]:
    """After a step: what this rank writes of the first moments; elements it writes and elements there are."""
    config = tiny.config(distributed_optimizer=True)
    groups = process_groups.initialize(config.parallel, config.seed)
    model = build(config, tiny.VOCABULARY, current_device())
    tiny.fill(model)
    stage = config.curriculum["stage"]
    select(model.named_parameters(), stage)
    learner = AnswerLearner(config, stage, model, groups, current_device().torch)
    learner.forward_backward(tiny.step_batch(0, dp_rank=rank, dp_size=RANKS, mp_rank=0, mp_size=1))
    learner.optimizer.step_checked()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for member in learner.optimizer.chained_optimizers:
        for inner in member.optimizer.state.values():
            inner.pop("step", None)
    written: dict[str, torch.Tensor] = {}
    total = 0
    for member in learner.optimizer.chained_optimizers:
        total += sum(parameter.numel() for parameter, _ in held_ranges(member))
        for parameter, (begin, end), _ in held(member):
            assert len(parts_of(member, parameter)["exp_avg"]) == end - begin
            assert "master" not in parts_of(member, parameter), "in float32 a weight is its own"
        for parameter, tensors in whole_states(member):
            written[names[id(parameter)]] = tensors["exp_avg"]
            parts = parts_of(member, parameter)
            copied = any(x.data_ptr() != parts[name].data_ptr() for name, x in tensors.items())
            assert copied == (parts["exp_avg"].numel() < parameter.numel()), "what lies here whole is not copied"
    return written, sum(x.numel() for x in written.values()), total


def test_every_parameter_is_written_once_by_who_holds_most_of_it() -> None:
    found = run_distributed(states, RANKS)
    times = Counter(name for written, _, _ in found for name in written)
    assert set(times.values()) == {1}
    total = found[0][2]
    assert sum(elements for _, elements, _ in found) == total
    assert max(elements for _, elements, _ in found) < 0.5 * total, "shares are even, up to the largest parameter"
    joined = {name: x for written, _, _ in found for name, x in written.items()}
    (alone, _, _), = run_distributed(states_alone, 1)
    for name, expected in alone.items():
        torch.testing.assert_close(joined[name], expected, atol=1e-6 + 1e-5 * float(expected.abs().max()), rtol=0)


def states_alone(rank: int, world_size: int) -> tuple[dict[str, torch.Tensor], int, int]:
    global RANKS
    RANKS = 1
    return states(rank, world_size)
