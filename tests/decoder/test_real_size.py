"""The released sizes, without their memory: parameters on the meta device, and a rank's step under fake tensors.

Fake tensors have shape, type and device but no values. Their device is ``meta``, which stands in for an
accelerator: mixing it with a tensor on the CPU is an error, as it is with a GPU.
"""

import dataclasses
from collections import defaultdict

import pytest
import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import random as megatron_random
from torch._functorch import config as functorch_config
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import _create_fake_pg
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_af.config import Config, ParallelConfig
from megatron_af.config.loading import CONFIGS, load_config
from megatron_af.data.batch import AudioKeys, TextRows
from megatron_af.decoder.lm import AudioLM
from megatron_af.decoder.stretches import Sight
from megatron_af.parallel.device import make_megatron_portable
from megatron_af.parallel.global_state import placements
from tests.decoder.fake_world import FIRST_ADDED_ID, NoRandomStates, fake_world
from tests.decoder.toy import build_chunks, plain_rows, run_schedule
from tests.distributed import RankError, run_distributed

pytestmark = pytest.mark.slow

TP2_PP4 = ParallelConfig(tensor=2, pipeline=4, sequence=True)
LENGTH, AUDIO_TOKENS, SUPERVISED = 1048, 1920, 100
"""No weight of these sizes has this length twice."""


def released(name: str, parallel: ParallelConfig) -> Config:
    config = load_config(CONFIGS / "model" / f"{name}.yaml", ["name=size"])
    return dataclasses.replace(config, parallel=parallel)


def count_parameters(rank: int, world_size: int, name: str) -> tuple[dict[str, int], list[int]]:
    """Parameters by part of the whole model, and how many each rank holds."""
    make_megatron_portable(target="meta")
    config = released(name, TP2_PP4)
    shape_of: dict[str, torch.Size] = {}
    held: dict[str, int] = defaultdict(int)
    per_rank = []
    for player in range(8):
        with fake_world(TP2_PP4, player), torch.device("meta"):
            (chunk,) = build_chunks(config, first_added_id=FIRST_ADDED_ID)
            assert all(parameter.is_meta for parameter in chunk.parameters())
            per_rank.append(sum(parameter.numel() for parameter in chunk.parameters()))
            for placement, parameter in placements(chunk):
                shape_of[placement.name] = placement.shape
                assert placement.dim is None or parameter.numel() * 2 >= placement.shape.numel()
                held[placement.name] += parameter.numel() if placement.dim is not None or placement.rank == 0 else 0
    totals = {"xattn": 0, "lm": 0}
    for name, shape in shape_of.items():
        totals["xattn" if ".xattn." in name else "lm"] += shape.numel()
    return totals, per_rank


PUBLISHED = {
    "af2_3b": (3_085_938_688, 1_359_249_480),
    "af2_1.5b": (1_543_714_304, None),
    "af2_0.5b": (494_032_768, None),
    "af1": (1_315_758_080, 881_000_496),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_published_ones(name):
    ((totals, per_rank),) = run_distributed(count_parameters, 1, name)
    lm, xattn = PUBLISHED[name]
    assert totals["lm"] == lm
    assert xattn is None or totals["xattn"] == xattn
    assert per_rank[0::2] == per_rank[1::2], "tensor ranks hold equal parts"


def packed_sight() -> Sight:
    """Eight samples in a row, each with its own part of the audio."""
    sample_1S = torch.arange(LENGTH, dtype=torch.int32)[None] // (LENGTH // 8)
    audio_of_1L = torch.arange(AUDIO_TOKENS, dtype=torch.int32)[None] // (AUDIO_TOKENS // 8)
    rows = dataclasses.replace(
        plain_rows(1, LENGTH), segment_BS=sample_1S, first_audio_BS=sample_1S, last_audio_BS=sample_1S
    )
    return Sight.of(rows, audio_of_1L)


class NoFrame(TorchDispatchMode):
    """Refuses a tensor of every position by every position, or by every key."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, list | tuple) else [made]:
            if isinstance(tensor, torch.Tensor) and tensor.ndim > 1:
                assert tuple(tensor.shape[-2:]) not in ((LENGTH, LENGTH), (LENGTH, AUDIO_TOKENS)), func
        return made


def step_on_a_stand_in(rank: int, world_size: int, player: int, schedule: bool, misplaced: str) -> int:
    """One rank of af2_3b: forward and backward of one micro-batch or 1F1B; returns its number of gradients."""
    make_megatron_portable(target="meta")
    if "fake" not in dist.Backend.backend_list:
        dist.Backend.register_backend("fake", _create_fake_pg, devices=["cpu", "cuda", "meta"])
    megatron_random._CUDA_RNG_STATE_TRACKER = NoRandomStates()
    megatron_random._CUDA_RNG_STATE_TRACKER_INITIALIZED = True
    # What is decided from values, which fake tensors do not have.
    packed = packed_sight()
    Sight.of = classmethod(lambda cls, rows, audio_of_BL: packed)
    TextRows.supervised = property(lambda rows: (torch.zeros(SUPERVISED, dtype=torch.int64, device="cpu"),) * 2)
    config = released("af2_3b", TP2_PP4)
    with (
        functorch_config.patch(fake_tensor_allow_meta=True),
        fake_world(TP2_PP4, player),
        FakeTensorMode(allow_non_fake_inputs=True),  # megatron-core's counter of tokens is a plain tensor
        torch.device("meta"),
        NoFrame(),
    ):
        chunks = build_chunks(config, first_added_id=FIRST_ADDED_ID)
        (chunk,) = chunks
        chunk.ddp_config = None
        with torch.device("cpu"):  # rows come from the host
            rows = plain_rows(1, LENGTH, vocab=100)
        tokens = torch.randn(AUDIO_TOKENS, 1, 2048, dtype=torch.bfloat16)
        audio_of = torch.zeros(1, AUDIO_TOKENS, dtype=torch.int32)
        added_rows = torch.randn(4, 2048, dtype=torch.bfloat16, requires_grad=True)
        if misplaced == "tokens":
            tokens = tokens.new_empty(tokens.shape, device="cpu")
        if misplaced == "weight":
            norm = chunk.decoder.layers[0].xattn.ffn_norm
            norm.weight = torch.nn.Parameter(torch.empty(2048, dtype=torch.bfloat16, device="cpu"))
        audio = AudioKeys(tokens_LBD=tokens.requires_grad_(), audio_of_BL=audio_of)
        if schedule:
            run_schedule(chunks, [(rows, audio)] * 4, added_rows)
        else:
            one_micro_batch(chunk, rows, audio, added_rows)
        assert tokens.grad.shape == tokens.shape
        assert all(p.grad.device.type == "meta" for p in chunk.parameters() if p.grad is not None)
        return sum(parameter.grad is not None for parameter in chunk.parameters())


def one_micro_batch(chunk: AudioLM, rows, audio: AudioKeys, added_rows: torch.Tensor) -> None:
    if not chunk.pre_process:
        shape = (LENGTH // 2, 1, 2048)
        chunk.set_input_tensor(torch.randn(shape, dtype=torch.bfloat16, requires_grad=True))
    output = chunk(rows, audio, added_rows)
    assert output.shape == ((SUPERVISED,) if chunk.post_process else (LENGTH // 2, 1, 2048))
    output.float().sum().backward()


@pytest.mark.parametrize("schedule", [False, True], ids=["forward and backward", "1F1B"])
@pytest.mark.parametrize("player", [0, 2, 7], ids=["first stage", "second stage", "last stage"])
def test_a_rank_of_af2_3b_runs_on_a_stand_in_accelerator(player, schedule):
    (gradients,) = run_distributed(step_on_a_stand_in, 1, player, schedule, "")
    per_layer = 7 + 11
    outside = {0: 1, 2: 0, 7: 2}[player]  # the table; the final norm and the table's copy
    assert gradients == 9 * per_layer + outside


@pytest.mark.parametrize("misplaced", ["tokens", "weight"])
def test_a_tensor_left_on_the_wrong_device_fails(misplaced):
    with pytest.raises(RankError, match="Expected all tensors to be on the same device"):
        run_distributed(step_on_a_stand_in, 1, 2, False, misplaced)
