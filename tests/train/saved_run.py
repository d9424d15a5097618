"""A toy that trains, saves after some steps, and goes on in any layout."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from megatron_af.config import LoRAConfig
from megatron_af.model import build
from megatron_af.parallel import groups as process_groups
from megatron_af.parallel.device import current_device
from megatron_af.runs.paths import Resume, latest, read_resume
from megatron_af.train.checkpoint import Checkpoints
from megatron_af.train.checkpoint_reading import load_optimizer, load_parts
from megatron_af.train.objectives.answer import Answer
from megatron_af.train.objectives.answer_learner import AnswerLearner
from megatron_af.train.optimizer import build_schedule
from megatron_af.train.trainable import select
from tests import tiny

SAVED_AT = 3
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one": (1, {}),
    "DP2": (2, {}),
    "DP2+ZeRO-1": (2, {"distributed_optimizer": True}),
    "TP2": (2, {"tensor": 2, "sequence": True}),
    "PP2": (2, {"pipeline": 2}),
    "PP2xVPP2": (2, {"pipeline": 2, "virtual_pipeline": 2}),
    "PP3, unevenly cut": (3, {"pipeline": 3}),
    "PP2xDP2+ZeRO-1": (4, {"pipeline": 2, "distributed_optimizer": True}),
    "TP2xPP2+SP": (4, {"tensor": 2, "pipeline": 2, "sequence": True}),
}


def run(
    rank: int,
    world_size: int,
    layout: dict[str, Any],
    folder: str,
    *,
    steps: int,
    resume: bool,
    asynchronous: bool = False,
    precision: str = "fp32",
    trainable: tuple[str, ...] = tiny.FROZEN_LM,
    lm: dict[str, Any] | None = None,
    lora: LoRAConfig | None = None,
) -> list[float]:
    """Train ``steps`` steps; saves after step ``SAVED_AT``, or starts from that checkpoint. Losses and norms."""
    config = dataclasses.replace(tiny.config(trainable=trainable, lora=lora, **layout), precision=precision)
    model_config = dataclasses.replace(config.model, lm=dataclasses.replace(config.model.lm, **(lm or {})))
    config = dataclasses.replace(config, model=model_config)
    stage = config.curriculum["stage"]
    groups = process_groups.initialize(config.parallel, config.seed)
    model = build(config, tiny.VOCABULARY, current_device())
    if not resume:
        tiny.fill(model)
    select(model.named_parameters(), stage)
    checkpoints = Checkpoints(Path(folder), keep=2, asynchronous=asynchronous)
    start = 0
    if resume:
        path = latest(Path(folder))
        assert path is not None
        load_parts(model, groups, path, Answer().parts_of(stage))
        start = read_resume(path)["step"]
    objective = AnswerLearner(config, stage, model, groups, torch.device("cpu"))
    schedule = build_schedule(stage.optimizer, 50, objective.optimizer)
    if resume:
        load_optimizer(model, objective.optimizer, groups, path, {})
        schedule.num_steps = start
    numbers = []
    for step in range(start, start + steps):
        batch = tiny.step_batch(
            step,
            dp_rank=groups.data_rank,
            dp_size=groups.data_size,
            mp_rank=groups.model_rank,
            mp_size=groups.model_size,
        )
        numbers.append(objective.forward_backward(batch)["loss"])
        schedule.step(1)
        numbers.append(objective.optimizer.step_checked())
        checkpoints.poll()
        if not resume and step + 1 == SAVED_AT:
            state = Resume(stage="stage", step=SAVED_AT, skipped=0, samples=24, world_size=world_size)
            checkpoints.save(model, objective.optimizer, groups, state, {}, Answer().parts_of(stage))
    checkpoints.close()
    process_groups.destroy()
    return numbers
