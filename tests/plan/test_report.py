"""What a plan says of its layers; the rest of the report is in tests/plan/test_planning.py."""

import dataclasses

from megatron_af.config.loading import load_config
from megatron_af.plan.gpu import read_gpu
from megatron_af.plan.lengths import lengths_of
from megatron_af.plan.report import shortage, split
from megatron_af.plan.stage_plan import case_of, plan_stage


def test_an_uneven_split_stands_beside_the_even_one() -> None:
    config = load_config("configs/af2_0.5b.yaml", ["parallel.pipeline=4"])
    plan = plan_stage(case_of(config, "pretrain", read_gpu("h100"), 8), lengths_of(config, "pretrain", {}))
    assert split(plan).endswith(" (6-6-6-6)") and sum(map(int, split(plan).split(" ")[0].split("-"))) == 24
    config = load_config("configs/af2_0.5b.yaml")
    assert split(plan_stage(case_of(config, "pretrain", read_gpu("h100"), 8), plan.lengths)) == "all"


def test_a_shortage_names_what_takes_the_most() -> None:
    config = load_config("configs/af2_0.5b.yaml")
    small = dataclasses.replace(read_gpu("h100"), memory_gib=10.0)
    told = shortage(plan_stage(case_of(config, "clap", small, 8), lengths_of(config, "clap", {})))
    assert "H100 has 6.8 for tensors" in told and told.index("(") < told.index("activations")
