"""A plan for people: tables for the terminal, and the same numbers as JSON.

    console.print(*tables(plans))
    json.dumps(record(plans))
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from megatron_af.decoder.placement import even
from megatron_af.plan.layouts import Ranked
from megatron_af.plan.memory import KINDS
from megatron_af.plan.stage_plan import StagePlan
from megatron_af.plan.step_time import PARTS

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What is told of a stage."""

    name: str
    plan: StagePlan
    """As it is configured; where that cannot be, with the fewest changes."""
    problem: str
    """Why it cannot be as it is configured."""
    best: Sequence[Ranked]
    """The fastest layouts that fit."""
    nearest: Ranked | None
    """To what is configured, where that does not fit."""
    differing: Sequence[Sequence[str]]
    """Of each of the best: what the command line has to say."""
    nearest_differing: Sequence[str]
    least: StagePlan | None
    """Where nothing fits: what needs the least."""


def tables(planned: Sequence[Planned]) -> list[Table]:
    return [_memory(planned), _time(planned), _whole(planned), *(_layouts(one) for one in planned)]


def verdicts(planned: Sequence[Planned]) -> list[str]:
    """Sentences: what does not fit, why, and the nearest change that does; and what was assumed."""
    told = []
    for one in planned:
        gpu, plan = one.plan.case.gpu, one.plan
        if one.problem:
            told.append(f"{one.problem}\n  planned with {' '.join(one.nearest_differing) or 'what needs the least'}")
        elif not plan.fits:
            told.append(f"{one.name} does not fit: {shortage(plan)}")
            if one.nearest is not None:
                changes = " ".join(one.nearest_differing)
                told.append(
                    f"  nearest that fits: {changes} ({one.nearest.plan.needed / GIB:.1f} GiB, "
                    f"{one.nearest.plan.time.total:.2f} s a step)"
                )
            elif one.least is not None:
                told.append(
                    f"  no layout of {plan.case.world} GPUs fits; the least takes {one.least.needed / GIB:.1f} of "
                    f"{gpu.usable_bytes / GIB:.1f} GiB: take more GPUs, larger ones, or a smaller model"
                )
        told.append(f"{one.name}: lengths: {plan.lengths.told}")
    return [*told, f"rates of {planned[0].plan.case.gpu.name}: {planned[0].plan.case.gpu.source}"]


def shortage(plan: StagePlan) -> str:
    """How much is missing and what takes the most: one clause."""
    largest = sorted(plan.memory.kinds, key=plan.memory.kinds.__getitem__, reverse=True)[:3]
    kinds = ", ".join(f"{kind} {plan.memory.kinds[kind] / GIB:.1f}" for kind in largest)
    return (
        f"a rank of pipeline stage {plan.pipeline_stage} needs {plan.needed / GIB:.1f} GiB at the moment "
        f"'{plan.memory.moment}' ({kinds}), and {plan.case.gpu.name} has {plan.case.gpu.usable_bytes / GIB:.1f} for "
        "tensors"
    )


def _memory(planned: Sequence[Planned]) -> Table:
    table = Table("GiB a rank", *(one.name for one in planned), title="memory", title_justify="left")
    for kind in KINDS:
        table.add_row(kind, *(_gib(one.plan.memory.kinds[kind]) for one in planned))
    table.add_row("longer steps", *(_gib(one.plan.margin) for one in planned))
    table.add_row("all", *(_gib(one.plan.needed) for one in planned), style="bold")
    table.add_row("of", *(_gib(one.plan.case.gpu.usable_bytes) for one in planned))
    table.add_row("at", *(one.plan.memory.moment for one in planned))
    return table


def _time(planned: Sequence[Planned]) -> Table:
    table = Table("seconds a step", *(one.name for one in planned), title="time", title_justify="left")
    for part in PARTS:
        table.add_row(part, *(f"{one.plan.time.parts[part]:.3f}" for one in planned))
    table.add_row("all", *(f"{one.plan.time.total:.3f}" for one in planned), style="bold")
    shares = {
        "bubble": [one.plan.bubble for one in planned],
        "encoder": [one.plan.encoder_share for one in planned],
        "communication": [one.plan.communication_share for one in planned],
        "utilisation": [one.plan.utilisation for one in planned],
    }
    for name, values in shares.items():
        table.add_row(f"{name} %", *(f"{100 * value:.1f}" for value in values))
    return table


def _whole(planned: Sequence[Planned]) -> Table:
    columns = ("stage", "samples a step", "tokens/s", "audio-s/s", "steps", "days", "GPU hours")
    table = Table(*columns, title="stages", title_justify="left")
    for one in planned:
        plan = one.plan
        table.add_row(
            one.name,
            f"{plan.samples:,}",
            f"{plan.tokens_per_second:,.0f}",
            f"{plan.audio_seconds_per_second:,.0f}",
            *([f"{plan.steps:,}", f"{plan.days:.2f}", f"{plan.gpu_hours:,.0f}"] if plan.steps else ["?", "?", "?"]),
        )
    if all(one.plan.steps for one in planned):
        days, hours = sum(one.plan.days for one in planned), sum(one.plan.gpu_hours for one in planned)
        table.add_row("curriculum", "", "", "", "", f"{days:.2f}", f"{hours:,.0f}", style="bold")
    return table


def _layouts(one: Planned) -> Table:
    table = Table(title=f"{one.name}: the fastest that fit", title_justify="left")
    table.add_column("change", overflow="fold", min_width=30)
    for column in ("s a step", "GiB", "util. %", "bubble %"):
        table.add_column(column, justify="right")
    table.add_column("layers by chunk\n(even split)", overflow="fold")
    for ranked, changes in zip(one.best, one.differing, strict=True):
        plan = ranked.plan
        table.add_row(
            "\n".join(changes) or "as configured",
            f"{plan.time.total:.2f}",
            f"{plan.needed / GIB:.1f}",
            f"{100 * plan.utilisation:.0f}",
            f"{100 * plan.bubble:.1f}",
            split(plan),
        )
    return table


def split(plan: StagePlan) -> str:
    """Layers of each chunk in the order of the text, and the even split where that is another."""
    pipeline = plan.case.parallel.pipeline
    if pipeline == 1:
        return "all"
    places = range(pipeline * plan.case.parallel.virtual_pipeline)
    counts = [len(plan.case.stages[place % pipeline][place // pipeline].layers) for place in places]
    alike = even(sum(counts), len(counts))
    return "-".join(map(str, counts)) + ("" if counts == alike else f" ({'-'.join(map(str, alike))})")


def _gib(number: float) -> str:
    return f"{number / GIB:.2f}"


def record(planned: Sequence[Planned], refused: Sequence[str] = ()) -> dict[str, Any]:
    """Everything as numbers, bytes and seconds; ``refused``: what is said of stages that no layout can share."""
    first = planned[0].plan.case
    return {
        "config": first.config.name,
        "gpu": first.gpu.name,
        "gpus": first.world,
        "rates": first.gpu.source,
        "refused": list(refused),
        "stages": {
            one.name: _record(one.plan)
            | {
                "best": [
                    {"changes": list(changes)} | _record(ranked.plan)
                    for ranked, changes in zip(one.best, one.differing, strict=True)
                ],
                "problem": one.problem,
                "nearest": list(one.nearest_differing) if one.nearest else None,
            }
            for one in planned
        },
    }


def _record(plan: StagePlan) -> dict[str, Any]:
    return {
        "fits": plan.fits,
        "memory": {**plan.memory.kinds, "longer steps": plan.margin},
        "needed": plan.needed,
        "usable": plan.case.gpu.usable_bytes,
        "moment": plan.memory.moment,
        "seconds": dict(plan.time.parts),
        "step_seconds": plan.time.total,
        "bubble": plan.bubble,
        "encoder_share": plan.encoder_share,
        "communication_share": plan.communication_share,
        "utilisation": plan.utilisation,
        "samples": plan.samples,
        "tokens_per_second": plan.tokens_per_second,
        "audio_seconds_per_second": plan.audio_seconds_per_second,
        "samples_per_second_and_gpu": plan.samples_per_second_and_gpu,
        "steps": plan.steps,
        "days": plan.days,
        "gpu_hours": plan.gpu_hours,
        "layers": split(plan),
        "lengths": plan.lengths.told,
    }
