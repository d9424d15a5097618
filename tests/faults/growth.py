"""What must not grow: a run with its steps, preparation and training with their rows.

    python -m tests.faults.growth --steps 10000 --rows 1000000          # make growth STEPS=10000 ROWS=1000000

``--steps``: real training of two processes, with asynchronous checkpoints and MLflow. Of all its processes (launcher,
ranks, writers of checkpoints, MLflow's sender) memory, open handles and threads are looked at a hundred times, and the
ranks' processor time; what the second to the last fifth of the run says of each is a line (Theil and Sen's: the median
slope of all pairs).

``--rows``: a data set of so many rows is prepared and trained on, and one of a tenth of it; peaks are compared.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import combinations, pairwise
from pathlib import Path
from statistics import median

import psutil

from megatron_af.config import Config, DatasetConfig
from megatron_af.config.loading import load_config, to_yaml
from megatron_af.data.rows import Clip, Question, Row, to_json
from tests.data.toy import write_tone
from tests.faults.kills import ROOT, Life, prepare

LOOKS = 100
MEBIBYTE = 2**20
MEMORY_SHARE, TIME_SHARE = 0.03, 0.1
"""Of its middle that a figure may grow by: allocators and other work on the machine are not still."""
SOUNDS, SECONDS = 200, 0.2
ROWS_SHARE = 0.2
"""That peak memory may grow by from a tenth of the rows to all of them: with a thousand, buffers of a fixed size
are not full."""
ROW_BYTES = 100
"""And so many for each row: what a process may know of every row."""


class Grows(AssertionError):
    """Something that should stay as it is."""


ROLES = {"watched.py": "ranks", "checkpoint_files": "writers", "torchrun": "launcher"}
"""What a process is, by its command; all others are helpers: MLflow's sender and what it starts."""


@dataclass(frozen=True, kw_only=True)
class Look:
    step: int
    memory: dict[str, float]
    """MiB that are nobody else's, by role."""
    handles: int
    threads: int
    processor: float
    """Seconds that the ranks have had."""


@dataclass(frozen=True, kw_only=True)
class Line:
    middle: float
    grows: float
    """From the line's first step to its last."""


def line(points: list[tuple[int, float]]) -> Line:
    slopes = [(y - x) / (b - a) for (a, x), (b, y) in combinations(points, 2)]
    return Line(middle=median(y for _, y in points), grows=median(slopes) * (points[-1][0] - points[0][0]))


def look(step: int, processes: list[psutil.Process]) -> Look:
    memory, handles, threads, processor = dict.fromkeys([*ROLES.values(), "helpers"], 0.0), 0, 0, 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            command = " ".join(process.cmdline())
            role = next((role for part, role in ROLES.items() if part in command), "helpers")
            if process == processes[0]:  # whose arguments name the ranks' script as well
                role = "launcher"
            memory[role] += process.memory_full_info().uss / MEBIBYTE
            handles += process.num_fds()
            threads += process.num_threads()
            if role == "ranks":
                times = process.cpu_times()
                processor += times.user + times.system
    return Look(step=step, memory=memory, handles=handles, threads=threads, processor=processor)


def grown(looks: list[Look]) -> dict[str, Line]:
    """Of memory by role, handles, threads and milliseconds of processor time a step, in the last four fifths."""
    late = looks[len(looks) // 5 :]
    found = {name: line([(one.step, getattr(one, name)) for one in late]) for name in ("handles", "threads")}
    found |= {f"memory of {role}": line([(one.step, one.memory[role]) for one in late]) for role in late[0].memory}
    times = [(b.step, 1000 * (b.processor - a.processor) / (b.step - a.step)) for a, b in pairwise(late)]
    return found | {"step": line(times)}


def check(found: dict[str, Line]) -> None:
    """
    Raises:
        Grows: one of them does.
    """
    bounds = {"handles": 0.0, "threads": 0.0, "step": TIME_SHARE}
    for name, one in found.items():
        if one.grows > bounds.get(name, MEMORY_SHARE) * one.middle:
            raise Grows(f"{name}: {one.middle:.1f} in the middle, and {one.grows:+.2f} from the first to the last")


def over_steps(folder: Path, steps: int, tell: Callable[[str], None]) -> dict[str, Line]:
    """
    Raises:
        Grows: see :func:`check`.
    """
    every = max(1, steps // LOOKS)
    more = (f"curriculum.align.steps={steps}", f"checkpoint.every_steps={5 * every}", "tracking.enabled=true")
    life, looks = Life(prepare(folder), "long", 2, more, cold=True), list[Look]()
    began = time.monotonic()
    for step in life.steps():
        if step % every == 0 and step < steps:  # at the last one helpers end
            looks.append(look(step, life.family()))
        if step % (10 * every) == 0:
            now = looks[-1]
            memory = ", ".join(f"{role} {much:.0f}" for role, much in now.memory.items())
            tell(f"step {step}/{steps}: MiB of {memory}; {now.handles} handles, {now.threads} threads; "
                 f"{(time.monotonic() - began) / step * (steps - step) / 60:.1f} minutes left")  # fmt: skip
    if life.process.wait():
        raise Grows(f"the run ended with code {life.process.returncode}:\n{''.join(life.lines[-20:])}")
    found = grown(looks)
    check(found)
    return found


def over_rows(folder: Path, rows: int, tell: Callable[[str], None]) -> dict[str, dict[str, float]]:
    """Peak memory (MiB) of preparation and training by number of rows.

    Raises:
        Grows: with the rows.
    """
    found: dict[str, dict[str, float]] = {}
    config = load_config(prepare(folder), [])
    for number in (max(1, rows // 10), rows):
        run_file = of_rows(folder, number, config)
        began = time.monotonic()
        prepared = peak(["tools/prepare_data.py", "prepare", "--config", str(run_file)])
        tell(f"{number:,} rows: prepared in {time.monotonic() - began:.0f} s with {prepared:.0f} MiB")
        trained = peak(["tools/pretrain_af.py", "--config", str(run_file), f"name=rows{number}"])
        tell(f"{number:,} rows: trained on with {trained:.0f} MiB")
        found[str(number)] = {"preparation": prepared, "training": trained}
    few, many = found.values()
    for what, before in few.items():
        allowed = (1 + ROWS_SHARE) * before + rows * ROW_BYTES / MEBIBYTE
        if many[what] > allowed:
            raise Grows(f"{what} of {rows:,} rows takes {many[what]:.0f} MiB, of a tenth of them {before:.0f}")
    return found


def of_rows(folder: Path, number: int, config: Config) -> Path:
    """A configuration that prepares so many rows, each with a recording of its own (other names of a few sounds), and
    trains on them for some steps."""
    root = Path(config.data.root)
    for sound in range(SOUNDS):
        write_tone(root / f"sounds/{sound}.wav", SECONDS, sound)
    with (root / f"rows{number}.jsonl").open("w", encoding="utf-8") as file:
        for at in range(number):
            clip = Clip(path=f"rows{number}/{at // 1000}/{at}.wav", duration=SECONDS)
            (root / clip.path).parent.mkdir(parents=True, exist_ok=True)
            (root / clip.path).hardlink_to(root / f"sounds/{at % SOUNDS}.wav")
            asked = Question(prompt=f"what is number {at}?", output=f"answer {at % 97}")
            file.write(to_json(Row(id=f"r{at}", clips=(clip,), questions=(asked,))) + "\n")
    stage = replace(config.curriculum["align"], blend={"rows": 1.0}, steps=30)
    datasets = {"rows": DatasetConfig(manifest=f"prepared{number}", source=f"rows{number}.jsonl")}
    path = folder / f"rows{number}.yaml"
    path.write_text(
        to_yaml(replace(config, data=replace(config.data, datasets=datasets), curriculum={"align": stage}))
    )
    return path


def peak(command: list[str]) -> float:
    """Most memory (MiB) that all processes of a tool had together, each its own and its share of what several have.

    Raises:
        Grows: it failed.
    """
    with tempfile.TemporaryFile("w+") as said:
        tool = psutil.Popen([sys.executable, *command], cwd=ROOT, stdout=said, stderr=subprocess.STDOUT)
        most = 0.0
        while tool.poll() is None:
            now = 0.0
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in [tool, *tool.children(recursive=True)]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        now += process.memory_full_info().pss / MEBIBYTE
            most = max(most, now)
            time.sleep(0.5)
        said.seek(0)
        if tool.wait():
            raise Grows(f"{' '.join(command)} ended with code {tool.returncode}:\n{said.read()[-2000:]}")
    return most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000, help="0: do not train")
    parser.add_argument("--rows", type=int, default=1_000_000, help="0: do not prepare")
    options = parser.parse_args()
    tell = partial(print, flush=True)
    with tempfile.TemporaryDirectory(prefix="megatron-af-growth-") as place:
        folder = Path(place)
        if options.steps:
            found = over_steps(folder, options.steps, tell)
            tell(json.dumps({name: asdict(one) for name, one in found.items()}, indent=1))
        if options.rows:
            tell(json.dumps(over_rows(folder, options.rows, tell), indent=1))


if __name__ == "__main__":
    main()
