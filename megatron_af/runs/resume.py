"""What a run must have in common with the checkpoint that it goes on from.

    check_resume(config, checkpoint)      # before any weight is loaded

To resume exactly means that every step from here on is the one that the uninterrupted run would have made: the same
samples in the same order, and an update that differs by no more than the rounding of another layout. So whatever
determines samples or updates must be as it was, and that is all but these:

- how long the stage is (``steps``, ``passes``): it may end sooner or go on. A cosine schedule is then that of the new
  length, and its past steps are those of the old one.
- how the step lies on the machines: processes, ``parallel``, micro-batches, packing of rows, recomputation, workers,
  feature cache, and where the data lies. Floating-point sums then round otherwise, and random masks (drop-path,
  SpecAugment), which each rank draws, are others.
- what does not touch training: checkpoints, logging, tracking, evaluation, exit gates.

Another learning rate is another run. It gets another ``name``, and takes the weights by its ``entry``. What is *in* the
data sets is not compared here but by a curriculum (``identity.py``), which trains anew where it changed.
"""

from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from megatron_af.config import Config, ConfigError
from megatron_af.config.loading import load_config
from megatron_af.runs.paths import SETTINGS

FREE = (
    *(f"curriculum.*.{key}" for key in ("steps", "passes", "evaluation", "exit_gate.*")),
    # batch_tokens follows from, and is compared as, global_batch_samples
    *(f"curriculum.*.{key}" for key in ("batch_tokens", "micro_batch_samples", "pack_tokens")),
    *(f"model.{key}" for key in ("encoder.recompute", "clap.text_recompute", "clap.text_micro_batch")),
    *(f"data.{key}" for key in ("root", "prepare.*", "workers", "feature_cache", "max_replaced_fraction")),
    *(f"data.datasets.*.{key}" for key in ("source", "origin", "origin.*")),
)
"""Patterns of keys that a resumed run may change."""


def check_resume(config: Config, checkpoint: Path) -> None:
    """Raises ``ConfigError`` with every setting of ``config.stage`` that keeps it from going on from its checkpoint.

    Args:
        config: the run as it is now, its sizes resolved (``sizes.py``).
        checkpoint: holds the configuration it was written with.
    """
    change = (
        "set these back, or start over: with another name= (its curriculum.<stage>.entry may name this checkpoint to "
        f"begin with its weights), or without {checkpoint.parent}"
    )
    if not (checkpoint / SETTINGS).is_file():
        raise ConfigError(f"{checkpoint} holds no {SETTINGS} to compare with, so no run can go on from it; {change}")
    was, now = _binding(load_config(checkpoint / SETTINGS), config.stage), _binding(config, config.stage)
    problems = [
        f"{key}: was {was.get(key, 'absent')}, now {now.get(key, 'absent')}"
        for key in sorted(was.keys() | now.keys())
        if was.get(key) != now.get(key)
    ]
    if problems:
        raise ConfigError(f"stage {config.stage} cannot go on from {checkpoint}; {change}", problems)


def _binding(config: Config, stage: str) -> dict[str, Any]:
    """Settings that a stage's samples and updates follow from, by key."""
    blend = config.curriculum[stage].blend if stage in config.curriculum else {}
    values = {
        "seed": config.seed,
        "precision": config.precision,
        "model": asdict(config.model),
        "data": {
            **asdict(config.data),
            "datasets": {name: asdict(data) for name, data in config.data.datasets.items() if name in blend},
        },
        "curriculum": {name: asdict(settings) for name, settings in config.curriculum.items() if name == stage},
    }
    return {key: value for key, value in _flat(values) if not any(fnmatch(key, free) for free in FREE)}


def _flat(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for name, value in tree.items():
        found += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return found
