"""The plan of a run: every stage as it is configured, and what would be better.

    planned, refused = plan_run(config, ["pretrain", "finetune"], read_gpu("h100"), 64, given={}, most=5)
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from megatron_af.config import Config, ConfigError
from megatron_af.config.rules import batch_rules, layout_rules, model_rules
from megatron_af.plan.gpu import Gpu
from megatron_af.plan.layouts import as_configured, best, nearest, search
from megatron_af.plan.lengths import GivenLengths, lengths_of
from megatron_af.plan.report import Planned
from megatron_af.runs.check import check


def plan_run(
    config: Config, names: Sequence[str], gpu: Gpu, world: int, given: Mapping[str, GivenLengths], *, most: int
) -> tuple[list[Planned], list[str]]:
    """
    Returns:
        The plans, and what is to be said of stages that no layout can share.

    Args:
        most: layouts that are told of a stage; with 0 none is sought where the configured one fits.

    Raises:
        ConfigError: no such model can be built, or no stage can be shared by so many GPUs.
    """
    if problems := list(model_rules(config.model)):
        raise ConfigError(f"{config.name} cannot be planned", problems)
    if config.precision not in gpu.rates:
        raise ConfigError(
            f"precision = {config.precision}: {gpu.name} has rates for {', '.join(gpu.rates)}; add them to its file in "
            "configs/gpus"
        )
    planned, refused = [], []
    for name in names:
        try:
            planned.append(_planned(config, name, gpu, world, given, most))
        except ConfigError as error:
            refused.append(str(error))
    if not planned:
        raise ConfigError("\n".join(refused))
    return planned, refused


def _for_any_layout(config: Config, name: str, world: int) -> list[str]:
    """What training refuses of a stage, however it is laid on GPUs: how it is laid can be sought."""
    sought = {*layout_rules(config, world), *batch_rules(config, name, world)}
    return [problem for problem in check(replace(config, stage=name), world) if problem not in sought]


def _planned(
    config: Config, name: str, gpu: Gpu, world: int, given: Mapping[str, GivenLengths], most: int
) -> Planned:
    if problems := _for_any_layout(config, name, world):
        raise ConfigError(f"stage {name} of {config.name} cannot be trained", problems)
    lengths = lengths_of(config, name, given)
    problem = ""
    try:
        plan = as_configured(config, name, gpu, world, lengths)
        tried = search(config, name, gpu, world, lengths) if most or not plan.fits else []
        close = None if plan.fits else nearest(config, name, tried)
    except ConfigError as error:
        tried = search(config, name, gpu, world, lengths)
        if not tried:
            raise
        close = nearest(config, name, tried)
        plan, problem = (close or tried[0]).plan, str(error)
    fastest = best(config, name, gpu, world, lengths, tried, most)
    return Planned(
        name=name,
        plan=plan,
        problem=problem,
        best=fastest,
        nearest=close,
        differing=[one.changes.differing(config, name) for one in fastest],
        nearest_differing=close.changes.differing(config, name) if close else (),
        least=None if plan.fits or close else min((one.plan for one in tried), key=lambda p: p.needed, default=None),
    )
