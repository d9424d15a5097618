"""Parameters by name are those that the ranks of a run hold."""

import dataclasses

import pytest

from megatron_af.config import Config
from megatron_af.config.loading import load_config
from megatron_af.model import build
from megatron_af.parallel import groups as process_groups
from megatron_af.parallel.device import current_device
from megatron_af.plan.case import Case
from megatron_af.plan.gpu import read_gpu
from megatron_af.plan.weights import front_weights, trainable
from tests import tiny
from tests.distributed import run_distributed


def of_rank(rank: int, world: int, config: Config) -> list[dict[str, int]]:
    from megatron.core import parallel_state

    groups = process_groups.initialize(config.parallel, config.seed)
    model = build(config, tiny.VOCABULARY, current_device())
    case = Case(config=config, gpu=read_gpu("cpu"), world=world)
    told = case.front | case.decoder(parallel_state.get_pipeline_model_parallel_rank())
    real: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        real[name] = real.get(name, 0) + parameter.numel()
    assert groups.model_size == config.parallel.tensor * config.parallel.pipeline
    process_groups.destroy()
    return [told, real]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "config"),
    [
        (1, tiny.config(interval=2, tied=False, lora=tiny.LORA)),
        (4, tiny.config(tensor=2, pipeline=2, lora=tiny.LORA)),
        (2, tiny.config(pipeline=2, virtual_pipeline=2, tied=False)),
    ],
    ids=["alone", "TP 2, PP 2", "PP 2 in chunks"],
)
def test_every_parameter_of_a_rank_is_told(world: int, config: Config) -> None:
    for told, real in run_distributed(of_rank, world, config):
        assert told == real


@pytest.mark.slow
def test_every_parameter_of_opt_is_told() -> None:
    config = tiny.config(pipeline=2)
    lm = dataclasses.replace(config.model.lm, family="opt", kv_heads=config.model.lm.heads)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, lm=lm))
    for told, real in run_distributed(of_rank, 2, config):
        assert told == real


def test_published_sizes() -> None:
    """Those of configs/model/af2_3b.yaml, which are the papers'."""
    config = load_config("configs/af2_3b.yaml", ["stage=finetune", "parallel.tensor=1", "parallel.sequence=false"])
    case = Case(config=config, gpu=read_gpu("h100"), world=1)
    parts = {"encoder.": 278_770_007, "transform.": 75_538_432}
    for part, size in parts.items():
        assert sum(n for name, n in case.front.items() if name.startswith(part)) == size
    blocks = sum(n for name, n in case.decoder(0).items() if ".xattn." in name)
    assert blocks == 36 * 37_756_930
    learns = trainable(case.front, case.trains)
    carried = 278_770_007 - sum(n for name, n in case.front.items() if name.startswith("encoder.layers."))
    assert 75_538_432 < learns < 278_770_007 + 75_538_432 + 4 * 2048 and carried > 0


def test_what_released_weights_only_carry_does_not_train() -> None:
    config = load_config("configs/af2_3b.yaml", ["stage=finetune"])
    stage = config.curriculum["finetune"]
    front = front_weights(config, stage)
    stft = sum(n for name, n in front.items() if "extractor" in name)
    assert stft > 0
    assert trainable(front, stage.trains) <= sum(front.values()) - stft
