"""The checkpoint that a run goes on from: the newest one whose files are what was written.

    settle(config.stage_folder("align") / "checkpoints", print)          # by the one process that writes the folder

A file that is missing, cut or changed is found by its recorded digest and named. The checkpoint is then moved out of
the way (``step_00000300.damaged``) and the one before it takes its place; the steps between are trained again.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from megatron_af.files import write
from megatron_af.foreign import ForeignError, read_text
from megatron_af.runs.digests import DIGEST_FILE
from megatron_af.runs.paths import BEST, LATEST, MANIFEST, CheckpointError, latest, read_manifest, read_resume
from megatron_af.runs.pointers import verify

DAMAGED = ".damaged"
"""Behind the name of a checkpoint whose files are not what was written; nobody reads it, and it may be deleted."""


def settle(folder: Path, say: Callable[[str], None]) -> None:
    """Make the newest whole checkpoint of a stage the one that ``latest`` names.

    Raises:
        CheckpointError: there are checkpoints, but none is whole.
    """
    if not (folder / LATEST).exists():
        return
    told: list[str] = []
    damaged: list[Path] = []
    for checkpoint in _newest_first(folder, told):
        if why := damage(checkpoint):
            told.append(why)
            damaged.append(checkpoint)
        elif told:
            write(folder / LATEST, checkpoint.name)
            for other in damaged:
                moved = other.with_name(other.name + DAMAGED)
                shutil.rmtree(moved, ignore_errors=True)
                other.rename(moved)
            best = folder / BEST
            if best.exists() and read_text(best).strip() in {other.name for other in damaged}:
                best.unlink()  # training comes to it again
            say(f"damaged: {'; '.join(told)}; going on from {checkpoint}")
            return
        else:
            return
    raise _none(folder, told)


def readable(folder: Path) -> Path:
    """The checkpoint that :func:`settle` would come to if no weights are damaged; changes nothing.

    Raises:
        CheckpointError: none can be read.
    """
    told: list[str] = []
    for checkpoint in _newest_first(folder, told):
        if not (why := unreadable(checkpoint)):
            return checkpoint
        told.append(why)
    raise _none(folder, told)


def _none(folder: Path, told: list[str]) -> CheckpointError:
    return CheckpointError(
        f"no checkpoint in {folder} is whole: {'; '.join(told)}. Bring back the files, or delete the folder to train "
        "the stage from its beginning"
    )


def _newest_first(folder: Path, told: list[str]) -> Iterator[Path]:
    """The checkpoint that ``latest`` names, and the others behind it."""
    named = None
    try:
        named = latest(folder)
    except CheckpointError as error:
        told.append(str(error))
    if named is not None:
        yield named
    for checkpoint in sorted(folder.glob("step_" + 8 * "[0-9]"), reverse=True):
        if checkpoint != named:
            yield checkpoint


def damage(checkpoint: Path) -> str:
    """What is wrong with a checkpoint's files, in a sentence; empty where they are what was written."""
    if why := unreadable(checkpoint):
        return why
    try:
        if (checkpoint / DIGEST_FILE).is_file():  # none: an earlier version wrote it
            verify(checkpoint)
    except CheckpointError as error:
        return str(error)
    return ""


def unreadable(checkpoint: Path) -> str:
    """What a look at a checkpoint's manifest shows, without its weights being read; empty where it shows nothing."""
    try:
        if {"resume", "parts"} <= read_manifest(checkpoint).keys() and "step" in read_resume(checkpoint):
            return ""
        return f"{checkpoint / MANIFEST} does not say what the checkpoint holds"
    except (CheckpointError, ForeignError) as error:
        return str(error)
    except (AttributeError, TypeError):
        return f"{checkpoint / MANIFEST} is no manifest of a checkpoint"
