"""What a run computes, written down by its ranks: numbers, gradients and weights by their one name, samples, a resume.

    start = run_distributed(write_start, 1, small)[0]                  # live weights, as a checkpoint
    seen = joined(run_distributed(observe, 2, begun_from(laid_out(small, parallel, "TP2"), start)))
    again = joined(run_distributed(resume, 2, laid_out(small, parallel, "TP2")))     # from its checkpoint of step CUT

Runs are the product's own trainer over its own stream of data, in the layout that the configuration says.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from megatron_af.config import Config
from megatron_af.config.loading import to_yaml
from megatron_af.data.batch import StepBatch
from megatron_af.files import write
from megatron_af.parallel import groups as process_groups
from megatron_af.parallel.device import current_device
from megatron_af.parallel.global_state import gather_global, load_global
from megatron_af.prove.live_weights import live
from megatron_af.prove.shrink import CUT
from megatron_af.runs.paths import LATEST, Resume
from megatron_af.text.tokenizer import Tokenizer
from megatron_af.train.callbacks import Callback, Record
from megatron_af.train.checkpoint import Checkpoints
from megatron_af.train.objectives.base import Learner, objective_of
from megatron_af.train.trainer import Trainer

START = "start"


@dataclass(kw_only=True)
class Observation:
    """Of one run; of one rank of it until :func:`joined`."""

    numbers: dict[int, dict[str, float]] = field(default_factory=dict)
    """Step (from 1) -> what the objective says of it, the gradient's norm, the learning rate."""
    samples: dict[int, dict[int, tuple[str, ...]]] = field(default_factory=dict)
    """Step -> data-parallel rank -> ids of its samples, in their order."""
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)
    """Of the first step, before they are clipped: whole tensors; on rank 0."""
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    """Behind the last step: whole tensors; on rank 0."""

    def order(self, step: int) -> list[str]:
        """Ids of a step's samples, in the order of the global batch."""
        return [sample for _, ids in sorted(self.samples[step].items()) for sample in ids]


class _Watched:
    """A learner whose gradients are kept once they are complete."""

    def __init__(self, learner: Learner, trainer: Trainer, seen: Observation) -> None:
        self._learner, self._trainer, self._seen = learner, trainer, seen

    def forward_backward(self, batch: StepBatch[Any]) -> dict[str, float]:
        numbers = self._learner.forward_backward(batch)
        self._seen.numbers[self._trainer.step + 1] = dict(numbers)
        if self._trainer.step == 0:
            self.optimizer.gather_gradients()
            model = self._trainer.model
            self._seen.gradients = gather_global(model.chunks, model.front, "main_grad")
        return numbers

    def __getattr__(self, name: str) -> Any:
        return getattr(self._learner, name)


class _Observe(Callback):
    def __init__(self, seen: Observation) -> None:
        self._seen = seen

    def on_start(self, trainer: Trainer) -> None:
        trainer.learner = _Watched(trainer.learner, trainer, self._seen)

    def on_batch(self, trainer: Trainer, batch: StepBatch[Any], waited: float) -> None:
        if trainer.groups.model_rank == 0:
            self._seen.samples[trainer.step + 1] = {trainer.groups.data_rank: batch.sample_ids}

    def on_step(self, trainer: Trainer, record: Record) -> None:
        kept = {name: record[name] for name in ("grad_norm", "learning_rate")}
        self._seen.numbers[trainer.step] |= kept

    def on_end(self, trainer: Trainer, reason: str) -> None:
        if reason == "done":
            trainer.learner.sync_parameters()
            self._seen.weights = gather_global(trainer.model.chunks, trainer.model.front, "data")


def observe(rank: int, world_size: int, config: Config) -> Observation:
    """Train ``config.stage`` to its end on these ranks, from its newest checkpoint if it has one."""
    seen = Observation()
    with Trainer(config, [_Observe(seen)]) as trainer:
        trainer.train()
    return seen


def write_start(rank: int, world_size: int, config: Config) -> str:
    """Save the stage's model, with live weights, by one process; the checkpoint's path."""
    stage = config.curriculum[config.stage]
    objective = objective_of(stage)
    groups = process_groups.initialize(config.parallel, config.seed)
    parts = objective.parts_of(stage)
    model = objective.build(config, Tokenizer.load(config.data.tokenizer), current_device(), parts)
    # A single number, such as a temperature, is what the configuration says.
    single = {name: parameter.detach().clone() for name, parameter in model.named_parameters() if not parameter.dim()}
    load_global(model.chunks, model.front, lambda name, shape: single[name] if name in single else live(name, shape))
    checkpoints = Checkpoints(Path(config.output) / START / config.stage / "checkpoints", keep=0)
    resume = Resume(stage=config.stage, step=0, skipped=0, samples=0, world_size=world_size)
    return str(checkpoints.save(model, None, groups, resume, {}, parts, to_yaml(config)))


def begun_from(config: Config, start: str) -> Config:
    """The configuration, with the weights that it begins with."""
    stage = replace(config.curriculum[config.stage], entry={"all": start})
    return replace(config, curriculum={config.stage: stage})


def rewound(config: Config, step: int = CUT) -> Config:
    """The configuration, when its run has been set back to the checkpoint of a step: what is observed next resumes."""
    folder = config.stage_folder(config.stage) / "checkpoints"
    kept = f"step_{step:08d}"
    for checkpoint in folder.glob("step_*"):
        if checkpoint.name != kept:
            shutil.rmtree(checkpoint)
    write(folder / LATEST, kept)
    return config


def joined(seen: Sequence[Observation]) -> Observation:
    """One observation of what the ranks of a run saw. Numbers are rank 0's: the others' are the same.

    Raises:
        ValueError: some rank has other numbers.
    """
    first = seen[0]
    for rank, other in enumerate(seen):
        for step, numbers in other.numbers.items():
            if numbers != first.numbers[step]:
                differing = next(name for name in numbers if numbers[name] != first.numbers[step].get(name))
                raise ValueError(
                    f"step {step}: rank {rank} has {differing} = {numbers[differing]!r}, rank 0 has "
                    f"{first.numbers[step].get(differing)!r}"
                )
        for step, ids in other.samples.items():
            first.samples.setdefault(step, {}).update(ids)
    return first
