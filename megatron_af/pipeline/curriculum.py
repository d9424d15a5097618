"""The stages of a curriculum on this machine; done stages left out, failed ones resumed.

    for step in plan(config): print(step)                        # what would run, and why
    run_curriculum(config, start="align")

On a cluster the same stages are steps of a pipeline (``kubeflow/af_pipelines``).
"""

from collections.abc import Sequence
from dataclasses import replace

from megatron_af.config import RETRIEVAL_STEP, Config, ConfigError
from megatron_af.config.errors import suggestion
from megatron_af.data.shards import rows_file
from megatron_af.data.storage import DataRoot
from megatron_af.pipeline.driver import drive
from megatron_af.pipeline.executor import Say, ThisMachine, show
from megatron_af.pipeline.graph import for_pipeline, made_between, pipeline_steps
from megatron_af.pipeline.records import Launch, new_run
from megatron_af.pipeline.stages import Step, decide
from megatron_af.runs.check import check
from megatron_af.runs.paths import CheckpointError
from megatron_af.runs.presence import missing_for_training
from megatron_af.runs.sizes import batch_problems, recorded_batch


def chosen_stages(config: Config, start: str = "", only: str = "") -> list[str]:
    """Stages in their order: all, those from ``start`` on, or ``only`` one. ``ConfigError`` for one that is unknown,
    and where there is none."""
    known = list(config.curriculum)
    if not known:
        raise ConfigError(f"{config.name} has nothing to train", ["curriculum is empty: name its stages"])
    for name in (start, only):
        if name and name not in known:
            raise ConfigError(f"{config.name} has no stage {name!r}{suggestion(name, known)}")
    if only:
        return [only]
    return known[known.index(start) :] if start else known


def plan(config: Config, start: str = "", only: str = "") -> list[Step]:
    """What :func:`run_curriculum` would do now; stages that lack data or a checkpoint are ``blocked``.

    Raises ``ConfigError`` for an unknown stage, or a configuration that cannot run.
    """
    _check(config)
    steps: list[Step] = []
    for stage in chosen_stages(config, start, only):
        step = _next(config, stage, steps)
        if step.action != "skip":
            coming = [before.stage for before in steps if before.action != "skip"]
            of_stage, made = replace(config, stage=stage), made_between(config, stage)
            problems = [*missing_for_training(of_stage, coming, made, anew=step.action != "resume")]
            if step.action == "resume":
                problems += batch_problems(config, stage, recorded_batch(config, stage), _processes(config))
            if problems:
                step = Step(stage=stage, action="blocked", why="; ".join(problems))
        steps.append(step)
    return steps


def _next(config: Config, stage: str, before: Sequence[Step]) -> Step:
    """What to do about a stage behind these."""
    origins = set(config.curriculum[stage].entry.values())
    parents = [step for step in before if step.action != "skip" and step.stage in origins]
    if parents:
        blocked = any(parent.action == "blocked" for parent in parents)
        why = f"after {', '.join(parent.stage for parent in parents)}"
        return Step(stage=stage, action="blocked" if blocked else "train", why=why)
    try:
        made = [config.data.datasets[name].manifest for name in made_between(config, stage)]
        if made and not all(map(DataRoot(config.data.root).exists, map(rows_file, made))):
            return Step(stage=stage, action="train", why=f"after {RETRIEVAL_STEP}")
        return decide(config, stage)
    except (CheckpointError, ImportError, KeyError, OSError, ValueError) as missing:  # or cannot be read
        reason = missing.args[0] if isinstance(missing, KeyError) else missing
        return Step(stage=stage, action="blocked", why=str(reason))


def run_curriculum(config: Config, *, start: str = "", only: str = "", say: Say = show) -> None:
    """Bring every chosen stage to its end: train or resume it, measure it, hold it against its exit gate.

    Raises:
        ConfigError: an unknown stage, or a configuration that cannot run; nothing was started.
        StepFailed: a stage failed; the next call goes on from its newest checkpoint.
        ExitGateFailed: a stage is not good enough for the next one.
        Cancelled: this process was asked to stop, and what it had started has ended.
    """
    steps = plan(config, start, only)
    if blocked := [f"{step.stage}: {step.why}" for step in steps if step.action == "blocked"]:
        raise ConfigError(f"{config.name} cannot run", blocked)
    stages = [step.stage for step in steps]
    config = for_pipeline(config)
    specs = pipeline_steps(config, "stages")
    needed = {name for spec in specs if spec.stage in stages for name in spec.after}
    names = [spec.name for spec in specs if spec.stage in stages or (spec.kind == "command" and spec.name in needed)]
    drive(config, Launch(run=new_run(), pipeline="stages"), ThisMachine(config), names=names, say=say)


def _check(config: Config) -> None:
    problems = check(config, _processes(config))
    if problems:
        raise ConfigError(f"{config.name} cannot run", problems)


def _processes(config: Config) -> int:
    return config.launch.nodes * config.launch.processes_per_node
