"""What trains in a stage is data: patterns over canonical parameter names.

select(model.named_parameters(), stage)
print(table(counts))
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import torch.distributed as dist
from rich.table import Table
from torch import nn

from megatron_af.config import StageConfig


def part_of(name: str) -> str:
    """Part of the model a parameter (by canonical name) belongs to; what an objective adds is called by its module."""
    if name == "added_rows":
        return "rows"
    if name.startswith("lm."):
        return next((part for part in ("xattn", "lora") if f".{part}." in name), "lm")
    return name.split(".", 1)[0]


@dataclass(frozen=True, kw_only=True)
class Count:
    trainable: int
    frozen: int


def select(parameters: Iterable[tuple[str, nn.Parameter]], stage: StageConfig) -> dict[str, Count]:
    """Set ``requires_grad`` by the stage's patterns; returns this rank's parameter counts by part of the model.

    Must run before the gradient buffers and the optimizer are made, so that frozen parameters get neither.
    """
    counts: dict[str, list[int]] = {}
    for name, parameter in parameters:
        # Weights that a released checkpoint carries but nothing uses must not even decay.
        trains = stage.trains(name) and not getattr(parameter, "unused", False)
        parameter.requires_grad_(trains)
        counts.setdefault(part_of(name), [0, 0])[0 if trains else 1] += parameter.numel()
    return {part: Count(trainable=t, frozen=f) for part, (t, f) in counts.items()}


def global_counts(
    counts: dict[str, Count], group: dist.ProcessGroup, parts: Sequence[str], shared_parts: Collection[str]
) -> dict[str, Count]:
    """Sum the counts of the ranks of one model copy; parts every rank holds whole are counted once.

    Args:
        parts: of the whole model, in the order of the result.
    """
    everyone: list[dict[str, Count]] = [{} for _ in range(group.size())]
    dist.all_gather_object(everyone, counts, group=group)
    total = {}
    for part in parts:
        shares = [c[part] for c in (everyone[:1] if part in shared_parts else everyone) if part in c]
        total[part] = Count(trainable=sum(c.trainable for c in shares), frozen=sum(c.frozen for c in shares))
    return total


def table(counts: dict[str, Count], stage: str) -> Table:
    """The counts as a table for the start of a run."""
    result = Table(title=f"stage {stage}: what trains", title_justify="left")
    result.add_column("part")
    result.add_column("trainable", justify="right")
    result.add_column("frozen", justify="right")
    for part, count in counts.items():
        result.add_row(part, f"{count.trainable:,}", f"{count.frozen:,}")
    result.add_row(
        "all", f"{sum(c.trainable for c in counts.values()):,}", f"{sum(c.frozen for c in counts.values()):,}"
    )
    return result
