"""A rank of the released 3B model in eight, without its memory: what its tensors take is what is planned.

Fake tensors have shape, type and device but no values, and the process group is a fake, too, so one process plays any
rank. The device is ``meta``, which stands in for a GPU whose attention kernels are called by name; layers are torch's,
for Transformer Engine cannot be built here.
"""

import contextlib
import dataclasses
import gc
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.distributed import param_and_grad_buffer
from megatron.core.tensor_parallel import random as megatron_random
from torch import Tensor
from torch._functorch import config as functorch_config
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore, _create_fake_pg
from torch.utils._python_dispatch import _disable_current_modes

from megatron_af.audio import encode_ahead
from megatron_af.config import Config
from megatron_af.config.loading import load_config
from megatron_af.decoder.stretches import Sight
from megatron_af.model import Vocabulary, build
from megatron_af.parallel import groups as process_groups
from megatron_af.parallel.device import current_device, make_megatron_portable
from megatron_af.plan.case import Case
from megatron_af.plan.gpu import read_gpu
from megatron_af.plan.load import load_of
from megatron_af.plan.memory import memory, static
from megatron_af.train.objectives import answer_learner
from megatron_af.train.objectives.answer_learner import AnswerLearner
from megatron_af.train.trainable import select
from tests.decoder.fake_world import NoRandomStates
from tests.distributed import run_distributed
from tests.plan.measured import LiveTensors
from tests.plan.packed_rows import WORLD, batch

pytestmark = pytest.mark.slow

ERROR = 0.05
TP2_PP4 = ["parallel.tensor=2", "parallel.pipeline=4", "parallel.sequence=true", "layers=torch"]


def on_the_host(function: Callable[..., Any]) -> Callable[..., Any]:
    """With values, which fake tensors do not have."""

    def called(*args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes(), torch.device("cpu"):
            return function(*args, **kwargs)

    return called


def as_a_gpu_does(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **how: Any) -> Tensor:
    """The kernels that torch chooses on a GPU: FlashAttention, or, with a mask, the memory-efficient one."""
    if attn_mask is None:
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        return flash(query, key, value, 0.0, how.get("is_causal", False))[0]
    if attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype)
    scores = (*query.shape[:3], key.shape[2])
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    return efficient(query, key, value, attn_mask.expand(scores), True)[0]


def norm_as_a_gpu_does(x: Tensor, shape: list[int], weight: Tensor, eps: float) -> Tensor:
    """torch's one kernel, where a CPU composes it of single operations in float32."""
    normed: Tensor = torch.ops.aten._fused_rms_norm(x, shape, weight, eps)[0]
    return normed


def everybody_else_says_the_same(everyones: list[Any], own: object, group: Any = None) -> None:
    everyones[:] = [own] * len(everyones)


def step(_: int, __: int, config: Config, rank: int, windows: tuple[int, ...]) -> dict[str, Any]:
    make_megatron_portable(target="meta")
    if "fake" not in dist.Backend.backend_list:
        dist.Backend.register_backend("fake", _create_fake_pg, devices=["cpu", "cuda", "meta"])
    dist.destroy_process_group()
    dist.init_process_group("fake", rank=rank, world_size=WORLD, store=FakeStore())
    new_group = dist.new_group
    dist.new_group = lambda *args, backend=None, **kwargs: new_group(*args, **kwargs)  # type: ignore[assignment]
    waited = SimpleNamespace(wait=lambda: None)
    param_and_grad_buffer._coalescing_manager = lambda *args, **kwargs: contextlib.nullcontext(waited)
    dist.all_gather_object = everybody_else_says_the_same
    groups = process_groups.initialize(config.parallel, config.seed)
    megatron_random._CUDA_RNG_STATE_TRACKER = NoRandomStates()
    Sight.of = on_the_host(Sight.of)
    answer_learner.token_shares = on_the_host(answer_learner.token_shares)
    encode_ahead.key_layout = on_the_host(encode_ahead.key_layout)
    F.scaled_dot_product_attention, F.rms_norm = as_a_gpu_does, norm_as_a_gpu_does
    step_batch = batch(windows, rank)
    supervised = [rows.supervised for rows in step_batch.text.rows]  # of their values, kept from now on
    assert all(supervised)

    stage = config.curriculum[config.stage]
    live = LiveTensors("meta")
    with (
        functorch_config.patch(fake_tensor_allow_meta=True),
        FakeTensorMode(allow_non_fake_inputs=True),
        live,
    ):
        with torch.device("meta"), mock.patch.object(torch.nn.Module, "to", lambda module, *_: module):
            model = build(config, Vocabulary(first_added_id=151_665, num_added=4), current_device())
        select(model.named_parameters(), stage)
        learner = AnswerLearner(config, stage, model, groups, current_device().torch)
        learner.optimizer.get_grad_norm = lambda: torch.ones(())  # type: ignore[method-assign]
        own = sum(step_batch.audio.clip_windows[clip] for clip in step_batch.audio.owners[groups.model_rank])
        front = config.model.front_end
        mel = torch.empty(own, front.window_frames, front.mel_bins, device="meta")
        step_batch = dataclasses.replace(step_batch, audio=dataclasses.replace(step_batch.audio, mel_WFM=mel))
        learner.optimizer.step_checked()  # from now on there are moments
        gc.collect()
        always = live.now - mel.nbytes
        live.most = live.now
        learner.forward_backward(step_batch)
        most = live.most
        live.most = live.now
        learner.optimizer.step_checked()
    case = Case(config=config, gpu=read_gpu("h100"), world=WORLD)
    load = load_of(step_batch.audio, step_batch.text, config.model.encoder.tokens_per_window)
    pipeline_stage = rank // config.parallel.tensor
    return {
        "always": always,
        "planned always": sum(static(case, pipeline_stage).values()),
        "most": most,
        "planned": memory(case, pipeline_stage, load, ahead=0).total,
        "update": live.most,
    }


@pytest.mark.parametrize(
    ("stage", "windows", "pipeline_stage"),
    [("pretrain", (1, 2, 3, 1), 0), ("finetune", (1, 4, 12, 2), 0), ("finetune", (1, 4, 12, 2), 3)],
    ids=["pretrain, first stage", "finetune, first stage", "finetune, last stage"],
)
def test_a_rank_of_the_3b_model_in_eight(stage: str, windows: tuple[int, ...], pipeline_stage: int) -> None:
    config = load_config("configs/af2_3b.yaml", [*TP2_PP4, f"stage={stage}"])
    (found,) = run_distributed(step, 1, config, 2 * pipeline_stage, windows, timeout=580)
    assert found["planned always"] == pytest.approx(found["always"], rel=ERROR), found
    assert found["planned"] == pytest.approx(max(found["most"], found["update"]), rel=ERROR), found
