"""Sizes that a stage leaves open: the global batch from a budget of tokens, the steps from passes over the data.

    config = resolve_sizes(config, world_size)      # before Trainer(config)

With one budget for all stages, a stage of 5-minute clips takes fewer samples per step than one of 30-second clips, at
the same cost and memory of a step.
"""

from dataclasses import replace

from megatron_af.config import Config, StageConfig
from megatron_af.train.lineage import manifest_path


def resolve_sizes(config: Config, world_size: int) -> Config:
    """``config`` with ``global_batch_samples`` and ``steps`` of ``config.stage`` as numbers.

    Raises ``FileNotFoundError`` where a pass is asked for over a manifest that is not there.
    """
    stage = config.curriculum[config.stage]
    if stage.batch_tokens:
        stage = replace(stage, global_batch_samples=batch_samples(config, stage, world_size))
    if stage.passes:
        stage = replace(stage, steps=steps_of_passes(stage, {name: _num_rows(config, name) for name in stage.blend}))
    return replace(config, curriculum={**config.curriculum, config.stage: stage})


def batch_samples(config: Config, stage: StageConfig, world_size: int) -> int:
    """Samples that fit ``stage.batch_tokens``: a whole number of micro-batches on every data-parallel rank."""
    unit = config.step_unit(stage, world_size)
    return max(1, stage.batch_tokens // config.sample_tokens(stage) // unit) * unit


def steps_of_passes(stage: StageConfig, rows: dict[str, int]) -> int:
    """Steps that make ``stage.passes`` over the blend; ``rows``: rows of each data set."""
    samples = stage.passes * sum(weight * rows[name] for name, weight in stage.blend.items())
    return max(1, round(samples / stage.global_batch_samples))


def _num_rows(config: Config, dataset: str) -> int:
    with manifest_path(config, dataset).open("rb") as lines:
        return sum(1 for line in lines if line.strip())
