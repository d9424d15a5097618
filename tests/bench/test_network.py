"""All-reduces between real processes, and what their times mean."""

import re

import pytest

from megatron_af.bench.network import Exchange
from megatron_af.pipeline.job import Job
from megatron_af.pipeline.local import launch_local


def test_bus_bandwidth_is_that_of_nccl_tests() -> None:
    assert Exchange(num_bytes=10**9, seconds=0.1, processes=2).bus_bytes_per_second == pytest.approx(1e10)
    assert Exchange(num_bytes=10**9, seconds=0.1, processes=16).bus_bytes_per_second == pytest.approx(1.875e10)
    text = str(Exchange(num_bytes=2**28, seconds=0.002, processes=2))
    assert text == "     256 MiB      2.000 ms    134.22 GB/s bus"


@pytest.mark.slow
def test_two_nodes_measure_each_other() -> None:
    said: list[str] = []
    job = Job(name="smoke", argv=("tools/measure_network.py",), nodes=2, processes=1, max_restarts=0)
    launch_local(job, said.append)
    text = "\n".join(said)
    assert "2 processes, gloo, pinned memory " in text
    assert len(re.findall(r"\[smoke 0\] .* MiB .* ms .* GB/s bus", text)) == 2
    assert not re.search(r"\[smoke 1\] .*(processes|bus)", text), "one process reports"
