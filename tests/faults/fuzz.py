"""Bytes from strangers: every parser of them reads them, or says in a sentence of ours what is wrong.

    python -m tests.faults.fuzz --inputs 10000 --seed 0 [--only recording]      # a table of counts

Inputs are examples (``tests/faults/parsers.py``) with some bytes, or values of their JSON, changed, cut out, doubled or
put in, and now and then anything at all. One that reaches a line of ours that none has reached before becomes an
example itself. Each parser has a process of its own (``tests/faults/confined.py``), which notes what it must not do.
What is raised must be told by ``megatron_af.entry``: an exception of this project, or a file that the system refuses.
"""

import argparse
import json
import mmap
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_af.entry import sentence
from tests.faults.confined import Confined
from tests.faults.parsers import PARSERS, Parser
from tests.house import PACKAGES, ROOT

LARGEST_INPUT = 1 << 18
SECONDS = 60
"""Of one input, on a machine that may be full of other work; then it has hung."""
FOUND = 10
"""Findings of different places after which a parser is left alone."""

WORDS = [b"\x00", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"null", b"[", b"{", b'"', b"-1", b"1e999", b"NaN", b"../",
         b"/etc/passwd", b"\n", b"\r", b"\xed\xa0\x80", b'!!python/object/apply:os.system ["true"]', b"9" * 5000,
         b"${oc.env:HOME}", b"[" * 20_000, b"&a [*a, *a]", b"cos\nsystem\n(S'true'\ntR.", b"\\ud800"]  # fmt: skip
VALUES: list[Any] = [None, [], {}, "", "x", -1, 0, 1, 10**30, 2**63, 1.5, 1e308, float("nan"), float("inf"), True,
                     False, [None], {"a": None}, [[]], "é", "../x", "/etc/passwd", "a\0b", "\ud800", "9" * 5000,
                     "a" * 3000, "\x1b[2J"]  # fmt: skip


WATCHED = tuple(f"{base / package}{os.sep}" for package, base in PACKAGES.items())
"""Where a new line makes an input an example."""


class Unanswered(AssertionError):
    """What a parser raised is none of our messages, or it did what it must not do."""


@dataclass(frozen=True, kw_only=True)
class Fed:
    seconds: float
    lines: int
    """Of ours that were reached."""
    kept: int
    """Inputs that became examples."""
    peak_mib: float
    """Most memory that one input took."""
    found: tuple[str, ...] = ()


def edited(draw: random.Random, examples: list[bytes]) -> bytes:
    """An example after up to six edits, or a few bytes of any kind."""
    if draw.random() < 0.03:
        return draw.randbytes(draw.randrange(200))
    data = draw.choice(examples)
    if draw.random() < 0.5:
        data = _values_changed(draw, data)
        if draw.random() < 0.8:
            return data
    for _ in range(draw.randint(1, 6)):
        data = _bytes_changed(draw, data, examples)
    return data[:LARGEST_INPUT]


def _bytes_changed(draw: random.Random, data: bytes, examples: list[bytes]) -> bytes:
    at, length = draw.randrange(len(data) + 1), draw.choice((1, 1, 1, 2, 4, 16, 1000))
    match draw.randrange(7):
        case 0 if at < len(data):
            return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
        case 1:
            return data[:at] + draw.randbytes(min(length, 16)) + data[at + length :]
        case 2:
            return data[:at] + data[at + length :]
        case 3:
            return data[:at] + data[at : at + length] + data[at:]
        case 4:
            other = draw.choice(examples)
            return data[:at] + other[draw.randrange(len(other) + 1) :]
        case 5:
            return data[:at] + draw.choice(WORDS) + data[at + draw.choice((0, 0, length)) :]
    return data[:at]


def _values_changed(draw: random.Random, data: bytes) -> bytes:
    """JSON, or its first line, after one to three of its values were changed; other bytes as they are."""
    head, *rest = data.splitlines(keepends=True) if draw.random() < 0.5 and data else [data]
    try:
        tree = [json.loads(head)]
        for _ in range(draw.choice((1, 1, 2, 3))):
            _value_changed(draw, tree)
        return json.dumps(tree[0]).encode() + (b"\n" if rest else b"") + b"".join(rest)
    except (ValueError, RecursionError):
        return data


def _value_changed(draw: random.Random, tree: Any) -> None:
    places: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting:
        holder = waiting.pop()
        for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
            places.append((holder, key))
            if isinstance(holder[key], dict | list):
                waiting.append(holder[key])
    if not places:
        return
    (holder, key), (other, there) = draw.choice(places), draw.choice(places)
    match draw.randrange(6):
        case 0 if holder is not tree:
            del holder[key]
        case 1 if isinstance(holder, list) and holder is not tree:
            holder.insert(key, holder[key])
        case 1 if isinstance(holder, dict):
            holder[draw.choice(("x", "", str(there), str(draw.choice(VALUES))))] = holder[key]
        case 2:
            holder[key] = json.loads(json.dumps(other[there]))
        case 3 if isinstance(holder[key], str):
            text = holder[key]
            word = draw.choice(WORDS).decode(errors="surrogateescape")
            at = draw.randrange(len(text) + 1)
            holder[key] = text[:at] + word + text[at + draw.randrange(3) :]
        case _:
            holder[key] = json.loads(json.dumps(draw.choice(VALUES)))


def run(name: str, inputs: int, start: int, parsers: dict[str, Parser] = PARSERS) -> Fed:
    """Feed a parser in a process of its own.

    Raises:
        Unanswered: with what was found and a short input for it.
    """
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with (
        tempfile.TemporaryDirectory(prefix="megatron-af-fuzz-", dir=memory) as place,
        mmap.mmap(-1, LARGEST_INPUT + 8) as under_way,
    ):
        told = Path(place) / "told"
        if (child := os.fork()) == 0:
            try:
                fed = _Feeding(name, parsers[name], Path(place), under_way).feed(inputs, start)
                told.write_text(json.dumps(asdict(fed)))
            except BaseException:
                told.with_name("broken").write_text(traceback.format_exc())
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not told.exists():
            data = under_way[8 : 8 + int.from_bytes(under_way[:8])]
            how = f"ended by {signal.Signals(status).name}" if 0 < status < 65 else f"ended with {status}"
            broken = told.with_name("broken")
            words = broken.read_text() if broken.exists() else (Path(place) / "said").read_text(errors="replace")
            raise Unanswered(f"{how} ({words[-2000:]}) of {data[:600]!r}")
        fed = Fed(**json.loads(told.read_text()))
    if fed.found:
        raise Unanswered("\n".join(fed.found))
    return fed


class _Feeding:
    """The process of one parser."""

    def __init__(self, name: str, parser: Parser, place: Path, under_way: mmap.mmap) -> None:
        self._parser, self._under_way = parser, under_way
        self._folder = place / "x"
        self._folder.mkdir()
        self._confined = Confined(place, self._folder, anywhere=parser.anywhere)
        self._new_lines = self._lines = 0
        self._name = name

    def feed(self, inputs: int, start: int) -> Fed:
        began, draw = time.monotonic(), random.Random(f"{start} {self._name}")
        examples, found, peak = list(self._parser.examples), dict[str, str](), 0.0
        self._watch_lines()
        for example in examples:  # what is imported, or made once, at the first input counts for none
            self._problem(example)
        self._confined.begin()
        for _ in range(inputs):
            data = edited(draw, examples)
            self._new_lines = 0
            problem = self._problem(data)
            peak = max(peak, self._confined.took_mib)
            if problem:
                kind = _kind(problem)
                if kind not in found:
                    found[kind] = f"{problem} of {self._shrunk(data, kind)[:600]!r}"
                if len(found) == FOUND:
                    break
            elif self._new_lines:
                examples.append(data)
        return Fed(
            seconds=time.monotonic() - began, lines=self._lines, kept=len(examples) - len(self._parser.examples),
            peak_mib=round(peak, 1), found=tuple(found.values()),
        )  # fmt: skip

    def _problem(self, data: bytes) -> str:
        """What is wrong with how a parser took some bytes."""
        self._under_way[: 8 + len(data)] = len(data).to_bytes(8) + data
        self._empty()
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        with self._confined.watched(len(data)):
            problem = _unanswered(lambda: self._parser.read(self._folder, data))
        signal.setitimer(signal.ITIMER_REAL, 0)
        return problem or self._confined.problem

    def _empty(self) -> None:
        try:
            if self._folder.is_symlink():
                raise NotADirectoryError(self._folder)
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        shutil.rmtree(entry.path, ignore_errors=True)
                    else:
                        Path(entry.path).unlink()
        except OSError:  # it is no longer the folder that was made
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.unlink(missing_ok=True)
            self._folder.mkdir()

    def _shrunk(self, data: bytes, kind: str) -> bytes:
        """A shorter input with the same problem, after at most 300 tries."""
        length, tries = len(data) // 2, 0
        while length and tries < 300:
            at = 0
            while at < len(data) and tries < 300:
                shorter, tries = data[:at] + data[at + length :], tries + 1
                if _kind(self._problem(shorter)) == kind:
                    data = shorter
                else:
                    at += length
            length //= 2
        return data

    def _watch_lines(self) -> None:
        """Count each line of the product once; Python then forgets to tell of it, so watching costs nothing."""
        def reached(code: Any, line: int) -> Any:
            if code.co_filename.startswith(WATCHED):
                self._new_lines += 1
                self._lines += 1
            return sys.monitoring.DISABLE

        sys.monitoring.use_tool_id(sys.monitoring.COVERAGE_ID, "fuzz")
        sys.monitoring.register_callback(sys.monitoring.COVERAGE_ID, sys.monitoring.events.LINE, reached)
        sys.monitoring.set_events(sys.monitoring.COVERAGE_ID, sys.monitoring.events.LINE)


def _kind(problem: str) -> str:
    """Two problems of one kind come from one place."""
    return re.sub(r"\d+", "n", problem.partition(": ")[0])


def _unanswered(call: Callable[[], Any]) -> str:
    """What a call raised that is none of our messages, and where; empty where all is well."""
    try:
        call()
    except Exception as error:
        if sentence(error) is None:
            ours = [frame for frame in traceback.extract_tb(error.__traceback__) if str(ROOT) in frame.filename]
            place = f"{Path(ours[-1].filename).name} line {ours[-1].name}" if ours else ""
            return f"{type(error).__name__} ({place}): {' '.join(str(error).split())[:200]}"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", choices=["", *PARSERS])
    options = parser.parse_args()
    bad = 0
    print("| parser | inputs | seed | seconds | lines reached | inputs kept | most memory |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name in [options.only] if options.only else PARSERS:
        try:
            fed = run(name, options.inputs, options.seed)
            print(
                f"| {name} | {options.inputs:,} | {options.seed} | {fed.seconds:.0f} | {fed.lines} | {fed.kept} | "
                f"{fed.peak_mib:.0f} MiB |",
                flush=True,
            )
        except Unanswered as broken:
            bad += 1
            print(f"| {name} | BROKEN | {broken}", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
