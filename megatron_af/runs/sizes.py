"""Sizes that a stage leaves open: the global batch from a budget of tokens, the steps from passes over the data.

    config = resolve_sizes(config, world_size)      # before Trainer(config)

With one budget for all stages, a stage of 5-minute clips takes fewer samples per step than one of 30-second clips, at
the same cost and memory of a step. The batch is rounded to what the ranks can share when a stage begins; its
checkpoints record it, and whoever goes on from one takes the recorded batch, on however many ranks.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from megatron_af.config import Config, ConfigError, StageConfig
from megatron_af.config.loading import load_config
from megatron_af.data.shards import longest_clips, open_rows
from megatron_af.data.storage import DataRoot
from megatron_af.runs.paths import SETTINGS, CheckpointError, latest

GIVEN_UP = 1 / 6
"""Part of the budget that a batch may leave unused so that more ranks can share it later."""


def resolve_sizes(config: Config, world_size: int) -> Config:
    """``config`` with ``global_batch_samples`` and ``steps`` of ``config.stage`` as numbers.

    Raises ``FileNotFoundError`` where passes are asked for over data that is not there, and ``ConfigError`` where the
    recorded batch cannot be shared by these ranks.
    """
    stage = config.curriculum[config.stage]
    if stage.batch_tokens:
        samples = recorded_batch(config, config.stage)
        if problems := list(batch_problems(config, config.stage, samples, world_size)):
            raise ConfigError(f"{config.name} cannot go on with {world_size} processes", problems)
        samples = samples or batch_samples(config, stage, world_size)
        stage = replace(stage, global_batch_samples=samples)
    stage = replace(stage, steps=planned_steps(config, stage))
    return replace(config, curriculum={**config.curriculum, config.stage: stage})


def planned_steps(config: Config, stage: StageConfig) -> int:
    """Steps of a stage whose batch is known; raises ``FileNotFoundError`` for data that is not there."""
    if not stage.passes:
        return stage.steps
    root, datasets = DataRoot(config.data.root), config.data.datasets
    rows = {name: len(open_rows(root, datasets[name].manifest)) for name in stage.blend}
    return steps_of_passes(stage, rows)


def batch_samples(config: Config, stage: StageConfig, world_size: int) -> int:
    """Samples that fit ``stage.batch_tokens``: a whole number of micro-batches on every data-parallel rank.

    Of such numbers, one that twice, four times, … as many ranks can share as well, as far as that costs no more than
    ``GIVEN_UP`` of the budget: the run may then go on with more of them.
    """
    unit = config.step_unit(stage, world_size)
    units = max(1, stage.batch_tokens // config.sample_tokens(stage, most_clips(config, stage)) // unit)
    shared = 1
    while (rounded := units // (2 * shared) * 2 * shared) and rounded >= (1 - GIVEN_UP) * units:
        shared *= 2
    return units // shared * shared * unit


def most_clips(config: Config, stage: StageConfig) -> int:
    """Clips of the row that has the most, over the blend; 1 where the data is not there yet."""
    root, most = DataRoot(config.data.root), 1
    for name in stage.blend:
        with suppress(FileNotFoundError, KeyError):
            most = max(most, longest_clips(root, config.data.datasets[name].manifest))
    return most


def recorded_batch(config: Config, stage: str) -> int:
    """Samples of a step as the stage's newest checkpoint has them; 0 where there is none of the same budget."""
    try:
        checkpoint = latest(config.stage_folder(stage) / "checkpoints")
        if checkpoint is None or not (checkpoint / SETTINGS).is_file():
            return 0
        recorded = load_config(checkpoint / SETTINGS).curriculum[stage]
    except (CheckpointError, ConfigError, KeyError):  # told by whoever loads it
        return 0
    return recorded.global_batch_samples if recorded.batch_tokens == config.curriculum[stage].batch_tokens else 0


def batch_problems(config: Config, stage: str, samples: int, world_size: int) -> Iterator[str]:
    """Why these ranks cannot share a recorded batch of ``samples``, with the nearest numbers of ranks that can."""
    settings = config.curriculum[stage]
    unit = config.step_unit(settings, world_size)
    if not samples or not unit or samples % unit == 0:
        return
    model = config.parallel.tensor * config.parallel.pipeline
    group = unit // (world_size // model)  # samples of one data-parallel rank
    fitting = [ranks for ranks in range(1, samples // group + 1) if samples % (ranks * group) == 0]
    near = sorted(fitting, key=lambda ranks: abs(ranks * model - world_size))[:3]
    sizes = ", ".join(str(ranks * model) for ranks in sorted(near))
    yield (
        f"curriculum.{stage}.batch_tokens = {settings.batch_tokens}: the stage began with {samples} samples a step, "
        f"which {world_size} processes cannot share (a multiple of {unit}); start {sizes or 'fewer'} processes, or set "
        f"curriculum.{stage}.micro_batch_samples (now {settings.micro_batch_samples}) so that {samples} is a multiple"
    )


def steps_of_passes(stage: StageConfig, rows: dict[str, int]) -> int:
    """Steps that make ``stage.passes`` over the blend; ``rows``: rows of each data set."""
    return steps_of_samples(stage, stage.passes * sum(weight * rows[name] for name, weight in stage.blend.items()))


def steps_of_samples(stage: StageConfig, samples: float) -> int:
    """Steps of a stage, whose batch is known, that come nearest to so many samples."""
    return max(1, round(samples / stage.global_batch_samples))
