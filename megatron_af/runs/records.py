"""``stage.json``: what the contents of a stage's folder were made from, and how far that came.

    claim(config)                                   # before a stage is trained: is what lies there the same run?
    record = StageRecord.load(config.stage_folder("align"))
"""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_af.config import Config
from megatron_af.files import write
from megatron_af.foreign import read_record
from megatron_af.runs.identity import check_resume, stage_inputs
from megatron_af.runs.paths import MANIFEST, latest
from megatron_af.runs.pointers import is_pointed_at

RECORD = "stage.json"


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """One stage's folder."""

    inputs: dict[str, str]
    """Digests of what it is made from (``identity.stage_inputs``)."""
    done: bool = False
    checkpoint: str = ""
    digest: str = ""
    seconds: float = 0.0
    evaluated: str = ""
    """Digest of the checkpoint that was measured last, and on what: other questions, and it is measured again."""

    @classmethod
    def load(cls, folder: Path) -> "StageRecord | None":
        file = folder / RECORD
        return read_record(cls, file) if file.is_file() else None

    def save(self, folder: Path) -> None:
        write(folder / RECORD, json.dumps(asdict(self), indent=1))


def claim(config: Config) -> None:
    """Record what ``config.stage`` is made from, before it is trained; the one process that is first does this.

    Raises ``ConfigError`` where its folder holds a checkpoint of another run, naming everything that differs.
    """
    folder = config.stage_folder(config.stage)
    record, newest = StageRecord.load(folder), latest(folder / "checkpoints")
    if newest is not None:
        check_resume(config, newest, record.inputs if record else None)
    if record is None or newest is None:
        StageRecord(inputs=stage_inputs(config, config.stage)).save(folder)


def put_aside(folder: Path) -> None:
    """Move a stage's folder away, so that it can be trained anew.

    One older result is kept beside it until the next one replaces it; and all those whose weights others point at.
    """
    old = folder.with_name(f"{folder.name}.replaced")
    if old.exists() and not any(is_pointed_at(place, folder.resolve().parents[1]) for place in checkpoints_in(old)):
        shutil.rmtree(old)
    number = 2
    while old.exists():
        old, number = folder.with_name(f"{folder.name}.replaced-{number}"), number + 1
    folder.rename(old)


def checkpoints_in(stage: Path) -> list[Path]:
    """Complete checkpoints of a stage's folder."""
    return [manifest.parent.resolve() for manifest in stage.glob(f"checkpoints/*/{MANIFEST}")]
