"""The steps of a pipeline, read off the configuration: its preparation, its stages, its release.

    steps = pipeline_steps(config, "curriculum")     # ordered; each names the steps it waits for

A stage waits for the stages its ``entry`` names, and for everything that prepares: a stage added in YAML is a step
added here, and stages that do not build on each other (text and audio) run side by side on a cluster. A stage with an
``evaluation`` has a second step that measures it; the next stages wait for that one where there is an exit gate. Where
stages learn from neighbours, the step ``retrieval`` finds them between the stage that embeds and those stages.
"""

import dataclasses
from typing import Any, Literal

from megatron_af.config import RETRIEVAL_STEP, Config, ConfigError
from megatron_af.config.effects import Effect, values
from megatron_af.runs.digests import digest_value
from megatron_af.runs.identity import measured_settings, stage_settings, step_settings

STAGES = "stages"
"""In ``after``: every stage of the curriculum, trained and measured."""
PIPELINES = ("curriculum", "stages", "evaluate", "promote")
"""All steps; the stages, their evaluations and what stands between stages; the evaluations; the release."""
RELEASE = ("register", "gate", "promote")

type Kind = Literal["train", "measure", "command"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepSpec:
    """One node of the pipeline's graph."""

    name: str
    kind: Kind
    stage: str = ""
    """Stage that is trained or measured."""
    run: tuple[str, ...] = ()
    """Of a command: what stands behind ``python``; ``{config}`` is the resolved configuration's file."""
    distributed: bool = True
    after: tuple[str, ...]
    reads: str
    """Digest of what of the configuration decides its result, and of the steps it waits for."""

    def argv(self, config_file: str) -> tuple[str, ...]:
        return tuple(part.replace("{config}", config_file) for part in self.run)


def pipeline_steps(config: Config, pipeline: str) -> list[StepSpec]:
    """Steps of a pipeline in an order they can run in.

    Raises `ConfigError` when a step waits for one that does not exist, or for itself by way of others.
    """
    measured = {measure_step(stage): stage for stage, settings in config.curriculum.items() if settings.is_measured}
    digests: dict[str, str] = {}
    specs = []
    for name, after in _sorted(_waits(config, measured)).items():
        digests[name] = digest_value([_inputs(config, name, measured), [digests[waited] for waited in after]])
        known = {"name": name, "after": after, "reads": digests[name]}
        if name in config.curriculum:
            specs.append(StepSpec(kind="train", stage=name, **known))  # type: ignore[arg-type]
        elif name in measured:
            specs.append(StepSpec(kind="measure", stage=measured[name], **known))  # type: ignore[arg-type]
        else:
            step = config.all_steps()[name]
            specs.append(StepSpec(kind="command", run=step.run, distributed=step.distributed, **known))  # type: ignore[arg-type]
    if pipeline == "curriculum":
        return specs
    between = [name for name, step in config.all_steps().items() if step.after and step.before]
    chosen = {"stages": {*config.curriculum, *measured, *between}, "evaluate": measured, "promote": RELEASE}[pipeline]
    return [
        dataclasses.replace(spec, after=tuple(name for name in spec.after if name in chosen))
        for spec in specs
        if spec.name in chosen
    ]


def for_pipeline(config: Config) -> Config:
    """The configuration of every step: the pipeline ends the curriculum's MLflow run itself, so a stage must not."""
    return dataclasses.replace(config, tracking=dataclasses.replace(config.tracking, alone=False), stage="")


def made_between(config: Config, stage: str) -> set[str]:
    """Data sets of a stage's blend that the step before it makes of neighbours, so that they need not be there yet."""
    step = config.all_steps().get(RETRIEVAL_STEP)
    if step is None or stage not in step.before:
        return set()
    datasets = config.data.datasets
    return {name for name in config.curriculum[stage].blend if name in datasets and datasets[name].neighbours}


def measure_step(stage: str) -> str:
    """Name of the step that measures a stage."""
    return f"evaluate-{stage}"


def _waits(config: Config, measured: dict[str, str]) -> dict[str, tuple[str, ...]]:
    """Step -> steps it waits for, in the order of the configuration; every problem is reported at once."""
    stages, steps = config.curriculum, config.all_steps()
    problems = [
        f"steps.{name} has the name of a stage or of its evaluation: rename it"
        for name in steps
        if name in stages or name in measured
    ]
    first = [name for name, step in steps.items() if not step.after]
    # In this order, as far as the waiting allows.
    waits: dict[str, list[str]] = {name: [] for name in first}
    for stage in stages:
        waits |= {stage: []} | ({measure_step(stage): [stage]} if measure_step(stage) in measured else {})
    waits |= {name: [] for name in steps if name not in waits}
    for name, settings in stages.items():
        waits[name] += first
        for start in dict.fromkeys(settings.entry.values()):
            if start in stages:
                gated = measure_step(start) in measured and stages[start].exit_gate
                waits[name].append(measure_step(start) if gated else start)
        waits[name] += [other for other, step in steps.items() if name in step.before]
    for name, step in steps.items():
        if not step.run:
            problems.append(f"steps.{name}.run is empty: write the tool and its arguments")
        for waited in step.after:
            if waited == STAGES:
                waits[name] += [*stages, *measured]
                if name != RETRIEVAL_STEP and RETRIEVAL_STEP in steps and not steps[RETRIEVAL_STEP].before:
                    waits[name].append(RETRIEVAL_STEP)  # no stage waits for the index, but a release takes it along
            elif waited in waits:
                waits[name].append(waited)
            else:
                problems.append(f"steps.{name}.after names {waited!r}: there are {', '.join(waits)} and {STAGES!r}")
        problems += [
            f"steps.{name}.before names {stage!r}, which is no stage: there are {', '.join(stages)}"
            for stage in step.before
            if stage not in stages
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


def _inputs(config: Config, name: str, measured: dict[str, str]) -> Any:
    """What of the configuration decides a step's result; how it is laid out over processes does not."""
    if name in measured:
        return measured_settings(config, measured[name])
    if name not in config.curriculum:
        return step_settings(config, name)
    # A longer stage is the same one, but what is registered of it is not.
    return [stage_settings(config, name), values(config.curriculum[name], Effect.LENGTH)]
