"""The memory that is planned is what a step's tensors take, at its most, in every layout and kind of stage."""

import dataclasses
import gc
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from megatron_af.config import Config, LoRAConfig
from megatron_af.model import build
from megatron_af.parallel import groups as process_groups
from megatron_af.parallel.device import current_device
from megatron_af.plan.case import Case
from megatron_af.plan.gpu import read_gpu
from megatron_af.plan.load import load_of
from megatron_af.plan.memory import in_flight, memory, static
from megatron_af.plan.step_time import operations
from megatron_af.train.objectives.answer_learner import AnswerLearner
from megatron_af.train.trainable import select
from tests import tiny
from tests.distributed import run_distributed
from tests.plan.measured import LiveTensors, addmm_in_place
from tests.plan.sized import ALIGN, WHOLE_LM, of_family, sized

ERROR = 0.05
STATIC_ERROR = 0.02
"""Room for padding of buffers, tables of positions and masks of the encoder, which the plan leaves out."""
OPERATIONS_ERROR = 0.02


CASES: dict[str, tuple[int, Config]] = {
    "align": (1, sized(tiny.config(ALIGN))),
    "tune": (1, sized(tiny.config(tiny.FROZEN_LM))),
    "all of it": (1, sized(tiny.config())),
    "the language model, and OPT's": (1, of_family(sized(tiny.config(WHOLE_LM)), "opt")),
    "untied, a block before every second layer": (1, sized(tiny.config(ALIGN, interval=2, tied=False))),
    "adapters": (1, sized(tiny.config(("lm.*.lora.*", "lm.*.xattn.*"), lora=tiny.LORA))),
    "bf16": (1, dataclasses.replace(sized(tiny.config(tiny.FROZEN_LM)), precision="bf16")),
    "layers computed again": (1, sized(tiny.config(WHOLE_LM, recompute="full"))),
    "attention computed again": (1, sized(tiny.config(ALIGN, recompute="selective"))),
    "encoder computed again": (1, sized(tiny.config(tiny.FROZEN_LM), recompute=True, embed_dim=32)),
    "TP 2": (2, sized(tiny.config(ALIGN, tensor=2))),
    "TP 2, sequence": (2, sized(tiny.config(WHOLE_LM, tensor=2, sequence=True))),
    "PP 2": (2, sized(tiny.config(ALIGN, pipeline=2))),
    "PP 2, two chunks each": (2, sized(tiny.config(WHOLE_LM, pipeline=2, virtual_pipeline=2))),
    "DP 2, ZeRO-1": (2, sized(tiny.config(WHOLE_LM, distributed_optimizer=True, overlap=True))),
    "TP 2, PP 2": (4, sized(tiny.config(tiny.FROZEN_LM, tensor=2, pipeline=2))),
}


def step(rank: int, world: int, config: Config) -> dict[str, float]:
    from megatron.core import parallel_state

    stage = config.curriculum["stage"]
    groups = process_groups.initialize(config.parallel, config.seed)
    live = LiveTensors()
    with live:
        model = build(config, tiny.VOCABULARY, current_device())
        tiny.fill(model)
        select(model.named_parameters(), stage)
        learner = AnswerLearner(config, stage, model, groups, torch.device("cpu"))
        batch = tiny.step_batch(
            0,
            dp_rank=groups.data_rank,
            dp_size=groups.data_size,
            mp_rank=groups.model_rank,
            mp_size=groups.model_size,
        )
        learner.forward_backward(batch)
        learner.optimizer.step_checked()  # from now on there are moments
        gc.collect()
        always = live.now
        live.most = live.now
        learner.forward_backward(batch)
        learner.optimizer.step_checked()
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: addmm_in_place})
    with sdpa_kernel(SDPBackend.MATH), counter:  # of the fused kernels of a CPU it counts nothing
        learner.forward_backward(batch)
    at = parallel_state.get_pipeline_model_parallel_rank()
    case = Case(config=config, gpu=read_gpu("cpu"), world=world)
    load = load_of(batch.audio, batch.text, config.model.encoder.tokens_per_window)
    mel = batch.audio.mel_WFM
    process_groups.destroy()
    return {
        "always": always - (0 if mel is None else mel.nbytes),
        "planned always": sum(static(case, at).values()),
        "most": live.most,
        "planned": memory(case, at, load, ahead=0).total,
        "operations": counter.get_total_flops(),
        "planned operations": operations(case, load),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_planned_memory_is_what_a_step_takes(name: str) -> None:
    world, config = CASES[name]
    found = run_distributed(step, world, config)
    for rank in found:
        assert rank["planned always"] == pytest.approx(rank["always"], rel=STATIC_ERROR)
    most = max(found, key=lambda rank: rank["most"])
    if "again" not in name:  # torch counts what is computed again, the plan what is useful
        counted = sum(rank["operations"] for rank in found)
        ranks = config.parallel.tensor * config.parallel.pipeline
        planned = sum(rank["planned operations"] for rank in found) / ranks
        assert planned == pytest.approx(counted, rel=OPERATIONS_ERROR)
    assert max(rank["planned"] for rank in found) == pytest.approx(most["most"], rel=ERROR), found


def adapted(family: str = "qwen2", *, dropout: float = 0.0, **layout: Any) -> Config:
    """A unit so wide that what adapters keep is the most of what a step makes."""
    lora = LoRAConfig(rank=16, dropout=dropout)
    config = sized(tiny.config(("lm.*.lora.*",), lora=lora, **layout))
    lm = dataclasses.replace(config.model.lm, hidden=512, ffn=4096)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, lm=lm))
    return of_family(config, family) if family != "qwen2" else config


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "config"),
    [
        (1, adapted()),
        (1, adapted(dropout=0.1)),
        (1, adapted("opt")),
        (2, adapted(dropout=0.1, tensor=2, sequence=True)),
    ],
    ids=["qwen2", "dropout", "opt", "TP 2, sequence"],
)
def test_what_adapters_keep_is_planned(world: int, config: Config) -> None:
    """Of what comes and goes alone: weights would hide it."""
    found = run_distributed(step, world, config)[0]
    assert found["planned"] - found["planned always"] == pytest.approx(found["most"] - found["always"], rel=0.12)


def worded(
    trains: tuple[str, ...] = WHOLE_LM, family: str = "qwen2", *, precision: str = "fp32", **layout: Any
) -> Config:
    """A table so long that its gradients are the most of what a step makes."""
    config = sized(tiny.config(trains, **layout))
    lm = dataclasses.replace(config.model.lm, vocab=20_000)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, lm=lm), precision=precision)
    return of_family(config, family) if family != "qwen2" else config


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "config"),
    [
        (1, worded()),
        (1, worded(family="opt")),
        (1, worded(tied=False)),
        (1, worded(precision="bf16", tied=False)),
        (1, worded(ALIGN)),
        (2, worded(tensor=2)),
        (2, worded(pipeline=2)),
        (2, worded(distributed_optimizer=True, overlap=True)),
    ],
    ids=["tied", "opt", "untied", "bf16", "frozen", "TP 2", "PP 2", "ZeRO-1"],
)
def test_gradients_of_a_table_are_planned_before_they_are_summed(world: int, config: Config) -> None:
    found = run_distributed(step, world, config)
    assert max(rank["planned"] for rank in found) == pytest.approx(max(rank["most"] for rank in found), rel=0.02)


def test_micro_batches_that_wait() -> None:
    assert [in_flight(4, 1, stage, 8) for stage in range(4)] == [4, 3, 2, 1]
    assert in_flight(4, 1, 0, 2) == 2, "there are no more"
    assert [in_flight(4, 2, stage, 8) for stage in range(4)] == [11, 9, 7, 5]
