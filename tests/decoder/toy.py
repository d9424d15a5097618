"""A decoder small enough for any test, its rows, and one way to run it in any layout.

Shapes: S text positions, B rows, L audio tokens, D audio width, N added tokens, H hidden.
"""

import dataclasses
import zlib
from collections.abc import Callable
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
from torch import Tensor

from megatron_af.config import (
    Config,
    CrossAttentionConfig,
    EncoderConfig,
    LMConfig,
    ModelConfig,
    ParallelConfig,
)
from megatron_af.data.batch import IGNORED, AudioKeys, TextRows
from megatron_af.decoder.lm import AudioLM
from megatron_af.decoder.transformer_config import transformer_config
from megatron_af.parallel.device import current_device, make_megatron_portable

HIDDEN, AUDIO_DIM, VOCAB, ADDED = 64, 48, 90, 4


def toy_config(
    *, lm: dict[str, Any] | None = None, cross_attention: dict[str, Any] | None = None, **parallel: Any
) -> Config:
    """H 64, 4 layers, 4 heads and 2 of keys, a block in front of layers 1 and 3 (2 heads of 24)."""
    sizes = {"hidden": HIDDEN, "layers": 4, "heads": 4, "kv_heads": 2, "ffn": 160, "vocab": VOCAB}
    block = {"interval": 2, "heads": 2, "head_dim": 24}
    return Config(
        name="toy",
        precision="fp32",
        model=ModelConfig(
            lm=LMConfig(**(sizes | {"max_positions": 128} | (lm or {}))),
            encoder=EncoderConfig(embed_dim=AUDIO_DIM // 8),
            cross_attention=CrossAttentionConfig(**(block | (cross_attention or {}))),
        ),
        parallel=ParallelConfig(**parallel),
    )


def start_layout(parallel: ParallelConfig) -> None:
    """megatron-core's groups; the default process group exists."""
    make_megatron_portable()
    parallel_state.initialize_model_parallel(
        parallel.tensor,
        parallel.pipeline,
        parallel.virtual_pipeline if parallel.virtual_pipeline > 1 else None,
    )
    model_parallel_cuda_manual_seed(1, force_reset_rng=True)


def build_chunks(config: Config, *, first_added_id: int | None = None, added: int = ADDED) -> list[AudioLM]:
    """This rank's part of the decoder."""
    lm_config = transformer_config(config, current_device())
    stages = range(config.parallel.virtual_pipeline) if config.parallel.virtual_pipeline > 1 else [None]
    return [
        AudioLM(
            config,
            lm_config,
            first_added_id=config.model.lm.vocab if first_added_id is None else first_added_id,
            added_tokens=added,
            pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=stage),
            post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=stage),
            vp_stage=stage,
        )
        for stage in stages
    ]


def single_process_lm(config: Config, **kwargs: Any) -> AudioLM:
    """The whole decoder on this process (of a world of one)."""
    if not parallel_state.model_parallel_is_initialized():
        start_layout(config.parallel)
    return build_chunks(config, **kwargs)[0]


def open_gates(name: str, shape: torch.Size) -> Tensor:
    """Weights under which every parameter has a gradient: no gate is closed, no bias is zero."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    weight = torch.randn(shape, generator=generator) * 0.15
    return 1 + weight if "norm" in name and name.endswith("weight") else weight


def roughen(model: torch.nn.Module) -> None:
    """Biases and norms of a model of transformers away from the zeros and ones that it begins with, which would hide
    them."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)


def relative_error(value: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest expected value."""
    assert value.shape == expected.shape, (value.shape, expected.shape)
    if not expected.any():
        return float(value.any())
    return float((value - expected).abs().max() / expected.abs().max())


def plain_rows(batch: int = 2, length: int = 16, *, vocab: int = VOCAB, seed: int = 0) -> TextRows:
    """Unpacked rows that see audio 0 everywhere and supervise every position but the last."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocab, (batch, length), generator=generator)
    labels = torch.cat([ids[:, 1:], torch.full((batch, 1), IGNORED)], dim=1)
    zeros = torch.zeros(batch, length, dtype=torch.int32)
    return TextRows(
        ids_BS=ids,
        labels_BS=labels,
        segment_BS=zeros,
        first_audio_BS=zeros,
        last_audio_BS=zeros,
        dataset_BS=zeros,
        clips=tuple((row,) for row in range(batch)),
    )


def mixed_rows(seed: int, length: int = 16) -> tuple[TextRows, AudioKeys]:
    """Everything at once: two packed segments with an audio each (row 0), two audios of which the text sees
    one, then both, and padding (row 1), a row without audio (row 2), a row with nothing supervised (row 3)."""
    rows = plain_rows(4, length, vocab=VOCAB + ADDED, seed=seed)
    segment, first, last, labels = (
        x.clone() for x in (rows.segment_BS, rows.first_audio_BS, rows.last_audio_BS, rows.labels_BS)
    )
    half = length // 2 + seed % 3
    segment[0, half:], first[0, half:], last[0, half:] = 1, 1, 1
    last[1, half:] = 1
    segment[1, -3:], last[1, -3:], labels[1, -4:] = -1, -1, IGNORED
    last[2] = -1
    labels[0, :4], labels[2, half - 3 : half], labels[3] = IGNORED, IGNORED, IGNORED
    generator = torch.Generator().manual_seed(1000 + seed)
    audio_of = torch.full((4, 10), -1, dtype=torch.int32)
    audio_of[0, :4], audio_of[0, 4:8], audio_of[1, :6], audio_of[1, 6:], audio_of[3, :2] = 0, 1, 0, 1, 0
    rows = dataclasses.replace(
        rows,
        labels_BS=labels,
        segment_BS=segment,
        first_audio_BS=first,
        last_audio_BS=last,
        clips=((0, 1), (2, 3), (), (4,)),
    )
    return rows, AudioKeys(tokens_LBD=torch.randn(10, 4, AUDIO_DIM, generator=generator), audio_of_BL=audio_of)


def full_audio(batch: int = 2, length: int = 12, seed: int = 5) -> AudioKeys:
    """One audio per row, no padding."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(length, batch, AUDIO_DIM, generator=generator)
    return AudioKeys(tokens_LBD=tokens, audio_of_BL=torch.zeros(batch, length, dtype=torch.int32))


def run_schedule(
    chunks: list[AudioLM],
    batches: list[tuple[TextRows, AudioKeys]],
    added_rows_NH: Tensor,
    *,
    forward_only: bool = False,
    forward: Callable[..., Tensor] = AudioLM.forward,
) -> list[Any]:
    """One pass of megatron-core's schedule over the micro-batches; on the last stage what each returned."""
    collected: list[Any] = []

    def step(batches_left: Any, chunk: AudioLM) -> tuple[Tensor, Callable[[Tensor], Any]]:
        rows, audio = next(batches_left)

        def loss(output: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
            collected.append(output.detach().clone())
            return output.sum(), torch.full((), output.shape[0], dtype=torch.int), {}

        return forward(chunk, rows, audio, added_rows_NH), loss

    batch, length = batches[0][0].ids_BS.shape
    get_forward_backward_func()(
        forward_step_func=step,
        data_iterator=[iter(batches) for _ in chunks] if len(chunks) > 1 else iter(batches),
        model=chunks if len(chunks) > 1 else chunks[0],
        num_microbatches=len(batches),
        seq_length=length,
        micro_batch_size=batch,
        forward_only=forward_only,
    )
    return collected
