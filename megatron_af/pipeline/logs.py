"""What the log of a step says: how far it is, and what went wrong.

progress = read_progress("step 120/5000 2.4% | loss 1.31 | … | eta 1:02:11")
reason = last_error(lines)
"""

import dataclasses
import re
from collections.abc import Iterable

from megatron_af.entry import LOST_A_PEER

_STEP = re.compile(r"\bstep\s+(\d+)\s*/\s*(\d+)")
_FIELD = re.compile(r"\|\s*(loss|tok/s|eta)\s+([^|\s]+)")
_RANK = re.compile(r"^\[rank\d+\]:\s?")
_ERROR = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Mismatch|Exit|Failed|Timeout|Interrupt|Refused)(?::.*)?$")
# Lines of the interpreter, torchrun and the training loop around the error that a person has to read.
_NOISE = re.compile(
    r"^\s*$|^\s(?!\s*- )|^Traceback|^The above|^During handling|^[EWIF]\d{4} |^\[[EWIF]\d{3,4}|^[=\-*]{4,}"
    r"|\bstep\s+\d+\s*/|^[┃│┏┗┡┢├└]|elastic|torchrun|^Root Cause|^Failures:|^\[\d+\]:| FAILED$|_tracker|[Ww]arning"
)
_FOLLOW_UP = re.compile(
    r"ChildFailedError|SignalException|DistBackendError|DistNetworkError|Connection (closed|reset|refused)|Broken pipe"
    rf"|^process \d+ {LOST_A_PEER}"
)
"""What other ranks report because one has gone: the text to show only where there is no other."""


PLAIN_LINES = 8
"""Of a command that failed without an exception, at most this many."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """One log line of the training loop."""

    step: int
    steps: int
    loss: float | None = None
    eta: str = ""
    tokens_per_second: float | None = None

    def __str__(self) -> str:
        parts = [f"step {self.step}/{self.steps}"]
        parts += [f"loss {self.loss:.4g}"] if self.loss is not None else []
        parts += [f"{self.tokens_per_second:,.0f} tok/s"] if self.tokens_per_second is not None else []
        parts += [f"eta {self.eta}"] if self.eta else []
        return ", ".join(parts)


def read_progress(line: str) -> Progress | None:
    """The progress a line reports, or None."""
    step = _STEP.search(line)
    if not step:
        return None
    fields = dict(_FIELD.findall(line))
    eta = fields.get("eta", "").removeprefix("–")
    return Progress(int(step[1]), int(step[2]), _number(fields.get("loss")), eta, _number(fields.get("tok/s")))


def _number(text: str | None) -> float | None:
    """What a field says, or None where it says that it is unknown."""
    try:
        return float((text or "").replace(",", ""))
    except ValueError:
        return None


def last_error(lines: Iterable[str], limit: int = 600) -> str:
    """The text of the error that ended a job, out of the log of its last try; empty when there is none in it.

    Of several ranks' exceptions the first one is the cause and the rest follow from it. A command that stopped with a
    plain message has no exception; then its last lines are shown.
    """
    kept = [_RANK.sub("", line.rstrip()) for line in lines]
    errors = [index for index, line in enumerate(kept) if _ERROR.match(line)]
    causes = [index for index in errors if not _FOLLOW_UP.search(kept[index])]
    steps = [index for index, line in enumerate(kept) if _STEP.search(line)]
    # What was printed before the last training step explains no end that came after it.
    late = kept[steps[-1] + 1 :] if steps else kept
    said = [line for line in late if not (_NOISE.search(line) or _ERROR.match(line))]
    plain = [line for line in said if not _FOLLOW_UP.search(line)] or said
    if causes:
        text = _message(kept, causes[0])
    elif plain:
        text = plain[-PLAIN_LINES:]
    else:
        text = _message(kept, errors[0]) if errors else []
    return "\n".join(text)[:limit]


def _message(lines: list[str], start: int) -> list[str]:
    """The exception's line and the further lines of its message."""
    end = start + 1
    while end < len(lines) and not (_NOISE.search(lines[end]) or _ERROR.match(lines[end])):
        end += 1
    return lines[start:end]
