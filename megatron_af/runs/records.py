"""``stage.json``: what the contents of a stage's folder were made from, and how far that came.

    claim(config)                                   # before a stage is trained: is what lies there the same run?
    record = StageRecord.load(config.stage_folder("align"))
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_af.config import Config
from megatron_af.files import write
from megatron_af.runs.identity import check_resume, stage_inputs
from megatron_af.runs.paths import latest

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
        return cls(**json.loads(file.read_text())) if file.is_file() else None

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
