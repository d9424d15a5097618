"""Can this configuration run? Checked before any process group, file or model is made.

validate(config, world_size)            # raises ConfigError with every problem, each with its key and a fix
validate_evaluation(config)             # the same for measuring a stage that has been trained
problems = check(config, world_size)    # without looking at files: for a dry run

Ranges stand beside each field, what holds within a section beside its fields, what holds between sections in
``megatron_af.config.rules``. Here, the stages' objectives have their say, and files are looked for.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cache, partial
from pathlib import Path

from megatron_af.config import Config, ConfigError, StageConfig
from megatron_af.config.components import UnknownComponent
from megatron_af.config.errors import listed, suggestion
from megatron_af.config.loading import Unread, unexplained
from megatron_af.config.ranges import keep_in_range
from megatron_af.config.rules import (
    count,
    evaluation_rules,
    layout_rules,
    model_rules,
    name_rules,
    own_problems,
    part_rules,
    reference_rules,
    retrieval_rules,
    stage_rules,
)
from megatron_af.runs.benchmarks import suite_problems
from megatron_af.runs.objectives import OBJECTIVES, spec_of
from megatron_af.runs.presence import missing_for_evaluation, missing_for_training
from megatron_af.runs.results import metric_patterns

READ = Unread()


def validate(config: Config, world_size: int, unread: Unread = READ) -> None:
    """Stop a run that cannot work.

    Args:
        unread: what :func:`~megatron_af.config.loading.read_config` could not use, to be told in the same message.

    Raises:
        ConfigError: with every problem of the configuration, of ``config.stage`` and of the files it needs.
    """
    problems = _with_files(config, [*_layers(config), *check(config, world_size)], missing_for_training)
    if problems := unread.and_also(problems):
        raise ConfigError(f"{config.name} cannot run on {count(world_size, 'process')}", problems)


def validate_evaluation(config: Config, unread: Unread = READ, checkpoint: Path | None = None) -> None:
    """Stop an evaluation of ``config.stage`` that cannot work; what only training needs may be absent.

    Args:
        checkpoint: that is measured; None: the stage's own.

    Raises:
        ConfigError: with every problem of the model, the evaluation sets and the stage's checkpoint.
    """
    usable, out_of_range = keep_in_range(config)
    found = list(model_rules(usable.model))
    if stage := usable.curriculum.get(config.stage):
        prefix = f"curriculum.{config.stage}"
        if stage.objective in OBJECTIVES:
            found += _measured(usable, config.stage)
            for name, bounds in stage.exit_gate.items():
                found += own_problems(bounds, f"{prefix}.exit_gate.{name}")
        else:
            known = " or ".join(OBJECTIVES)
            found.append(f"stage = {config.stage}: its objective is {stage.objective}; name one with {known}")
        if not stage.is_measured:
            found.append(f"{prefix}.evaluation is empty: name the data sets of data.datasets to measure it on")
    found += _layers(usable)
    kept = {key: problem for key, problem in out_of_range.items() if not key.startswith("parallel.")}
    problems = [*_of_stages(kept, config.stage), *unexplained(found, out_of_range)]
    missing = partial(missing_for_evaluation, checkpoint=checkpoint)
    if problems := unread.and_also(_with_files(config, problems, missing)):
        raise ConfigError(f"stage {config.stage} of {config.name} cannot be measured", problems)


def check(config: Config, world_size: int) -> list[str]:
    """Problems of the model, its layout and its stages (of ``config.stage``, or of all when none is named)."""
    config, out_of_range = keep_in_range(config)
    found = [*model_rules(config.model), *layout_rules(config, world_size)]
    found += [*name_rules(config), *reference_rules(config)]
    found += [*part_rules(config), *retrieval_problems(config)]
    for name in [config.stage] if config.stage else config.curriculum:
        if name in config.curriculum:
            found += stage_rules(config, name, world_size)
            found += _objective(config, name)
    return [*_of_stages(out_of_range, config.stage), *unexplained(found, out_of_range)]


def retrieval_problems(config: Config) -> Iterator[str]:
    """What keeps an index from being built, or rows from being made of neighbours."""
    yield from retrieval_rules(config, [name for name, stage in config.curriculum.items() if _embeds(stage)])


def _layers(config: Config) -> Iterator[str]:
    """Whether this process can compute the decoder's layers as the configuration asks."""
    if config.layers == "te":  # else nothing is asked of this machine, and torch need not be imported
        from megatron_af.parallel.device import current_device

        yield from filter(None, [current_device().layers_problem(config.layers)])
    if config.compile:
        from megatron_af.parallel.device import compiler_problem

        yield from filter(None, [compiler_problem()])


def _of_stages(out_of_range: dict[str, str], stage: str) -> Iterator[str]:
    """Without the problems of stages that are not asked for."""
    for key, problem in out_of_range.items():
        if not stage or not key.startswith("curriculum.") or key.startswith(f"curriculum.{stage}."):
            yield problem


def _with_files(config: Config, problems: list[str], missing: Callable[[Config], Iterable[str]]) -> list[str]:
    if config.stage not in config.curriculum:
        return [_unknown_stage(config), *problems]
    try:
        return [*problems, *missing(config)]
    except UnknownComponent:  # its objective: one of the problems
        return problems


def _objective(config: Config, name: str) -> Iterator[str]:
    """What the objective of a stage says of it: which parameters and parts there are, which numbers it gives."""
    prefix, stage = f"curriculum.{name}", config.curriculum[name]
    try:
        objective = spec_of(stage)
    except UnknownComponent as error:
        yield f"{prefix}.objective = {error}"
        return
    families = objective.parameters(replace(config, stage=name))
    for key in ("trainable", "frozen"):
        for pattern in getattr(stage, key):
            any_character = re.sub(r"\[.*?\]", "?", pattern)
            if not any(_meet(any_character, family) for family in families):
                generic = dict.fromkeys(re.sub(r"\d+", "*", family) for family in families)
                yield f"{prefix}.{key}: pattern '{pattern}' matches no parameter{suggestion(pattern, list(generic))}"
    for part in stage.entry:
        if part not in (parts := (*objective.parts_of(stage), "all")):
            yield f"{prefix}.entry.{part}: no such part of the model{suggestion(part, parts)}"
    if stage.lora and "lora" not in objective.parts_of(stage):
        yield f"{prefix}.lora: the objective {stage.objective} trains no language model; take lora out"
    if stage.watch.best == "sure" and "watched/sure" not in objective.step_metrics:
        yield f"{prefix}.watch.best = sure: the objective {stage.objective} says no answers; take loss"
    if stage.calibrate and "watched/sure" not in objective.step_metrics:
        yield f"{prefix}.calibrate: the objective {stage.objective} says no answers; take calibrate out"
    yield from objective.problems(config, name)
    yield from _measured(config, name)


def _measured(config: Config, name: str) -> Iterator[str]:
    """Evaluation sets, and the metrics that the exit gate waits for."""
    yield from evaluation_rules(config, name)
    stage = config.curriculum[name]
    yield from suite_problems(stage.suites, f"curriculum.{name}.suites")
    known = metric_patterns(stage)
    for metric in stage.exit_gate:
        if not any(fnmatchcase(metric, pattern) for pattern in known):
            yield f"curriculum.{name}.exit_gate.{metric}: nobody logs it{suggestion(metric, known)}"


def _embeds(stage: StageConfig) -> bool:
    try:
        return spec_of(stage).embeds
    except UnknownComponent:  # told elsewhere
        return False


def _unknown_stage(config: Config) -> str:
    names = list(config.curriculum)
    if not config.stage:
        return f"stage is not set: add stage=NAME with one of {listed(names)}"
    return f"stage = {config.stage}: not in curriculum{suggestion(config.stage, names)}"


@cache
def _meet(one: str, other: str) -> bool:
    """Whether some name fits both patterns (``*`` and ``?``)."""
    if one.startswith("*"):
        return _meet(one[1:], other) or (other != "" and _meet(one, other[1:]))
    if other.startswith("*"):
        return _meet(other, one)
    if not one or not other:
        return one == other
    return (one[0] == other[0] or "?" in (one[0], other[0])) and _meet(one[1:], other[1:])
