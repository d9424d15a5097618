"""Calls and bytes of collectives are counted in training steps, and are what docs/parallelism.md says."""

import sys
from collections import Counter
from types import FrameType
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megatron_af.config import Config
from megatron_af.model import build
from megatron_af.parallel import groups as process_groups
from megatron_af.parallel.device import current_device
from megatron_af.plan.case import Case
from megatron_af.plan.gpu import read_gpu
from megatron_af.plan.load import load_of
from megatron_af.plan.traffic import Traffic, traffic
from megatron_af.train.objectives.answer_learner import AnswerLearner
from megatron_af.train.trainable import select
from tests import tiny
from tests.distributed import run_distributed
from tests.plan.sized import ALIGN, WHOLE_LM, of_family, sized

KINDS = {
    "allreduce_": "all-reduce",
    "allreduce_coalesced_": "all-reduce",
    "_allgather_base_": "all-gather",
    "allgather_into_tensor_coalesced_": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
    "reduce_scatter_tensor_coalesced_": "reduce-scatter",
    "send": "send",
}
FEW_NUMBERS = {"_totals", "get_grad_norm_fp32", "finalize_model_grads"}
"""Functions that sum a few numbers of the whole step."""


class Wire(TorchDispatchMode):
    """Counts the collectives of more than one rank: (kind, ranks) -> calls, and bytes of the whole tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[tuple[str, int]] = Counter()
        self.bytes: Counter[tuple[str, int]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("c10d::")
        if func.namespace == "c10d" and name in KINDS and not _asked_by(FEW_NUMBERS):
            group = next(each for each in args if isinstance(each, torch.ScriptObject) and "ProcessGroup" in str(each))
            sizes = [leaf.nbytes for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
            key = KINDS[name], 2 if name == "send" else dist.ProcessGroup.unbox(group).size()
            whole = sum(sizes)
            if key[0] in ("all-gather", "reduce-scatter"):  # a rank's part is among the tensors
                whole -= round(whole / (key[1] + 1))
            self.calls[key] += 1
            self.bytes[key] += whole
        return func(*args, **(kwargs or {}))


def _asked_by(names: set[str]) -> bool:
    """The nearest function of megatron-core or ours is one of these."""
    frame: FrameType | None = sys._getframe(2)
    while frame and "/torch/" in frame.f_code.co_filename:
        frame = frame.f_back
    while frame and "/megatron" not in frame.f_code.co_filename:
        frame = frame.f_back
    return frame is not None and frame.f_code.co_name in names


CASES: dict[str, tuple[int, Config]] = {
    "TP 2": (2, sized(tiny.config(WHOLE_LM, tensor=2))),
    "TP 2, frozen language model": (2, sized(tiny.config(ALIGN, tensor=2))),
    "TP 2, sequence": (2, sized(tiny.config(WHOLE_LM, tensor=2, sequence=True))),
    "TP 2, sequence, frozen language model": (2, sized(tiny.config(ALIGN, tensor=2, sequence=True))),
    "TP 2, layers computed again": (2, sized(tiny.config(WHOLE_LM, tensor=2, recompute="full"))),
    "PP 2": (2, sized(tiny.config(WHOLE_LM, pipeline=2))),
    "PP 2, two chunks each": (2, sized(tiny.config(WHOLE_LM, pipeline=2, virtual_pipeline=2))),
    "DP 2": (2, sized(tiny.config(WHOLE_LM))),
    "DP 2, ZeRO-1": (2, sized(tiny.config(WHOLE_LM, distributed_optimizer=True, overlap=True))),
    "PP 4, OPT": (4, of_family(sized(tiny.config(WHOLE_LM, pipeline=4)), "opt")),
    "TP 2, sequence, OPT": (2, of_family(sized(tiny.config(WHOLE_LM, tensor=2, sequence=True)), "opt")),
    "TP 2, PP 2": (4, sized(tiny.config(tiny.FROZEN_LM, tensor=2, pipeline=2))),
    "TP 2, DP 2": (4, sized(tiny.config(WHOLE_LM, tensor=2, sequence=True, distributed_optimizer=True))),
}


def step(rank: int, world: int, config: Config) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """Counted and told: (kind, ranks) -> calls, bytes."""
    from megatron.core import parallel_state

    stage = config.curriculum["stage"]
    groups = process_groups.initialize(config.parallel, config.seed)
    model = build(config, tiny.VOCABULARY, current_device())
    tiny.fill(model)
    select(model.named_parameters(), stage)
    learner = AnswerLearner(config, stage, model, groups, torch.device("cpu"))
    shares = {"dp_rank": groups.data_rank, "dp_size": groups.data_size}
    batch = tiny.step_batch(0, **shares, mp_rank=groups.model_rank, mp_size=groups.model_size)
    with Wire() as wire:
        learner.forward_backward(batch)
        learner.optimizer.step_checked()
    at = parallel_state.get_pipeline_model_parallel_rank()
    process_groups.destroy()
    case = Case(config=config, gpu=read_gpu("cpu"), world=world)
    told: dict[Any, Any] = {}
    for each in traffic(case, at, load_of(batch.audio, batch.text, config.model.encoder.tokens_per_window)):
        calls, bytes_ = told.get((each.kind, each.ranks), (0.0, 0.0))
        told[each.kind, each.ranks] = calls + each.calls, bytes_ + each.bytes
    return {key: (wire.calls[key], wire.bytes[key]) for key in wire.calls if key[1] > 1}, told


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_collectives_of_a_step_are_the_formulas(name: str) -> None:
    world, config = CASES[name]
    padding = 4096 if config.parallel.distributed_optimizer else 0  # its buffers are made to be cut evenly
    for counted, told in run_distributed(step, world, config):
        assert counted.keys() == told.keys()
        for key, (calls, bytes_) in counted.items():
            assert told[key] == (calls, pytest.approx(bytes_, abs=padding)), key


def test_a_ring_sends_all_parts_but_one() -> None:
    def sent(kind: Any) -> float:
        return Traffic(why="", kind=kind, ranks=4, calls=1, bytes=100.0).sent

    assert [sent(kind) for kind in ("all-reduce", "all-gather", "reduce-scatter", "send")] == [150, 75, 75, 100]
