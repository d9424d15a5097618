"""A run that is killed again and again, at random moments, is the run that was never killed.

    python -m tests.faults.kills --moments 100 --seed 0            # make faults MOMENTS=100

Real training on two processes, with a checkpoint every second step, written asynchronously. At each moment, behind some
steps or while the run still starts (modules, the ranks' meeting, digests, loading), one process is ended by SIGKILL: a
rank, the launcher, a helper of a rank (the writer of its checkpoints), or all at once. Then:

- nothing of the run lives on for more than ``GONE_SECONDS``, and none of it prints a traceback;
- the checkpoint that ``latest`` names is whole, by its digests;
- the next start goes on behind it, and no step is lost that was in it;
- every step that is trained again has the loss, the gradient norm and the samples of the run that was never killed, to
  the last bit; and, resumed from the same checkpoint in another layout, the same samples, losses within 1e-6 and
  gradient norms within 1e-5 of themselves.
"""

import argparse
import contextlib
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from megatron_af.config import StageConfig, TrackingConfig
from megatron_af.config.loading import to_yaml
from megatron_af.runs.paths import latest, read_resume
from megatron_af.runs.whole import damage
from tests import tiny
from tests.data.toy import toy_config
from tests.faults import warm

ROOT = Path(__file__).parents[2]
GONE_SECONDS = 60.0
"""It takes a few; a machine that does other work may need longer."""
HELPER_SECONDS = 5.0
"""After a helper's death, for the run to notice it."""
VICTIMS = ("rank", "launcher", "helper", "all")
STARTING = 0.25
"""The share of kills that come while the run starts."""
LAYOUTS = {
    "one process": (1, []),
    "TP2": (2, ["parallel.tensor=2"]),
    "PP2": (2, ["parallel.pipeline=2"]),
    "DP2+ZeRO-1": (2, ["parallel.distributed_optimizer=true"]),
}
"""Other layouts than the run's own, which is DP2."""
ELSEWHERE_STEPS = 3


class Broken(AssertionError):
    """A promise that a kill has broken."""


def prepare(folder: Path) -> Path:
    """A stage that trains for ever; its YAML file."""
    toy, small = toy_config(folder), tiny.config()
    model = replace(small.model, front_end=toy.model.front_end, lm=replace(small.model.lm, vocab=257))
    # As in every comparison of layouts: a larger epsilon, so that rounding of vanishing gradients is not made large.
    optimizer = replace(small.curriculum["stage"].optimizer, eps=1e-3, schedule="constant", warmup_steps=0)
    stage = StageConfig(
        trainable=("*",), blend={"a": 1.0}, global_batch_samples=2, micro_batch_samples=1, steps=100_000,
        max_windows=1, max_text_tokens=128, optimizer=optimizer,
    )  # fmt: skip
    config = replace(
        toy,
        model=model,
        curriculum={"align": stage},
        stage="align",
        output=str(folder / "runs"),
        tracking=TrackingConfig(enabled=False),
        checkpoint=replace(toy.checkpoint, every_steps=2, keep=2, asynchronous=True),
        log_every_steps=1,
    )
    path = folder / "run.yaml"
    path.write_text(to_yaml(config))
    return path


class Life:
    """One start of the run, from its command to its end."""

    def __init__(
        self, run_file: Path, name: str, processes: int = 2, more: tuple[str, ...] = (), *, cold: bool
    ) -> None:
        arguments = [
            "--standalone", f"--nproc_per_node={processes}", str(ROOT / "tests/faults/watched.py"),
            "--config", str(run_file), f"name={name}", *more,
        ]  # fmt: skip
        self.process: subprocess.Popen[str] | warm.Forked
        if not cold:
            self.process = warm.launch(processes, arguments)
        else:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "megatron_af.pipeline.torchrun", *arguments],
                env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kubeflow'}", "OMP_NUM_THREADS": "1"},
                cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            )  # fmt: skip
        self.lines: list[str] = []

    def steps(self) -> Iterator[int]:
        """Each step as it is done; ends with the process."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if match := re.match(r"step (\d+)/", line):
                yield int(match[1])

    def family(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            launcher = psutil.Process(self.process.pid)
            return [launcher, *launcher.children(recursive=True)]
        return []

    def kill(self, victim: str, rng: random.Random) -> None:
        family = self.family()
        ranks = [process for process in family[1:] if process.ppid() == self.process.pid]
        helpers = [process for process in family[1:] if process not in ranks]
        ranks = ranks or family[:1]  # it has not started them yet
        chosen = {"rank": [rng.choice(ranks)], "launcher": family[:1], "helper": [rng.choice(helpers or ranks)],
                  "all": family}[victim]  # fmt: skip
        for process in chosen:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        until = time.monotonic() + GONE_SECONDS
        alive = living(family, HELPER_SECONDS if victim == "helper" else GONE_SECONDS)
        if victim == "helper" and alive:  # it was not needed any more, and the run goes on
            self.end()
            alive = living(family, GONE_SECONDS)
        if alive:
            raise Broken(f"{victim} was killed, and these live on: {alive}")
        self.seconds = GONE_SECONDS - (until - time.monotonic())
        self.end()

    def end(self) -> None:
        for process in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        assert self.process.stdout is not None
        rest = threading.Thread(target=self.lines.extend, args=(self.process.stdout,), daemon=True)
        rest.start()
        rest.join(GONE_SECONDS)
        if rest.is_alive():  # a process that was started between two looks, and its output is still open
            raise Broken("somebody of the run lives on whom no look at its processes has found")
        self.process.wait()
        if "Traceback" in (told := "".join(self.lines)):
            raise Broken(f"a traceback reached the user:\n{told[-3000:]}")


type Start = Callable[..., Life]


def living(processes: list[psutil.Process], patience: float) -> list[str]:
    """Which of them still do something after so many seconds; one that nobody has waited for yet does nothing."""
    until = time.monotonic() + patience
    while True:
        alive = []
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.status() != psutil.STATUS_ZOMBIE:
                    alive.append(" ".join(process.cmdline()))
        if not alive or time.monotonic() > until:
            return alive
        time.sleep(0.1)


def read_steps(folder: Path) -> dict[int, list[dict[str, Any]]]:
    """Step -> what was written down of it, in the order of time."""
    steps: dict[int, list[dict[str, Any]]] = {}
    for line in (folder / "steps.jsonl").read_text().splitlines():
        record = json.loads(line)
        steps.setdefault(record["step"], []).append(record)
    return steps


def samples(records: list[dict[str, Any]]) -> dict[int, list[str]]:
    """What each data-parallel rank that came to write it down saw; several tries must have seen the same."""
    seen: dict[int, list[str]] = {}
    for record in records:
        if record["samples"] and seen.setdefault(record["data_rank"], record["samples"]) != record["samples"]:
            raise Broken(f"step {record['step']} saw other samples when it was trained again")
    return seen


def run(
    folder: Path,
    moments: int,
    seed: int,
    elsewhere_every: int,
    tell: Callable[[str], None],
    minutes: float = math.inf,
    cold: bool = False,
) -> dict[str, Any]:
    """Kill at ``moments`` moments, or at as many as fit into ``minutes``; returns figures.

    Args:
        cold: every process is a new program, as a shell would start it; otherwise it is forked (``warm.py``).

    Raises:
        Broken: a promise was not kept.
    """
    if not cold:
        warm.prepare()  # before anything is computed
    rng, run_file = random.Random(seed), prepare(folder)
    start = partial(Life, run_file, cold=cold)
    name = folder / "runs" / "killed"
    checkpoints = name / "align" / "checkpoints"
    victims: Counter[str] = Counter()
    ended, writing, retrained, starting, start_seconds = [], 0, 0, 0, 0.0
    copies: list[tuple[str, int]] = []
    until = time.monotonic() + 60 * minutes
    for moment in range(moments):
        if time.monotonic() > until:
            break
        victim = VICTIMS[moment % len(VICTIMS)] if moments < 2 * len(VICTIMS) else rng.choice(VICTIMS)
        before = latest(checkpoints)
        expected = read_resume(before)["step"] + 1 if before else 1
        early = moment == len(VICTIMS) or (moment > len(VICTIMS) and rng.random() < STARTING)
        life = start("killed")
        if early:
            time.sleep(rng.uniform(0.0, start_seconds))
            starting += 1
        else:
            first, seconds = _train_a_little(life, rng.randrange(1, 7))
            start_seconds = max(start_seconds, seconds)
            if first != expected:
                raise Broken(f"moment {moment}: went on with step {first}, behind a checkpoint of step {expected - 1}")
            time.sleep(rng.uniform(0.0, 0.4))
        try:
            life.kill(victim, rng)
        finally:
            life.end()
        victims[victim] += 1
        ended.append(life.seconds)
        newest = latest(checkpoints)
        if newest is None and before is None:
            tell(f"moment {moment + 1}/{moments}: {victim} killed before the first checkpoint")
            continue
        if newest is None or (why := damage(newest)):
            raise Broken(f"moment {moment}: what latest names is not whole: {why if newest else 'nothing'}")
        writing += any(checkpoints.glob("*.partial"))
        reached, saved = max(read_steps(name)), read_resume(newest)["step"]
        retrained += 0 if early else reached - saved
        where = "at the start" if early else f"behind step {reached}"
        tell(f"moment {moment + 1}/{moments}: {victim} killed {where}, all gone in {life.seconds:.1f} s, "
             f"step {saved} is whole")  # fmt: skip
        if elsewhere_every and (moment + 1) % elsewhere_every == 0:
            copies.append((_elsewhere(folder, start, len(copies), newest, tell), saved))
    killed = read_steps(name)
    last = max([*killed, *(saved + ELSEWHERE_STEPS for _, saved in copies)])
    tell(f"the run that is not killed: {last} steps")
    _train(start, "through", last)
    through = read_steps(folder / "runs" / "through")
    for step, records in killed.items():
        check_same(step, records, through[step], 0.0)
    for layout, saved in copies:
        for step, records in read_steps(folder / "runs" / layout).items():
            if step > saved:
                check_same(step, records, through[step], 1e-6)
    return {
        "moments": len(ended), "seed": seed, "victims": dict(victims), "at the start": starting, "steps": last,
        "trained again": retrained,
        "inside a checkpoint's writing": writing, "slowest to be gone (s)": round(max(ended), 1),
        "resumed in another layout": len(copies),
    }  # fmt: skip


def in_order(seen: dict[int, list[str]]) -> list[str]:
    return [sample for rank in sorted(seen) for sample in seen[rank]]


def check_same(step: int, records: list[dict[str, Any]], expected: list[dict[str, Any]], relative: float) -> None:
    """
    Raises:
        Broken: other samples than expected, or a loss that is farther off than ``relative`` (below one: than that
            itself), or a norm that is ten times as far.
    """
    seen, right_ones = samples(records), samples(expected)
    if not relative:  # the same layout, in which a kill may come between two ranks' lines
        right_ones = {rank: right_ones[rank] for rank in seen}
    if in_order(seen) != in_order(right_ones):
        raise Broken(f"step {step} saw {seen}, expected {right_ones}")
    for record in records:
        for number, bound in (("loss", relative), ("grad_norm", 10 * relative)):
            value, right = record[number], expected[0][number]
            # A loss comes of logits, whose rounding does not shrink with it: below one the bound is an absolute one.
            size = max(1.0, abs(right)) if number == "loss" else abs(right)
            if abs(value - right) > bound * size:
                raise Broken(f"step {step}: {number} is {value!r}, of the run that was not killed {right!r}")


def _train_a_little(life: Life, steps: int) -> tuple[int, float]:
    """Up to so many steps behind the first; which one that was, and after how many seconds it was done."""
    began, first, seconds = time.monotonic(), 0, 0.0
    for step in life.steps():
        if not first:
            first, seconds = step, time.monotonic() - began
        if step >= first + steps:
            return first, seconds
    raise Broken(f"the run ended by itself:\n{''.join(life.lines[-20:])}")


def _elsewhere(folder: Path, start: Start, number: int, newest: Path, tell: Callable[[str], None]) -> str:
    """Go on from a copy of the newest checkpoint in another layout; the copy's name."""
    layout, (processes, more) = list(LAYOUTS.items())[number % len(LAYOUTS)]
    name = f"elsewhere-{number}"
    copy = folder / "runs" / name / "align" / "checkpoints"
    copy.mkdir(parents=True)
    shutil.copytree(newest, copy / newest.name)
    (copy / "latest").write_text(newest.name)
    _train(start, name, read_resume(newest)["step"] + ELSEWHERE_STEPS, processes, tuple(more))
    tell(f"  and from there in the layout {layout}")
    return name


def _train(start: Start, name: str, steps: int, processes: int = 2, more: tuple[str, ...] = ()) -> None:
    """To this step; the constant learning rate does not depend on how long the stage is."""
    life = start(name, processes, (f"curriculum.align.steps={steps}", "checkpoint.every_steps=0", *more))
    for _ in life.steps():
        pass
    if life.process.wait():
        raise Broken(f"{name} ended with code {life.process.returncode}:\n{''.join(life.lines[-20:])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--elsewhere-every", type=int, default=4, help="moments between two resumes in another layout")
    parser.add_argument("--cold", action="store_true", help="start each process as a new program, not forked")
    parser.add_argument("--minutes", type=float, default=math.inf, help="after which no further moment begins")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="megatron-af-faults-") as folder:
        tell = partial(print, flush=True)
        figures = run(
            Path(folder), options.moments, options.seed, options.elsewhere_every, tell,
            minutes=options.minutes, cold=options.cold,
        )  # fmt: skip
    print(json.dumps({**figures, "minutes": round((time.monotonic() - began) / 60, 1)}, indent=1))


if __name__ == "__main__":
    main()
