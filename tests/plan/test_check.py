"""What cannot fit is refused before any process group, with numbers and a way; on a CPU nothing is."""

import dataclasses

import pytest
import torch

from megatron_af.config import Config, ConfigError
from megatron_af.parallel import device
from megatron_af.parallel.device import Device
from megatron_af.plan import check
from megatron_af.plan.check import plan_here, require_fit
from megatron_af.plan.gpu import read_gpu
from megatron_af.plan.layouts import as_configured
from megatron_af.plan.lengths import lengths_of
from megatron_af.plan.stage_plan import StagePlan
from tests import tiny


def tight(config: Config, part: float, world: int = 1) -> StagePlan:
    """The plan on a card that has a part of what it needs."""
    gpu, lengths = read_gpu("cpu"), lengths_of(config, "stage", {})
    needed = as_configured(config, "stage", gpu, world, lengths).needed
    return as_configured(
        config, "stage", dataclasses.replace(gpu, memory_gib=part * needed / 2**30), world, lengths
    )


def test_what_fits_passes() -> None:
    require_fit(tight(tiny.config(), 1.01))
    require_fit(None)


def test_what_does_not_is_refused_with_the_nearest_that_does() -> None:
    with pytest.raises(ConfigError) as refused:
        require_fit(tight(tiny.config(), 0.9))
    told = str(refused.value)
    assert "stage stage of tiny does not fit" in told and "needs" in told and "for tensors" in told
    assert "the nearest that fits: " in told and "launch.ignore_plan=true" in told


def test_where_nothing_fits_more_gpus_are_asked_for() -> None:
    with pytest.raises(ConfigError, match="no layout of 1 GPUs fits: start more"):
        require_fit(tight(tiny.config(), 0.1))


def test_the_key_lets_it_try() -> None:
    config = tiny.config()
    require_fit(tight(dataclasses.replace(config, launch=dataclasses.replace(config.launch, ignore_plan=True)), 0.1))


def test_a_cpu_has_no_plan() -> None:
    assert plan_here(tiny.config(), 1) is None


@pytest.mark.parametrize("problem", ["", "is not installed"])
def test_the_layers_that_there_are_are_planned(problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of torch keep more for the way back."""
    monkeypatch.setattr(device, "transformer_engine_problem", lambda: problem)
    monkeypatch.setattr(check, "current_device", lambda: Device(torch.device("cuda", 0)))
    monkeypatch.setattr(check, "card", lambda device: read_gpu("h100"))
    config = tiny.config()
    plans = {layers: plan_here(dataclasses.replace(config, layers=layers), 1) for layers in ("", "torch")}
    needed = {layers: plan.needed for layers, plan in plans.items() if plan is not None}
    assert (needed[""] == needed["torch"]) == bool(problem) and needed[""] <= needed["torch"]


@pytest.mark.parametrize(
    ("name", "found"), [("NVIDIA A100-SXM4-40GB", "A100"), ("NVIDIA H200", "H200"), ("NVIDIA L40S", "H100")]
)
def test_a_card_is_known_by_its_name_and_its_memory(
    name: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Properties:
        total_memory = 40 * 2**30

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties())
    gpu = check.card(Device(torch.device("cuda", 0)))
    assert (gpu.name, gpu.memory_gib) == (found, 40)
