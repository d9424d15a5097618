"""Faults of the kinds that distributed training has had, planted one at a time, and whether a proof catches them.

    python -m tests.prove.planted [--only "doubled norm"]        # all of them, as a table

Each is put into the processes of one run by replacing a function of ours or of megatron-core's; they end with it. The
kinds are those of NVIDIA/Megatron-LM issue 7452.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import megatron.core.tensor_parallel as tensor_parallel
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.transformer import attention, transformer_block, transformer_layer

from megatron_af.audio import encode_ahead
from megatron_af.audio.encode_ahead import EncodeAhead, StepKeys
from megatron_af.config import Config, ParallelConfig
from megatron_af.config.loading import load_config
from megatron_af.decoder import cross_attention
from megatron_af.parallel.ranks import RankError, run_distributed
from megatron_af.prove.compare import agreements
from megatron_af.prove.observe import Observation, joined, observe, rewound
from megatron_af.prove.proof import Bench, last_line
from megatron_af.prove.shrink import laid_out, shrink
from megatron_af.train import optimizer, trainer
from megatron_af.train.objectives import answer_learner

LAYOUTS = {
    "DP2": ParallelConfig(),
    "DP2+ZeRO-1": ParallelConfig(distributed_optimizer=True),
    "TP2+SP": ParallelConfig(tensor=2, sequence=True),
    "PP2": ParallelConfig(pipeline=2),
}


@dataclass(frozen=True, kw_only=True)
class Fault:
    layout: str
    plant: Callable[[], None]
    resumes: bool = False
    """It shows in a resumed run."""


def _missing_reduction() -> None:
    """The gradients of audio tokens stay on the rank whose text heard them."""

    def own_part(own: torch.Tensor, everyones: torch.Tensor, group: Any) -> None:
        own.copy_(everyones.chunk(group.size())[group.rank()])

    encode_ahead.reduce_scatter = own_part


def _doubled_norm() -> None:
    """What tensor ranks hold alike counts once for each of them."""
    tensor_parallel.param_is_not_tensor_parallel_duplicate = lambda *args, **kwargs: True


def _stale_shard() -> None:
    """The second rank's share of the weights does not reach the first behind a step."""
    sync = DistributedOptimizer.start_param_sync_for_bucket_group_subset

    def stale(self: Any) -> None:
        before = [buffer.param_data.clone() for buffer in self.buffers]
        sync(self)
        if dist.get_rank() == 0:
            for buffer, old in zip(self.buffers, before, strict=True):
                half = buffer.param_data.numel() // 2
                buffer.param_data[half:] = old[half:]

    DistributedOptimizer.start_param_sync_for_bucket_group_subset = stale


def _wrong_layer_offset() -> None:
    """The second stage counts its layers from 0."""
    for module in (transformer_layer, transformer_block):
        module.get_transformer_layer_offset = lambda *args, **kwargs: 0


def _wrong_random_numbers() -> None:
    """Every rank draws the same, so that masks of different samples are alike."""
    seed_of = trainer._step_seed
    trainer._step_seed = lambda seed, step, who: seed_of(seed, step, 0)


def _gate_not_reduced() -> None:
    """Under sequence parallelism gates keep the sum over their own rank's positions."""
    made = cross_attention._gate

    def gate(config: Any) -> torch.nn.Parameter:
        parameter = made(config)
        parameter.sequence_parallel = False
        return parameter

    cross_attention._gate = gate


def _wrong_token_count() -> None:
    """The audio side divides by the tokens of one rank."""
    reduced = answer_learner.finalize_model_grads

    def local(models: Any, num_tokens: torch.Tensor, **kwargs: Any) -> None:
        own = num_tokens.clone()
        reduced(models, num_tokens, **kwargs)
        num_tokens.copy_(own)

    answer_learner.finalize_model_grads = local


def _local_clipping() -> None:
    """Gradients are clipped by the norm of those that a rank holds."""
    clip = optimizer.clip_grad_by_total_norm_fp32

    def by_own(parameters: Any, max_norm: float, total_norm: float) -> None:
        parameters = list(parameters)
        own = torch.stack([p.main_grad.norm() for p in parameters if p.main_grad is not None]).norm()
        clip(parameters, max_norm=max_norm, total_norm=float(own))

    optimizer.clip_grad_by_total_norm_fp32 = by_own


def _position_offset() -> None:
    """On the second stage keys stand one place behind their queries."""
    rotate, calls = attention.apply_rotary_pos_emb, [0]

    def shifted(x: torch.Tensor, freqs: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        calls[0] += 1
        if parallel_state.get_pipeline_model_parallel_rank() == 1 and calls[0] % 2 == 0:
            freqs = freqs.roll(1, 0)
        return rotate(x, freqs, *args, **kwargs)

    attention.apply_rotary_pos_emb = shifted


def _mask_off_by_one() -> None:
    """On the second stage the last audio token of a row is seen by nobody."""
    audio_of = StepKeys.audio_of

    def shorter(self: Any, micro_batch: int) -> torch.Tensor:
        audio_of_BL = audio_of(self, micro_batch)
        if parallel_state.get_pipeline_model_parallel_rank() == 1:
            audio_of_BL = torch.cat([audio_of_BL[:, 1:], torch.full_like(audio_of_BL[:, :1], -1)], dim=1)
        return audio_of_BL

    StepKeys.audio_of = shorter


def _stale_gradients() -> None:
    """What the tokens' gradients were in the step before is still in them."""
    forward, backward = EncodeAhead.forward, EncodeAhead.backward

    def again(self: Any, *args: Any, **kwargs: Any) -> Any:
        keys = forward(self, *args, **kwargs)
        old = getattr(self, "_stale", None)
        if old is not None and self._gradient_TD is not None:
            count = min(len(old), len(self._gradient_TD))
            self._gradient_TD[:count] += old[:count]
        return keys

    def kept(self: Any) -> None:
        self._stale = None if self._gradient_TD is None else self._gradient_TD.clone()
        backward(self)

    EncodeAhead.forward, EncodeAhead.backward = again, kept


def _moments_not_restored() -> None:
    """A resumed run begins with an optimizer that has seen nothing."""
    trainer.load_optimizer = lambda *args, **kwargs: None


FAULTS = {
    "missing reduction": Fault(layout="TP2+SP", plant=_missing_reduction),
    "doubled norm": Fault(layout="TP2+SP", plant=_doubled_norm),
    "stale shard": Fault(layout="DP2+ZeRO-1", plant=_stale_shard),
    "wrong layer offset": Fault(layout="PP2", plant=_wrong_layer_offset),
    "same random numbers on all ranks": Fault(layout="DP2", plant=_wrong_random_numbers),
    "gate not reduced": Fault(layout="TP2+SP", plant=_gate_not_reduced),
    "wrong token count": Fault(layout="DP2", plant=_wrong_token_count),
    "clipping by a local norm": Fault(layout="PP2", plant=_local_clipping),
    "position offset": Fault(layout="PP2", plant=_position_offset),
    "mask off by one": Fault(layout="PP2", plant=_mask_off_by_one),
    "stale gradients of audio tokens": Fault(layout="DP2", plant=_stale_gradients),
    "optimizer not restored": Fault(layout="DP2", plant=_moments_not_restored, resumes=True),
}


def small_run(folder: Path) -> Config:
    """The demo's model, shrunk; all of it learns, and drops at random what the demo drops."""
    config = load_config("configs/demo.yaml")
    tune = replace(config.curriculum["tune"], trainable=("*",))
    return shrink(replace(config, curriculum={"tune": tune}), "tune", folder)


def planted(rank: int, world_size: int, config: Config, fault: str) -> Observation:
    FAULTS[fault].plant()
    return observe(rank, world_size, config)


def caught(bench: Bench, fault: str) -> str:
    """By what a fault is noticed; empty where it is not."""
    found = FAULTS[fault]
    config = laid_out(bench.small, LAYOUTS[found.layout], fault.replace(" ", "-"))
    try:
        if found.resumes:
            joined(run_distributed(observe, 2, config))
            rewound(config)
        seen = joined(run_distributed(planted, 2, config, fault))
        broken = [one for one in agreements(bench.reference, seen) if not one.holds]
    except (RankError, ValueError) as error:
        return last_line(str(error))[:160]
    return "; ".join(f"{one.what} ({one.error:.0e}, {one.worst})" for one in broken)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=FAULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="megatron-af-planted-") as folder:
        bench = Bench(small_run(Path(folder)))
        found = {name: caught(bench, name) for name in ([options.only] if options.only else FAULTS)}
    for name, by in found.items():
        print(f"| {name} | {FAULTS[name].layout} | {by or '**not caught**'} |")
    return 0 if sum(map(bool, found.values())) >= len(found) - 1 else 1


if __name__ == "__main__":
    sys.exit(main())
