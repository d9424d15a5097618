"""The buffer on disk between a job and its MLflow run: one JSON record a line, only ever appended to.

    spool = Spool(folder)
    spool.open(Address(uri=…, experiment="demo", name="align"), params={…}, tags={…})
    spool.metrics(step, {"loss": 2.5})          # a write to a local file: microseconds, and never an exception
    spool.end("FINISHED", "done")

The writer talks to no server. A sender (``sender.py``) reads behind it and notes in ``sent.json`` how far it came,
so each record arrives once, however often the job or the sender start again.
"""

import contextlib
import errno
import json
import os
import re
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from megatron_af.files import write
from megatron_af.foreign import file_at, opened, read_record, read_text

METRICS_PREFIX = re.compile(rb'\{"kind":"metrics","step":(\d+),')
REFUSED_IN_NAMES = re.compile(r"[^\w.\-/ ]", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Address:
    """The run that a spool belongs to (``run.json``)."""

    uri: str
    experiment: str
    name: str
    parent: str = ""
    """Spool of the parent run, relative to this one's folder."""
    ends_parent: bool = False
    """The parent run starts and ends with this one; otherwise a curriculum does that."""
    adopt: str = ""
    """Id of a run that somebody else made and ends; the spool writes into it."""
    session: str = ""
    """The newest start of the job."""

    @classmethod
    def load(cls, folder: Path) -> "Address":
        return read_record(cls, folder / "run.json")

    def save(self, folder: Path) -> None:
        write(folder / "run.json", json.dumps(asdict(self)))


@dataclass(frozen=True, kw_only=True)
class Sent:
    """How far delivery came: to which server and run, and the offset of the first byte not delivered."""

    uri: str = ""
    run_id: str = ""
    offset: int = 0

    @classmethod
    def load(cls, folder: Path) -> "Sent":
        file = folder / "sent.json"
        return read_record(cls, file) if file.is_file() else cls()

    def save(self, folder: Path) -> None:
        write(folder / "sent.json", json.dumps(asdict(self)))


class Spool:
    """Append-only records of one run.

    Args:
        folder: belongs to this run alone; made if it is not there.
        session: names this process's part of the run; by default a new one.
    """

    def __init__(self, folder: Path, session: str = "") -> None:
        self.folder = folder
        self.file = folder / "spool.jsonl"
        self.session = session or uuid.uuid4().hex
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError), (folder / "key").open("x") as key:
            key.write(uuid.uuid4().hex)
        self._handle = os.open(file_at(self.file), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._end_torn_line()
        self._warned = False
        self._torn = False
        """The disk was full within the last record; the next one must not stick to it."""

    def open(
        self, address: Address, *, params: Mapping[str, str], tags: Mapping[str, str], texts: Mapping[str, str]
    ) -> None:
        """Start the run, or start it again: what it is (``texts``: artifact path -> contents)."""
        replace(address, session=self.session).save(self.folder)
        self.append("open", params=params, tags=tags, texts=texts)

    def end(self, status: str, reason: str) -> None:
        """The job is over; ``status`` is MLflow's: FINISHED, FAILED or KILLED."""
        self.append("close", status=status, reason=reason)

    def end_if_lost(self) -> None:
        """Add the end that the job could not write, unless it has already started again."""
        ended = {record["session"] for record, _ in read_spool(self.folder) if record["kind"] == "close"}
        if self.session not in ended and Address.load(self.folder).session == self.session:
            self.end("FAILED", f"died without a word after step {self.last_step()}")

    def append(self, kind: str, **fields: Any) -> None:
        """Add one record. A full or failing disk costs the record and one warning, never the job."""
        record = {"kind": kind, **fields, "time": round(time.time() * 1000), "session": self.session}
        line = json.dumps(record, separators=(",", ":"), default=str).encode() + b"\n"
        try:
            # One write to a file opened for appending: records of two processes on a host never mix.
            if os.write(self._handle, b"\n" * self._torn + line) < len(line) + self._torn:
                self._torn = True
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._torn = False
        except OSError as error:
            if not self._warned:
                warnings.warn(f"{self.file}: {error}; records for MLflow are lost until it works again", stacklevel=2)
            self._warned = True

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.append("metrics", step=step, values={metric_name(key): value for key, value in values.items()})

    def last_step(self) -> int:
        """Step of the last metrics in the spool, sent or not; -1 where there are none."""
        last = -1
        with opened(self.file) as lines:
            for line in lines:
                if line.endswith(b"}\n") and (match := METRICS_PREFIX.match(line)):
                    last = int(match[1])
        return last

    def _end_torn_line(self) -> None:
        """A process killed while it wrote leaves half a line; end it, so that it spoils no record after it."""
        size = self.file.stat().st_size
        if size:
            with opened(self.file) as file:
                file.seek(size - 1)
                if file.read(1) != b"\n":
                    os.write(self._handle, b"\n")


def read_spool(folder: Path, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """Complete records from ``offset`` on, each with the offset behind it. Torn lines are passed over."""
    file = folder / "spool.jsonl"
    if not file.is_file():
        return
    with opened(file) as lines:
        lines.seek(offset)
        while (line := lines.readline()).endswith(b"\n"):
            offset += len(line)
            try:
                yield json.loads(line), offset
            except ValueError:  # JSON that breaks off, or the zero bytes that a crash of the machine leaves
                continue


def spool_key(folder: Path) -> str:
    """Random name of the spool; its run carries it as a tag, so that a lost reply never makes a second run."""
    return read_text(folder / "key")


def metric_name(key: str) -> str:
    """``key`` with the characters that MLflow refuses replaced by ``_``."""
    return REFUSED_IN_NAMES.sub("_", key)
