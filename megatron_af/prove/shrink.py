"""A run's configuration at a size that a core trains in seconds, and everything that decides how it is computed kept.

    small = shrink(config, "align", folder)      # its data and runs lie below ``folder``

Kept: family, encoder and its kind of output, positions, tied tables, grouped queries, the gated blocks' period, what
trains, objective and adapters, packing, questions per sample, schedule, recompute and layout. Made small: layers,
widths, vocabulary, windows, batch, steps. Left out, because they differ from layout to layout on purpose: what is
dropped at random (drop-path, SpecAugment, dropout).
"""

import math
import re
from dataclasses import replace
from pathlib import Path

from megatron_af.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    DatasetConfig,
    ModelConfig,
    ParallelConfig,
    SpikesConfig,
    StageConfig,
    TrackingConfig,
    WatchConfig,
)

SAMPLES, MICRO_BATCH, STEPS, CUT = 8, 2, 4, 2
"""Of a step and of a micro-batch; steps of a run; the step behind which it is resumed."""
WINDOW_SECONDS = 1.0
TEXT_TOKENS = 160
POSITIONS = 1024
MOST_LAYERS = 16


def shrink(config: Config, stage: str, folder: Path) -> Config:
    """
    Args:
        stage: of the curriculum; the others are left out.
        folder: ``data`` and ``runs`` are made below it (``material.py``).
    """
    small = _stage(config, config.curriculum[stage])
    datasets = {
        name: DatasetConfig(
            manifest=f"{name}.jsonl", task_prefix_probability=config.data.datasets[name].task_prefix_probability
        )
        for name in small.blend
    }
    root = folder / "data"
    return Config(
        name="proof",
        seed=config.seed,
        output=str(folder / "runs"),
        precision="fp32",
        layers="torch",
        model=_model(config.model),
        parallel=config.parallel,
        data=DataConfig(
            root=str(root),
            tokenizer=str(root / "tokenizer.json"),
            datasets=datasets,
            text_style=config.data.text_style,
            workers=1,
        ),
        curriculum={stage: small},
        stage=stage,
        checkpoint=CheckpointConfig(
            every_steps=CUT, keep=0, asynchronous=config.checkpoint.asynchronous, agree_every_steps=1
        ),
        tracking=TrackingConfig(enabled=False),
        log_every_steps=1,
    )


def laid_out(config: Config, parallel: ParallelConfig, name: str) -> Config:
    return replace(config, parallel=parallel, name=name)


def _model(model: ModelConfig) -> ModelConfig:
    front, encoder, lm, clap = model.front_end, model.encoder, model.lm, model.clap
    scale = WINDOW_SECONDS / front.window_seconds
    interval = min(model.cross_attention.interval, MOST_LAYERS // 2)
    width = 32
    if encoder.kind == "htsat":
        encoder = replace(
            encoder, embed_dim=16, depths=(1, 1), heads=(2, 2), patch_size=16, mlp_ratio=2, drop_path=0.0,
            classes=min(encoder.classes, 4), stft_weights=False, spec_augment=False, vector_dim=width,
        )  # fmt: skip
    return replace(
        model,
        front_end=replace(front, window_seconds=WINDOW_SECONDS, overlap_seconds=scale * front.overlap_seconds),
        encoder=encoder,
        transform=replace(model.transform, layers=min(model.transform.layers, 2), heads=2, ffn=48),
        lm=replace(
            lm,
            hidden=64,
            layers=small_layers(lm.layers, interval),
            heads=4,
            kv_heads=4 if lm.kv_heads == lm.heads else 2,
            ffn=96,
            vocab=512,
            max_positions=POSITIONS,
        ),
        cross_attention=replace(
            model.cross_attention, interval=interval, heads=4, head_dim=8,
            ffn_multiplier=min(model.cross_attention.ffn_multiplier, 2),
        ),
        clap=replace(
            clap, text_tower="", text_hidden=16, text_layers=2, text_heads=2, text_max_tokens=48,
            text_micro_batch=min(clap.text_micro_batch, 3), joint_dim=width,
        ),
    )  # fmt: skip


def small_layers(layers: int, interval: int) -> int:
    """Enough for two stages of two chunks, and for two gated blocks where the model has as many."""
    blocks = max(1, min(2, layers // max(1, interval)))
    return min(layers, max(4, blocks * interval)) if layers < 4 else max(4, blocks * interval)


def _stage(config: Config, stage: StageConfig) -> StageConfig:
    large, small = config.model.lm.layers, _model(config.model).lm.layers
    optimizer = replace(
        stage.optimizer,
        learning_rate=1e-2,
        min_learning_rate=min(stage.optimizer.min_learning_rate, 1e-3),
        warmup_steps=min(stage.optimizer.warmup_steps, 1),
        # Near zero, Adam at 1e-8 turns the rounding of a gradient into a full step.
        eps=1e-3,
        # Low enough that every step is clipped: a norm that is wrong then moves every weight.
        clip_norm=min(stage.optimizer.clip_norm, 0.05),
    )
    lora = stage.lora and replace(stage.lora, rank=min(stage.lora.rank, 4), dropout=0.0)
    return replace(
        stage,
        entry={},
        trainable=tuple(_renumbered(pattern, large, small) for pattern in stage.trainable),
        frozen=tuple(_renumbered(pattern, large, small) for pattern in stage.frozen),
        lora=lora,
        augment=None,
        max_windows=min(stage.max_windows, 3),
        max_text_tokens=TEXT_TOKENS,
        global_batch_samples=SAMPLES,
        batch_tokens=0,
        micro_batch_samples=min(stage.micro_batch_samples, MICRO_BATCH),
        pack_tokens=2 * TEXT_TOKENS * min(stage.questions_per_sample, 2) if stage.pack_tokens else 0,
        questions_per_sample=min(stage.questions_per_sample, 2),
        steps=STEPS,
        passes=0.0,
        optimizer=optimizer,
        spikes=SpikesConfig(),
        watch=WatchConfig(),
        evaluation=(),
        calibrate="",
        suites=(),
        exit_gate={},
    )


def _renumbered(pattern: str, large: int, small: int) -> str:
    """A pattern that names single layers names those at the same height."""
    return re.sub(r"(layers\.)(\d+)", lambda found: f"{found[1]}{math.floor(int(found[2]) * small / large)}", pattern)
