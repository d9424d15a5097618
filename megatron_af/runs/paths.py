"""Where the files of a run lie, and what a checkpoint says of itself; needs neither torch nor megatron.

runs/demo/                     ``config.output/config.name``
  align/                       a stage
    checkpoints/
      latest                   name of the newest complete checkpoint
      best                     name of the best one, where the stage looks for it (``watch.best``)
      step_00000300/checkpoint.json, config.yaml
"""

import re
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from megatron_af.config import Config, StageConfig
from megatron_af.foreign import read_bytes, read_json

MANIFEST = "checkpoint.json"
LATEST, BEST = "latest", "best"
SETTINGS = "config.yaml"
"""In a checkpoint: the resolved configuration that it was written with."""
REPLACED = ".replaced"
"""Behind the name of a checkpoint while another one of the same step takes its place."""
STEP = re.compile(r"step_\d+")
"""The name of a checkpoint's folder."""
RESULT = "result.json"
"""In a stage's folder: its last numbers (``train/stage_result.py``)."""


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, incomplete, cannot be written or does not fit the model."""

    def __init__(self, message: str, *, exit_code: int = 2, on_all_ranks: bool = False) -> None:
        super().__init__(message)
        self.exit_code, self.on_all_ranks = exit_code, on_all_ranks


class Resume(TypedDict):
    """All that a run needs, besides weights and optimizer state, to go on as if it had never stopped.

    Random numbers are drawn from (seed, step, rank) and the data order from (seed, step), so neither is stored.
    """

    stage: str
    step: int
    """Steps done."""
    skipped: int
    """Of these, how many changed no weight: their gradient was not finite, or they were left out."""
    left_out: NotRequired[list[tuple[int, int]]]
    """First and last step of each stretch that a spike of the loss had left out (``curriculum.STAGE.spikes``)."""
    samples: int
    """Samples seen: no resume may change how many make a step (``identity.py``)."""
    world_size: int
    """For the record: any other size may resume."""
    callbacks: NotRequired[dict[str, dict[str, Any]]]
    """Class of a callback -> what it remembers."""


def resolve_entry(config: Config, origin: str) -> Path:
    """The checkpoint that a stage's ``entry`` names: what an earlier stage came to, or a path."""
    if origin in config.curriculum:
        checkpoint = outcome(config, origin)
        if checkpoint is None:
            none = f"has no checkpoint in {config.stage_folder(origin)}; run stage={origin} first"
            if origin == config.stage:
                raise FileNotFoundError(f"stage {origin} {none}")
            raise FileNotFoundError(
                f"stage {config.stage} starts from stage {origin}, which {none} or change "
                f"curriculum.{config.stage}.entry"
            )
        return checkpoint
    return Path(origin)


def outcome(config: Config, stage: str) -> Path | None:
    """What a stage came to, for later stages, for measuring and for a release; None when it has no checkpoint.

    That is its best checkpoint where it looks for one (``watch.best``), or else its newest.
    """
    folder = config.stage_folder(stage) / "checkpoints"
    best = _named(folder / BEST) if config.curriculum[stage].watch.best else None
    return best or latest(folder)


def latest(folder: Path) -> Path | None:
    """Newest complete checkpoint of a stage, where its training goes on; None when there is none."""
    return _named(folder / LATEST)


def _named(pointer: Path) -> Path | None:
    """The checkpoint that a pointer beside it names; None where there is no pointer."""
    folder = pointer.parent
    if not pointer.exists():
        return None
    name = read_bytes(pointer).decode(errors="replace").strip()
    checkpoint = folder / name
    if STEP.fullmatch(name):
        for complete in (checkpoint, replaced(checkpoint)):  # the latter: a run died between two renames
            if (complete / MANIFEST).exists():
                return complete
    raise CheckpointError(
        f"{pointer} names {name[:80] or 'nothing'}, which holds no {MANIFEST}; "
        f"write the name of a complete checkpoint into {pointer} or delete it to start over"
    )


def replaced(checkpoint: Path) -> Path:
    """Where a checkpoint waits while another one of the same step takes its place."""
    return checkpoint.with_name(checkpoint.name + REPLACED)


def read_resume(checkpoint: Path) -> Resume:
    resume: Resume = read_manifest(checkpoint)["resume"]
    return resume


def ended_early(stage: StageConfig, checkpoint: Path) -> bool:
    """Whether a stage is done before its last step, since its watched rows got no better (``watch.patience``)."""
    told = read_resume(checkpoint).get("callbacks", {}).get("Watch", {})
    same = told.get("measure", stage.watch.measure) == stage.watch.measure
    return same and 0 < stage.watch.patience <= told.get("without_better", 0)


def read_result(folder: Path) -> dict[str, float]:
    """The last numbers of a stage; empty where it has not come to its end."""
    file = folder / RESULT
    result: dict[str, float] = read_json(file) if file.is_file() else {}
    return result


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """Raises ``CheckpointError`` where there is none."""
    path = checkpoint / MANIFEST
    if not path.exists():
        raise CheckpointError(
            f"expected a checkpoint folder with {MANIFEST}, got {checkpoint}; check the stage's `entry`"
        )
    manifest: dict[str, Any] = read_json(path)
    return manifest
