"""Every GPU says where its numbers come from; one that nobody knows is answered with the nearest."""

from pathlib import Path

import pytest

from megatron_af.config import ConfigError
from megatron_af.plan.gpu import known_gpus, read_gpu


@pytest.mark.parametrize("name", known_gpus())
def test_every_file_loads_and_names_its_source(name: str) -> None:
    gpu = read_gpu(name)
    assert gpu.source and set(gpu.rates) == {"bf16", "fp32"}
    assert all(rates.attention <= rates.matmul <= gpu.peak for rates in gpu.rates.values())
    assert gpu.network <= gpu.link and 0 < gpu.usable_bytes <= gpu.memory_gib * 2**30


def test_one_that_nobody_knows() -> None:
    with pytest.raises(ConfigError, match=r"--gpu h1000: no plan knows it; did you mean h100\?"):
        read_gpu("h1000")


def test_ones_own_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text((Path("configs/gpus/h100.yaml")).read_text().replace("name: H100", "name: Mine"))
    assert read_gpu(str(file)).name == "Mine"


def test_collectives_within_a_node_are_faster() -> None:
    gpu = read_gpu("h100")
    assert gpu.bandwidth(8) == gpu.link > gpu.bandwidth(9) == gpu.network
