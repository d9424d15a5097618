"""A picture of each stage's step: what every pipeline stage does when.

    draw(plans, Path("plan.svg"))

Encode ahead, then 1F1B (interleaved chunks are drawn as one), the encoder's backward pass, reduction and update.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_af.files import appearing
from megatron_af.plan.report import Planned
from megatron_af.plan.stage_plan import StagePlan

COLOURS = {
    "encode": "#2f6b8f",
    "forward": "#6aa84f",
    "backward": "#e0a030",
    "encoder backward": "#1f4560",
    "exchange": "#999999",
    "reduce": "#a64d79",
    "update": "#674ea7",
}
MOST_MICRO_BATCHES = 64
"""More are drawn as so many, each as much longer."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    stage: int
    begin: float
    end: float
    what: str


def bars(plan: StagePlan) -> list[Bar]:
    """What each pipeline stage does, in seconds from the step's beginning."""
    parts, found = plan.time.parts, list[Bar]()
    stages = max(1, len(plan.time.stages))

    def everywhere(begin: float, seconds: float, what: str) -> float:
        if seconds:
            found.extend(Bar(stage=s, begin=begin, end=begin + seconds, what=what) for s in range(stages))
        return begin + seconds

    now = everywhere(0.0, parts["encode"], "encode")
    now = everywhere(now, parts["gather tokens"], "exchange")
    if plan.time.stages:
        scale = sum(parts[part] for part in ("decoder", "bubble", "tensor parallel", "pipeline messages"))
        count = max(1, min(MOST_MICRO_BATCHES, round(plan.time.micro_batches)))
        schedule = list(one_forward_one_backward([(w.forward, w.backward) for w in plan.time.stages], count))
        stretch = scale / max(bar.end for bar in schedule)
        found += [
            Bar(stage=bar.stage, begin=now + stretch * bar.begin, end=now + stretch * bar.end, what=bar.what)
            for bar in schedule
        ]
        now += scale
    else:
        now = everywhere(now, parts["decoder"], "forward")
    now = everywhere(now, parts["scatter gradients"], "exchange")
    now = everywhere(now, parts["encoder backward"], "encoder backward")
    now = everywhere(now, parts["reduce"], "reduce")
    everywhere(now, parts["update"], "update")
    return found


def one_forward_one_backward(seconds: Sequence[tuple[float, float]], micro_batches: int) -> Iterator[Bar]:
    """The 1F1B schedule (Narayanan et al. 2021, figure 4 above): each stage takes its passes in their order as soon as
    what they wait for is done.

    Args:
        seconds: of a forward and a backward pass on each stage.
    """
    stages = len(seconds)
    done: dict[tuple[str, int, int], float] = {}
    free, place = [0.0] * stages, [0] * stages
    orders = []
    for stage in range(stages):
        warm = min(micro_batches, stages - stage - 1)
        order = [("forward", m) for m in range(warm)]
        for m in range(micro_batches - warm):
            order += [("forward", warm + m), ("backward", m)]
        orders.append(order + [("backward", m) for m in range(micro_batches - warm, micro_batches)])
    while any(place[stage] < len(orders[stage]) for stage in range(stages)):
        for stage in range(stages):
            while place[stage] < len(orders[stage]):
                what, m = orders[stage][place[stage]]
                if what == "forward":
                    wanted = ("forward", stage - 1, m) if stage else None
                else:
                    wanted = ("backward", stage + 1, m) if stage + 1 < stages else ("forward", stage, m)
                if wanted is not None and wanted not in done:
                    break
                begin = max(free[stage], done[wanted] if wanted else 0.0)
                end = begin + seconds[stage][what == "backward"]
                done[what, stage, m] = free[stage] = end
                place[stage] += 1
                yield Bar(stage=stage, begin=begin, end=end, what=what)


def draw(planned: Sequence[Planned], path: Path) -> None:
    """One strip for each stage of the curriculum; the suffix of the path says in which form."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    heights = [1 + 0.35 * max(1, len(one.plan.time.stages)) for one in planned]
    figure, axes = pyplot.subplots(
        len(planned), 1, figsize=(11, sum(heights) + 0.6), squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    for axis, one in zip(axes[:, 0], planned, strict=True):
        for bar in bars(one.plan):
            axis.barh(bar.stage, bar.end - bar.begin, left=bar.begin, height=0.8, color=COLOURS[bar.what],
                      edgecolor="white", linewidth=0.3)  # fmt: skip
        stages = max(1, len(one.plan.time.stages))
        axis.set_yticks(range(stages), [f"PP {stage}" if stages > 1 else "" for stage in range(stages)])
        axis.invert_yaxis()
        axis.set_xlim(0, one.plan.time.total)
        axis.set_title(f"{one.name}: {one.plan.time.total:.2f} s a step of {one.plan.samples:,} samples", loc="left")
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[-1, 0].set_xlabel("seconds")
    legend = [Patch(color=colour, label=what) for what, colour in COLOURS.items()]
    figure.legend(handles=legend, loc="lower center", ncols=len(legend), frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0.6 / (sum(heights) + 0.6), 1, 1))
    form = path.suffix[1:] or "svg"
    with appearing(path) as draft:
        figure.savefig(draft, format=form, metadata={"Date": None} if form == "svg" else None)
    pyplot.close(figure)
