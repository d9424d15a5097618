"""Does a stage fit the GPUs that it is about to start on? Asked before any process group.

    plan = plan_here(config, world_size)        # None on a CPU, whose memory is nobody's limit
    require_fit(plan)                           # raises ConfigError with the plan's numbers and the nearest that fits
"""

from dataclasses import replace

import torch

from megatron_af.config import Config, ConfigError
from megatron_af.parallel.device import Device, current_device
from megatron_af.plan.gpu import Gpu, known_gpus, read_gpu
from megatron_af.plan.layouts import nearest, planned_as_is, search
from megatron_af.plan.lengths import lengths_of
from megatron_af.plan.report import shortage
from megatron_af.plan.stage_plan import StagePlan

RATES_OF_OTHERS = "h100"
"""Whose rates a card without a file gets; its memory it tells itself."""


def plan_here(config: Config, world_size: int) -> StagePlan | None:
    """Of ``config.stage``, its sizes resolved, on the card of this process."""
    device = current_device()
    if not device.is_gpu:
        return None
    config = replace(config, layers=device.layers(config.layers))  # what torch's keep, Transformer Engine's do not
    return planned_as_is(config, config.stage, card(device), world_size, lengths_of(config, config.stage, {}))


def card(device: Device) -> Gpu:
    """The file of a card by its name, with the memory that it has."""
    names = [name for name in known_gpus() if name.upper() in device.name.upper()]
    total = torch.cuda.get_device_properties(device.torch).total_memory
    return replace(read_gpu(names[0] if names else RATES_OF_OTHERS), memory_gib=total / 2**30)


def require_fit(plan: StagePlan | None) -> None:
    """
    Raises:
        ConfigError: it does not fit, and ``launch.ignore_plan`` does not say to try nevertheless.
    """
    if plan is None or plan.fits or plan.case.config.launch.ignore_plan:
        return
    case = plan.case
    tried = search(case.config, case.config.stage, case.gpu, case.world, plan.lengths)
    close = nearest(case.config, case.config.stage, tried)
    if close is not None:
        way = f"the nearest that fits: {' '.join(close.changes.differing(case.config, case.config.stage))}"
    else:
        way = f"no layout of {case.world} GPUs fits: start more"
    raise ConfigError(
        f"stage {case.config.stage} of {case.config.name} does not fit",
        [f"{shortage(plan)}; {way}; or launch.ignore_plan=true, to try nevertheless"],
    )
