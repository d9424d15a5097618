"""A curriculum on one machine: every stage under torchrun, done stages left out, failed ones resumed.

    for step in plan(config): print(step)                        # what would run, and why
    run_curriculum(config, start="align", watch=print)

What a stage was made from is kept as digests in its folder (``stage.json``): its configuration, its data, and the
checkpoints it starts from. The same inputs are not trained twice; other inputs put the old result aside and train
anew. On a cluster the same stages are steps of a pipeline (``kubeflow/af_pipelines``).
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from megatron_af.config import Config, ConfigError
from megatron_af.config.loading import suggestion, to_yaml
from megatron_af.runs.check import check
from megatron_af.runs.identity import checkpoint_digest, evaluation_inputs, stage_inputs
from megatron_af.runs.objectives import spec_of
from megatron_af.runs.paths import CheckpointError, latest, read_result, read_resume
from megatron_af.runs.presence import missing_for_training
from megatron_af.runs.records import StageRecord
from megatron_af.runs.results import Results, tables
from megatron_af.runs.sizes import planned_steps, recorded_batch
from megatron_af.tracking.runs import TrackedRun, stage_spool, start_curriculum_run
from megatron_af.tracking.spool import Spool, metric_name

TOOLS = Path(__file__).parents[2] / "tools"
STOPPED = (3, 128 + signal.SIGINT, 128 + signal.SIGTERM)
"""Exit codes of a stage that was asked to stop, and wrote a checkpoint if it had begun."""
HOPELESS = (2, 42)
"""Exit codes of one that fails again in the same way: its configuration cannot run, or its gradients do not mend."""

type Watch = Callable[[str, str], None]
"""Called with a stage and each line that its processes print."""
type Launch = Callable[[str, str, Sequence[str], Path, Callable[[str], None]], int]
"""Runs a tool on a stage's processes: tool, stage, further arguments, the log to append to, whom to tell each line.
Returns its exit code. Here that is torchrun; a pipeline has launchers of its own."""


class StageFailed(RuntimeError):
    """A stage ended without its result; the message holds the end of its output and what to do."""


class ExitGateFailed(RuntimeError):
    """A stage is trained, but its numbers are not good enough to build on."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """What is to be done about a stage, and why."""

    stage: str
    action: Literal["skip", "train", "resume", "blocked"]
    why: str
    inputs: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.stage:<12} {self.action:<7} {self.why}"


def chosen_stages(config: Config, start: str = "", only: str = "") -> list[str]:
    """Stages in their order: all, those from ``start`` on, or ``only`` one. ``ConfigError`` for one that is unknown."""
    known = list(config.curriculum)
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
            missing = missing_for_training(replace(config, stage=stage), coming, anew=step.action != "resume")
            if problems := "; ".join(missing):
                step = Step(stage=stage, action="blocked", why=problems)
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
        return decide(config, stage)
    except (FileNotFoundError, KeyError) as missing:
        reason = missing.args[0] if isinstance(missing, KeyError) else missing
        return Step(stage=stage, action="blocked", why=str(reason))


def decide(config: Config, stage: str) -> Step:
    """What to do about a stage whose parents are as they should be.

    Raises ``FileNotFoundError`` or ``KeyError`` for data or parent checkpoints that are missing, naming the key.
    """
    inputs = stage_inputs(config, stage)
    folder = config.stage_folder(stage)
    record, newest = StageRecord.load(folder), latest(folder / "checkpoints")
    if record is None:
        action, why = ("resume", "has a checkpoint, but not its end") if newest else ("train", "not trained yet")
    elif changed := sorted(name for name in inputs | record.inputs if inputs.get(name) != record.inputs.get(name)):
        action, why = "train", f"changed: {', '.join(changed)}"
    elif newest is None:
        why = f"its checkpoint {record.checkpoint} is gone" if record.done else "did not reach a checkpoint"
        action = "train"
    else:
        action, why = _go_on(config, stage, newest, done=record.done)
    return Step(stage=stage, action=action, why=why, inputs=inputs)  # type: ignore[arg-type]


def _go_on(config: Config, stage: str, newest: Path, *, done: bool) -> tuple[str, str]:
    """Of a stage that is the same as before: is there anything left of it?"""
    settings = config.curriculum[stage]
    if settings.batch_tokens:
        settings = replace(settings, global_batch_samples=recorded_batch(config, stage))
    steps, reached = planned_steps(config, settings), read_resume(newest)["step"]
    if reached < steps:
        return "resume", f"has {reached} of {steps} steps" if done else "did not come to its end"
    if not done or not read_result(config.stage_folder(stage)):
        return "resume", "has its last checkpoint, but not its end"
    longer = f" ({steps} steps were asked for; a shorter stage needs another name=)" if reached > steps else ""
    return "skip", f"done: {newest.name}{longer}"


def run_curriculum(
    config: Config, *, start: str = "", only: str = "", watch: Watch = lambda stage, line: print(line, end="")
) -> None:
    """Bring every chosen stage to its end: train or resume it, measure it, hold it against its exit gate.

    Raises:
        ConfigError: an unknown stage, or a configuration that cannot run; nothing was started.
        StageFailed: a stage failed or was stopped; the next call goes on from its newest checkpoint.
        ExitGateFailed: a stage is not good enough for the next one.
    """
    steps = plan(config, start, only)
    if blocked := [f"{step.stage}: {step.why}" for step in steps if step.action == "blocked"]:
        raise ConfigError(f"{config.name} cannot run", blocked)
    config = replace(config, tracking=replace(config.tracking, alone=False), stage="")
    root = Path(config.output) / config.name
    root.mkdir(parents=True, exist_ok=True)
    (root / "config.yaml").write_text(to_yaml(config))
    with _Tracking(config) as tracking:
        for stage in (step.stage for step in steps):
            launch = launch_here(config)
            train_stage(config, stage, launch, watch)
            metrics = measure_stage(config, stage, launch, watch, tracking.spool)
            hold_against_gate(config, stage, metrics)


def _check(config: Config) -> None:
    problems = check(config, config.launch.nodes * config.launch.processes_per_node)
    if problems:
        raise ConfigError(f"{config.name} cannot run", problems)


def stage_command(config: Config, tool: str, stage: str) -> list[str]:
    """The command that runs a tool on a stage with the configuration in ``output/name/config.yaml``."""
    processes = f"--nproc_per_node={config.launch.processes_per_node}"
    torchrun = ["-m", "megatron_af.pipeline.torchrun", "--standalone", processes]
    resolved = Path(config.output) / config.name / "config.yaml"
    return [sys.executable, *torchrun, str(TOOLS / tool), "--config", str(resolved), f"stage={stage}"]


def launch_here(config: Config) -> Launch:
    def launch(tool: str, stage: str, more: Sequence[str], log: Path, watch: Callable[[str], None]) -> int:
        return run_command([*stage_command(config, tool, stage), *more], log, watch)

    return launch


def run_command(command: Sequence[str], log: Path, watch: Callable[[str], None]) -> int:
    """Run a command to its end, its output line by line in ``log`` and to ``watch``; its exit code.

    When this process is interrupted, so is the command, and it gets the time to write a checkpoint.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **os.environ}
    environment["PYTHONPATH"] = os.pathsep.join([str(TOOLS.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    with (
        log.open("a") as file,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                file.write(line)
                file.flush()
                watch(line)
        except BaseException:
            process.terminate()
            file.writelines(process.stdout)  # to the end: who cannot print any more writes no checkpoint either
            raise
    return process.returncode


def train_stage(config: Config, stage: str, launch: Launch, watch: Watch) -> None:
    """Train or resume a stage unless it is done. Raises ``StageFailed``, and what :func:`decide` raises."""
    step, folder = decide(config, stage), config.stage_folder(stage)
    watch(stage, f"{step}\n")
    if step.action == "skip":
        return
    record = StageRecord.load(folder)
    if record is not None and record.inputs != step.inputs:
        _put_aside(folder)
        record = None
    StageRecord(inputs=step.inputs, seconds=record.seconds if record else 0.0).save(folder)
    started = time.monotonic()
    tail: list[str] = []

    def see(line: str) -> None:
        tail.append(line)
        del tail[:-40]
        watch(stage, line)

    code = launch("pretrain_af.py", stage, (), folder / "log.txt", see)
    seconds = time.monotonic() - started + (record.seconds if record else 0.0)
    if code:
        StageRecord(inputs=step.inputs, seconds=seconds).save(folder)
        end = f"The end of {folder / 'log.txt'}:\n{''.join(tail)}"
        if code in HOPELESS:
            raise ConfigError(f"stage {stage} cannot run, and trying again would not help. {end}")
        how = "was stopped" if code in STOPPED else f"failed with exit code {code}"
        raise StageFailed(f"stage {stage} {how}; the same command resumes it. {end}")
    checkpoint = latest(folder / "checkpoints")
    if checkpoint is None:
        raise CheckpointError(f"stage {stage} ended well but wrote no checkpoint into {folder / 'checkpoints'}")
    StageRecord(
        inputs=step.inputs,
        done=True,
        checkpoint=checkpoint.name,
        digest=checkpoint_digest(checkpoint),
        seconds=seconds,
    ).save(folder)


def measure_stage(config: Config, stage: str, launch: Launch, watch: Watch, parent: Spool | None) -> dict[str, float]:
    """Metrics of a trained stage: of its last steps, and of its evaluation, which runs if it has not yet.

    With the curriculum's spool as ``parent`` they also go to the stage's run in MLflow, and their totals to its parent.
    """
    settings, folder = config.curriculum[stage], config.stage_folder(stage)
    record = StageRecord.load(folder)
    assert record is not None, "only a trained stage is measured"
    measured = f"{record.digest} on {evaluation_inputs(config, stage)}" if settings.evaluation else record.evaluated
    if record.evaluated != measured:
        log = folder / "evaluation.txt"
        for tool, more in spec_of(settings).evaluations(config, stage):
            if code := launch(tool, stage, more, log, lambda line: watch(stage, line)):
                raise StageFailed(f"the evaluation of stage {stage} failed with exit code {code}: see {log}")
        replace(record, evaluated=measured).save(folder)
        if parent is not None:
            _log_evaluation(config, stage, record.inputs, parent)
    return read_result(folder) | Results.load(folder).metrics


def hold_against_gate(config: Config, stage: str, metrics: Mapping[str, float]) -> None:
    """Raises ``ExitGateFailed`` with every bound that a stage's metrics do not keep."""
    problems = []
    for name, bounds in config.curriculum[stage].exit_gate.items():
        if name not in metrics:
            known = sorted(metrics)
            raise ConfigError(f"curriculum.{stage}.exit_gate.{name}: nobody logs it{suggestion(name, known)}")
        value = metrics[name]
        if bounds.min is not None and not value >= bounds.min:
            problems.append(f"{name} = {value:.4g}, expected at least {bounds.min:g}")
        if bounds.max is not None and not value <= bounds.max:
            problems.append(f"{name} = {value:.4g}, expected at most {bounds.max:g}")
    if problems:
        raise ExitGateFailed(
            f"stage {stage} is trained but does not pass its exit gate: {'; '.join(problems)}. "
            f"Train it longer or otherwise, or change curriculum.{stage}.exit_gate"
        )


def _put_aside(folder: Path) -> None:
    """Keep one older result of a stage, beside it, until the next one replaces it."""
    old = folder.with_name(f"{folder.name}.replaced")
    shutil.rmtree(old, ignore_errors=True)
    folder.rename(old)


def _log_evaluation(config: Config, stage: str, inputs: Mapping[str, str], parent: Spool) -> None:
    """Numbers and tables of a stage's evaluation, in its own run; its numbers in the curriculum's, too."""
    folder = config.stage_folder(stage)
    metrics = Results.load(folder).metrics
    step = int(read_result(folder).get("step", 0))
    spool = Spool(stage_spool(config, stage, inputs))
    # Not ``metrics``: those are the training's own, by whose last step a resumed stage knows how far it came.
    spool.append("evaluation", step=step, values={metric_name(name): value for name, value in metrics.items()})
    for name, (columns, rows) in tables(folder).items():
        spool.append("table", name=f"evaluation/{name}.json", columns=columns, data=rows)
    for picture in sorted((folder / "pictures").glob("*.png")):
        spool.append("artifact", file=str(picture.absolute()), to="pictures")
    totals = {f"{stage}/{name}": value for name, value in metrics.items() if "/overall/" in name}
    parent.append("evaluation", step=step, values={metric_name(k): v for k, v in totals.items()})


class _Tracking:
    """The curriculum's run in MLflow, where tracking is on; ended with what it came to."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._run: TrackedRun | None = None

    def __enter__(self) -> "_Tracking":
        if self._config.tracking.enabled:
            self._run = start_curriculum_run(self._config)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._run is None:
            return
        if error is None:
            self._run.end("FINISHED", "done")
        elif isinstance(error, KeyboardInterrupt):
            self._run.end("KILLED", "interrupted")
        else:
            self._run.end("FAILED", str(error).splitlines()[0])
        self._run.wait(self._config.tracking.linger_seconds)
        self._send_the_rest()

    @property
    def spool(self) -> Spool | None:
        return self._run.spool if self._run else None

    def _send_the_rest(self) -> None:
        """What was written after a stage's own sender had ended. Without the server it waits for the next time."""
        root = Path(self._config.output) / self._config.name
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(
                [sys.executable, "-m", "megatron_af.tracking", str(root)],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=self._config.tracking.linger_seconds,
                env={**os.environ, "PYTHONPATH": str(TOOLS.parent)},
            )  # fmt: skip
