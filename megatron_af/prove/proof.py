"""A proof of a configuration: each stage, each layout, against one process.

    proof = prove(config, ranks=2, say=print)
    proof.holds, proof.findings
"""

import re
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_af.config import Config, ConfigError, ParallelConfig, StageConfig
from megatron_af.parallel.ranks import RankError, run_distributed
from megatron_af.prove.compare import Agreement, agreements
from megatron_af.prove.layouts import ALONE, layouts
from megatron_af.prove.material import write_material
from megatron_af.prove.observe import Observation, begun_from, joined, observe, rewound, write_start
from megatron_af.prove.shrink import CUT, laid_out, shrink
from megatron_af.runs.check import check

TIMEOUT_SECONDS = 300.0
"""Of one run on some ranks: one that waits for ever is a finding."""

type Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One stage in one layout."""

    stage: str
    layout: str
    question: str
    agreements: tuple[Agreement, ...] = ()
    problem: str = ""
    """Why there is nothing to compare: it could not run, or ended."""

    @property
    def holds(self) -> bool:
        return not self.problem and all(found.holds for found in self.agreements)


@dataclass(frozen=True, kw_only=True)
class Proof:
    findings: tuple[Finding, ...]
    same: dict[str, str]
    """Stage -> an earlier one that is the same at the size of a proof."""
    silent: dict[str, tuple[str, ...]]
    """Stage -> what trains and has no gradient in one process: nothing is said about these."""
    seconds: float

    @property
    def holds(self) -> bool:
        return all(finding.holds for finding in self.findings)


LAYOUT, ON, ALONE_AGAIN = (
    "computes what one process computes",
    f"goes on from its checkpoint of step {CUT}, to the last bit",
    "one process goes on from that checkpoint",
)


def prove(config: Config, ranks: int, say: Say) -> Proof:
    """
    Args:
        config: as a run would read it; ``config.stage`` or, without one, every stage is proven.

    Raises:
        ConfigError: a shrunk stage cannot run even by one process.
    """
    began = time.monotonic()
    findings: list[Finding] = []
    same: dict[str, str] = {}
    silent: dict[str, tuple[str, ...]] = {}
    seen_before: dict[str, StageConfig] = {}
    with tempfile.TemporaryDirectory(prefix="megatron-af-proof-") as folder:
        for stage in [config.stage] if config.stage else config.curriculum:
            small = shrink(config, stage, Path(folder) / stage)
            settings = _structure(small, config)
            if twin := next((name for name, known in seen_before.items() if known == settings), ""):
                same[stage] = twin
                continue
            seen_before[stage] = settings
            bench = Bench(small, neighbours=[name for name, d in config.data.datasets.items() if d.neighbours])
            silent[stage] = bench.silent
            for name, (processes, parallel) in layouts(config.parallel, ranks).items():
                for finding in bench.layout(name, processes, parallel):
                    say(told(finding))
                    findings.append(finding)
    return Proof(findings=tuple(findings), same=same, silent=silent, seconds=time.monotonic() - began)


def told(finding: Finding) -> str:
    """A finding in one line."""
    verdict = "holds" if finding.holds else "BROKEN"
    worst = max(finding.agreements, key=lambda one: (not one.holds, one.error), default=None)
    what = finding.problem.splitlines()[0] if finding.problem else ""
    if worst:
        what = f"worst: {worst.what}, {worst.error:.1e} (bound {worst.bound:.0e}) {worst.worst}"
    return f"{finding.stage}, {finding.layout}: {finding.question}: {verdict}; {what}"


class Bench:
    """A shrunk stage, what one process computes of it, and a way to ask layouts for the same."""

    def __init__(self, small: Config, neighbours: Iterable[str] = ()) -> None:
        """
        Raises:
            ConfigError: it cannot run by one process.
        """
        write_material(small, set(neighbours))
        alone = laid_out(small, ALONE, "one-process")
        if problems := check(alone, 1):
            raise ConfigError(f"stage {small.stage} cannot be proven: its shrunk form cannot run", problems)
        self.small = begun_from(small, run_distributed(write_start, 1, alone, timeout=TIMEOUT_SECONDS)[0])
        self.reference = self._seen(laid_out(self.small, ALONE, "one-process"), 1)
        gradients = self.reference.gradients
        self.silent = tuple(name for name, gradient in gradients.items() if not gradient.abs().max() > 0)

    def layout(self, name: str, processes: int, parallel: ParallelConfig) -> Iterable[Finding]:
        """The layout's run, its resume, and its checkpoint's resume by one process."""
        config = laid_out(self.small, parallel, re.sub(r"[^A-Za-z0-9.-]", "-", name))

        def finding(question: str, found: Iterable[Agreement] = (), problem: str = "") -> Finding:
            stage = self.small.stage
            return Finding(stage=stage, layout=name, question=question, agreements=tuple(found), problem=problem)

        if problems := check(config, processes):
            yield finding(LAYOUT, problem=f"cannot run at this size: {'; '.join(problems)}")
            return
        question = LAYOUT
        try:
            run = self._seen(config, processes)
            yield finding(question, agreements(self.reference, run))
            question = ON
            yield finding(question, agreements(run, self._seen(rewound(config), processes), exact=True))
            question = ALONE_AGAIN
            again = replace(rewound(config), parallel=ALONE)
            yield finding(question, agreements(self.reference, self._seen(again, 1)))
        except (RankError, ValueError) as error:
            yield finding(question, problem=last_line(str(error)))

    def _seen(self, config: Config, processes: int) -> Observation:
        return joined(run_distributed(observe, processes, config, timeout=TIMEOUT_SECONDS))


def _structure(small: Config, config: Config) -> StageConfig:
    """What makes a proof of a stage another one than that of the stage before it: not its data sets' names."""
    stage = small.curriculum[small.stage]
    made = {name for name in stage.blend if config.data.datasets[name].neighbours}
    blend = {f"{'examples' if name in made else 'rows'} {i}": 1.0 for i, name in enumerate(sorted(stage.blend))}
    return replace(stage, blend=blend, max_windows=min(stage.max_windows, 2))


def last_line(text: str) -> str:
    """Of a traceback: what was raised."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else text
