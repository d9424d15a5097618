"""How a pipeline stands: one table of its steps, for `status`, for the end of a run, and for later."""

import time
from collections.abc import Sequence

from megatron_af.files import write
from megatron_af.pipeline.graph import StepSpec
from megatron_af.pipeline.records import Launch, RunFolder, StepRecord


def write_report(folder: RunFolder, launch: Launch, steps: Sequence[StepSpec], state: str) -> str:
    """Write ``report.md`` and return its text."""
    records = {record.step: record for record in folder.steps()}
    text = "\n".join(
        [
            f"# {launch.pipeline} {launch.run}: {state.lower()}",
            "",
            *table(steps, records, launch),
            "",
            *(f"{spec.name}: {records[spec.name].error}\n" for spec in steps if _failed(records.get(spec.name))),
        ]
    )
    write(folder.path / "report.md", text)
    return text


def table(steps: Sequence[StepSpec], records: dict[str, StepRecord], launch: Launch) -> list[str]:
    """One Markdown row per step: state, time, restarts, how far it came.

    A step that this run has not reached may have been done by an earlier one.
    """
    rows = [("step", "state", "time", "restarts", "progress")]
    for spec in steps:
        record = records.get(spec.name)
        if record is None:
            rows.append((spec.name, "waiting", "", "", ""))
        else:
            earlier = "" if record.launch.run == launch.run else " (earlier run)"
            rows.append(
                (spec.name, record.state + earlier, clock(record.seconds), str(record.restarts), record.progress)
            )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    lines = [f"| {' | '.join(cells)} |" for cells in padded]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def clock(seconds: float) -> str:
    """``41 s``, ``3 min 20 s`` or ``26 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def stamp(seconds: float) -> str:
    """Local date and time of seconds since the epoch."""
    return time.strftime("%F %T", time.localtime(seconds))


def _failed(record: StepRecord | None) -> bool:
    return record is not None and bool(record.error)
