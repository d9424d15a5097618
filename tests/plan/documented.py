"""The tables of plans in docs/plan.md.

    python -m tests.plan.documented        # writes them anew; half a minute
"""

from functools import cache

from megatron_af.config.loading import CONFIGS, load_config
from megatron_af.parallel.device import make_megatron_portable

make_megatron_portable()

from megatron_af.files import write  # noqa: E402  (megatron-core is made portable before its modules run)
from megatron_af.plan.gpu import read_gpu  # noqa: E402
from megatron_af.plan.lengths import read_lengths  # noqa: E402
from megatron_af.plan.planning import plan_run  # noqa: E402
from megatron_af.plan.report import GIB, Planned  # noqa: E402

PAGE = CONFIGS.parent / "docs/plan.md"
FIRST, LAST = "**Audio Flamingo 2, 3B**", "The plan is far below"
"""What stands around the tables."""
MODELS = {
    "af2_3b": ("Audio Flamingo 2, 3B", "af2"),
    "af2_0.5b": ("Audio Flamingo 2, 0.5B", "af2"),
    "af1": ("Audio Flamingo 1", "af1"),
}
"""Configuration -> how it is called, and the lengths of its samples."""
GPUS = (1, 8, 64, 512)
SOUGHT = ("af2_3b", (8, 64))
"""Of what the fastest layouts are told."""
PUBLISHED = (
    ("AF2 3B, 128 x A100", "af2_3b", 128, "pretrain", "4"),
    ("AF2 3B, 128 x A100", "af2_3b", 128, "finetune", "5 (about 0.25 samples a second and GPU)"),
    ("AF2 3B, 128 x A100", "af2_3b", 128, "long", "0.5"),
    ("AF1, 8 x A100", "af1", 8, "pretrain", "5 to 6"),
    ("AF1, 8 x A100", "af1", 8, "foundation", "about 3"),
    ("AF1, 8 x A100", "af1", 8, "chat", "0.08"),
)


@cache
def planned(name: str, gpu: str, gpus: int, most: int = 0) -> tuple[list[Planned], list[str]]:
    config = load_config(CONFIGS / f"{name}.yaml")
    return plan_run(
        config, list(config.curriculum), read_gpu(gpu), gpus, read_lengths(MODELS[name][1]), most=most
    )


def written() -> str:
    """The tables, as the page has them."""
    return "\n\n".join([*(_model(name) for name in MODELS), _fastest(), _published(), ""])


def _model(name: str) -> str:
    lines = [
        f"**{MODELS[name][0]}**",
        "",
        "| GPUs | stage | GiB a rank | s a step | encoder / links % | utilisation % | days | change |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    told: list[str] = []
    for gpus in GPUS:
        plans, refused = planned(name, "h100", gpus)
        for one in plans:
            plan, changes = one.plan, " ".join(one.nearest_differing)
            if not plan.fits:
                changes = f"does not fit; nearest: {changes}" if changes else "does not fit, nor does any layout"
            shares = f"{100 * plan.encoder_share:.0f} / {100 * plan.communication_share:.0f}"
            cells = (
                gpus, one.name, f"{plan.needed / GIB:.1f}", f"{plan.time.total:.2f}", shares,
                f"{100 * plan.utilisation:.0f}", f"{plan.days:.2f}", changes,
            )  # fmt: skip
            lines.append(f"| {' | '.join(map(str, cells))} |")
        told += [f"Not to be laid at all: {' '.join(text.split()).rstrip('.')}." for text in refused]
    return "\n".join(lines + [line for text in told for line in ("", text)])


def _fastest() -> str:
    name, numbers = SOUGHT
    lines = [
        "**The fastest layouts of the 3B model that were found**",
        "",
        "| GPUs | stage | change | GiB a rank | s a step (as configured) |",
        "| ---: | --- | --- | ---: | ---: |",
    ]
    for gpus in numbers:
        for one in planned(name, "h100", gpus, 2)[0]:
            for ranked, changes in zip(one.best, one.differing, strict=True):
                seconds = f"{ranked.plan.time.total:.2f} ({one.plan.time.total:.2f})"
                change = " ".join(changes) or "as configured"
                lines.append(f"| {gpus} | {one.name} | {change} | {ranked.plan.needed / GIB:.1f} | {seconds} |")
    return "\n".join(lines)


def _published() -> str:
    lines = [
        "### Beside the published runs",
        "",
        "| run | stage | days planned | days published | samples a second and GPU, planned | utilisation planned % |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for run, name, gpus, stage, days in PUBLISHED:
        plan = next(one.plan for one in planned(name, "a100", gpus)[0] if one.name == stage)
        lines.append(
            f"| {run} | {stage} | {plan.days:.2f} | {days} | {plan.samples_per_second_and_gpu:.1f} | "
            f"{100 * plan.utilisation:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    before, rest = PAGE.read_text().split(FIRST, 1)
    write(PAGE, before + written() + LAST + rest.split(LAST, 1)[1])


if __name__ == "__main__":
    main()
