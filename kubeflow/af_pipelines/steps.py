"""The steps of a pipeline, read off the configuration: its preparation, its stages, its release.

    steps = pipeline_steps(config, "curriculum")     # ordered; each names the steps it waits for

A stage waits for the stages its ``entry`` names, and for everything that prepares: a stage added in YAML is a step
added here, and stages that do not build on each other (text tower and audio encoder) run side by side on a cluster.
"""

import dataclasses
from typing import Any

from megatron_af.config import Config, ConfigError, StageConfig
from megatron_af.digest import digest_value

STAGES = "stages"
"""In ``after``: every stage of the curriculum."""
PIPELINES: dict[str, tuple[str, ...]] = {
    "curriculum": (),
    "evaluate": ("evaluate",),
    "promote": ("register", "gate", "promote"),
}
"""Pipeline -> the steps it consists of; none named: all."""
TRAINERS = {"contrastive": "tools/pretrain_clap.py"}
"""Objective -> tool, where it is not Audio Flamingo's own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepSpec:
    """One node of the pipeline's graph."""

    name: str
    run: tuple[str, ...]
    """Command behind ``python`` or torchrun; ``{config}`` stands for the resolved configuration's file."""
    distributed: bool
    stage: bool
    after: tuple[str, ...]
    reads: str
    """Digest of what of the configuration decides its result, and of the steps it waits for."""

    def argv(self, config_file: str) -> tuple[str, ...]:
        return tuple(part.replace("{config}", config_file) for part in self.run)


def pipeline_steps(config: Config, pipeline: str) -> list[StepSpec]:
    """Steps of a pipeline in an order they can run in.

    Raises `ConfigError` when a step waits for one that does not exist, or for itself by way of others.
    """
    order = _sorted(_waits(config))
    digests: dict[str, str] = {}
    specs = []
    for name, after in order.items():
        digests[name] = digest_value([_inputs(config, name), [digests[waited] for waited in after]])
        stage = config.curriculum.get(name)
        specs.append(
            StepSpec(
                name=name,
                run=_stage_command(name, stage) if stage else config.steps[name].run,
                distributed=stage is not None or config.steps[name].distributed,
                stage=stage is not None,
                after=after,
                reads=digests[name],
            )
        )
    chosen = PIPELINES[pipeline]
    if not chosen:
        return specs
    return [
        dataclasses.replace(spec, after=tuple(name for name in spec.after if name in chosen))
        for spec in specs
        if spec.name in chosen
    ]


def _stage_command(name: str, stage: StageConfig) -> tuple[str, ...]:
    return (TRAINERS.get(stage.objective, "tools/pretrain_af.py"), "--config", "{config}", f"stage={name}")


def _waits(config: Config) -> dict[str, tuple[str, ...]]:
    """Step -> steps it waits for, in the order of the configuration; every problem is reported at once."""
    stages, steps = config.curriculum, config.steps
    problems = [f"steps.{name} has the name of a stage: rename one of them" for name in steps if name in stages]
    first = [name for name, step in steps.items() if not step.after]
    waits: dict[str, list[str]] = {name: [] for name in (*first, *stages, *steps)}
    for name, stage in stages.items():
        waits[name] += first
        waits[name] += [start for start in stage.entry.values() if start in stages and start not in waits[name]]
        waits[name] += [other for other, step in steps.items() if name in step.before]
    for name, step in steps.items():
        if not step.run:
            problems.append(f"steps.{name}.run is empty: write the tool and its arguments")
        for waited in step.after:
            if waited == STAGES:
                waits[name] += stages
            elif waited in waits:
                waits[name].append(waited)
            else:
                problems.append(f"steps.{name}.after names {waited!r}: there are {', '.join(waits)} and {STAGES!r}")
        problems += [
            f"steps.{name}.before names {stage_name!r}, which is no stage: there are {', '.join(stages)}"
            for stage_name in step.before
            if stage_name not in stages
        ]
    if problems:
        raise ConfigError("The steps cannot be put in order", problems)
    return {name: tuple(dict.fromkeys(names)) for name, names in waits.items()}


def _sorted(waits: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """The same steps with each behind those it waits for, otherwise in the order they were written."""
    left, order = dict(waits), dict[str, tuple[str, ...]]()
    while left:
        ready = next((name for name, names in left.items() if all(waited in order for waited in names)), None)
        if ready is None:
            raise ConfigError(
                "The steps wait for each other in a circle; change one of their entry, after or before",
                [f"{name} waits for {', '.join(names)}" for name, names in left.items()],
            )
        order[ready] = left.pop(ready)
    return order


def _inputs(config: Config, name: str) -> Any:
    """What of the configuration decides a step's result; how it is laid out over processes does not."""
    shared = [config.name, config.seed, config.data]
    if name in config.curriculum:
        return [*shared, config.model, config.precision, config.curriculum[name]]
    return [*shared, config.model.front_end, config.steps[name]]
