"""Sizes that a stage leaves open: the global batch from a budget of tokens, the steps from passes over the data.

    config = resolve_sizes(config, world_size)      # before Trainer(config)

With one budget for all stages, a stage of 5-minute clips takes fewer samples per step than one of 30-second clips, at
the same cost and memory of a step.
"""

from dataclasses import replace

from megatron_af.config import Config, StageConfig
from megatron_af.data.shards import open_rows
from megatron_af.data.storage import DataRoot


def resolve_sizes(config: Config, world_size: int) -> Config:
    """``config`` with ``global_batch_samples`` and ``steps`` of ``config.stage`` as numbers.

    Raises ``FileNotFoundError`` where passes are asked for over data that is not there.
    """
    stage = config.curriculum[config.stage]
    if stage.batch_tokens:
        stage = replace(stage, global_batch_samples=batch_samples(config, stage, world_size))
    if stage.passes:
        root, datasets = DataRoot(config.data.root), config.data.datasets
        rows = {name: len(open_rows(root, datasets[name].manifest)) for name in stage.blend}
        stage = replace(stage, steps=steps_of_passes(stage, rows))
    return replace(config, curriculum={**config.curriculum, config.stage: stage})


def batch_samples(config: Config, stage: StageConfig, world_size: int) -> int:
    """Samples that fit ``stage.batch_tokens``: a whole number of micro-batches on every data-parallel rank."""
    unit = config.step_unit(stage, world_size)
    return max(1, stage.batch_tokens // config.sample_tokens(stage) // unit) * unit


def steps_of_passes(stage: StageConfig, rows: dict[str, int]) -> int:
    """Steps that make ``stage.passes`` over the blend; ``rows``: rows of each data set."""
    samples = stage.passes * sum(weight * rows[name] for name, weight in stage.blend.items())
    return max(1, round(samples / stage.global_batch_samples))

