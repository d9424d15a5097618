"""A tiny Audio Flamingo 2 and synthetic steps for it, the same in every layout.

Used by the layout and checkpoint tests: weights are a function of the canonical parameter name, clips a function of
their number, so that any process count builds the same model and the same global batch.
"""

import dataclasses
from typing import Any

import torch

from megatron_af.config import (
    Config,
    CrossAttentionConfig,
    EncoderConfig,
    LMConfig,
    LoRAConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    StageConfig,
    TransformConfig,
)
from megatron_af.data.batch import IGNORED, StepAudio, StepBatch, TextBatch, TextRows, assign_clips
from megatron_af.model import AudioFlamingo, Vocabulary
from megatron_af.parallel.global_state import load_global
from megatron_af.prove.live_weights import live

VOCABULARY = Vocabulary(first_added_id=90, num_added=4)
AUDIO_ID = 90
SAMPLES = 8
MICRO_BATCH = 2
CLIPS_OF_SAMPLE = ((0,), (1,), (), (2, 3), (4,), (0,), (), (5,))
"""Unequal numbers of clips; samples without audio; one clip that two samples share."""
CLIP_WINDOWS = (1, 2, 1, 1, 3, 1)
TOO_LONG = {2: 1, 5: 2}
"""Questions that were lost for a sample's place."""

ALL = ("*",)
FROZEN_LM = ("encoder.*", "transform.*", "added_rows", "lm.*.xattn.*")
ADAPTERS = (*FROZEN_LM, "lm.*.lora.*")
LORA = LoRAConfig(rank=4, alpha=3.0)
"""Under which no gradient of a gate, a sum of many terms, nearly cancels out."""


def config(
    trainable: tuple[str, ...] = ALL,
    interval: int = 1,
    tied: bool = True,
    lora: LoRAConfig | None = None,
    **parallel: Any,
) -> Config:
    stage = StageConfig(
        trainable=trainable,
        lora=lora,
        blend={"a": 1.0, "b": 1.0},
        max_windows=3,
        global_batch_samples=SAMPLES,
        micro_batch_samples=MICRO_BATCH,
        steps=20,
        # A large epsilon: near zero, Adam at 1e-8 turns the rounding of a gradient into a full step.
        optimizer=OptimizerConfig(learning_rate=1e-2, eps=1e-3, weight_decay=0.01, warmup_steps=2),
    )
    return Config(
        name="tiny",
        precision="fp32",
        model=ModelConfig(
            encoder=EncoderConfig(
                embed_dim=16, depths=(1, 1), heads=(2, 2), patch_size=16, fusion=False, classes=0, drop_path=0.0
            ),
            transform=TransformConfig(layers=1, heads=2, ffn=48),
            lm=LMConfig(hidden=64, layers=4, heads=4, kv_heads=2, ffn=96, vocab=90, tied=tied, max_positions=128),
            cross_attention=CrossAttentionConfig(interval=interval, heads=4, head_dim=8),
        ),
        parallel=ParallelConfig(**parallel),
        curriculum={"stage": stage},
        stage="stage",
    )


def with_optimizer(config: Config, **changes: Any) -> Config:
    stage = config.curriculum["stage"]
    stage = dataclasses.replace(stage, optimizer=dataclasses.replace(stage.optimizer, **changes))
    return dataclasses.replace(config, curriculum={"stage": stage})


def fill(model: AudioFlamingo) -> None:
    load_global(model.chunks, model.front, live)


def mel_of(clip: int, frames: int = 1001) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 + clip)
    return torch.randn(CLIP_WINDOWS[clip], frames, 64, generator=generator) * 10 - 40


def step_batch(step: int, *, dp_rank: int, dp_size: int, mp_rank: int, mp_size: int) -> StepBatch[TextBatch]:
    """One rank's share of a global batch of 8 samples (two packed segments each)."""
    per_rank = SAMPLES // dp_size
    samples = range(dp_rank * per_rank, (dp_rank + 1) * per_rank)
    clips = sorted({clip for sample in samples for clip in CLIPS_OF_SAMPLE[sample]})
    local = {clip: i for i, clip in enumerate(clips)}
    windows = tuple(CLIP_WINDOWS[clip] for clip in clips)
    owners = assign_clips(windows, mp_size)
    own = [mel_of(clips[c]) for c in owners[mp_rank]]
    rows = [_rows(step, list(samples[i : i + MICRO_BATCH]), local) for i in range(0, per_rank, MICRO_BATCH)]
    return StepBatch(
        audio=StepAudio(
            clip_windows=windows,
            owners=owners,
            mel_WFM=torch.cat(own) if own else None,
            seconds=10.0 * sum(windows),
        ),
        text=TextBatch(
            rows=tuple(rows),
            num_tokens=sum(int((r.segment_BS >= 0).sum()) for r in rows),
            too_long={sample % 2: count for sample, count in TOO_LONG.items() if sample in samples},
        ),
        sample_ids=tuple(str(s) for s in samples),
    )


def _rows(step: int, samples: list[int], local: dict[int, int], length: int = 24) -> TextRows:
    ids = torch.zeros(len(samples), length, dtype=torch.int64)
    labels = torch.full_like(ids, IGNORED)
    segment = torch.full(ids.shape, -1, dtype=torch.int32)
    first, last = torch.zeros_like(segment), torch.full_like(segment, -1)
    dataset = torch.zeros_like(segment)
    for b, sample in enumerate(samples):
        generator = torch.Generator().manual_seed(step * 100 + sample + 11)
        used = 14 + sample  # unequal lengths: padding at the end of most rows
        ids[b, :used] = torch.randint(0, 90, (used,), generator=generator)
        ids[b, 5] = 92  # an added token in the text, and as a label
        split = used // 2
        segment[b, :split], segment[b, split:used] = 0, 1
        for end in (split, used):
            labels[b, end - 4 - sample % 3 : end - 1] = ids[b, end - 3 - sample % 3 : end]
        dataset[b] = sample % 2
        audios = len(CLIPS_OF_SAMPLE[sample])
        if audios:
            ids[b, 0] = ids[b, split] = AUDIO_ID
            last[b, :split] = 0
            last[b, split:used] = audios - 1
    return TextRows(
        ids_BS=ids,
        labels_BS=labels,
        segment_BS=segment,
        first_audio_BS=first,
        last_audio_BS=last,
        dataset_BS=dataset,
        clips=tuple(tuple(local[c] for c in CLIPS_OF_SAMPLE[s]) for s in samples),
    )
