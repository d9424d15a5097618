"""The configuration's own layout first, then each kind of parallelism by itself, with the configuration's switches."""

from megatron_af.config import ParallelConfig
from megatron_af.prove.layouts import ALONE, layouts


def test_plain_layouts_of_two_and_four_processes() -> None:
    assert list(layouts(ParallelConfig(), 2)) == ["DP2", "TP2", "PP2"]
    found = layouts(ParallelConfig(), 4)
    assert list(found) == ["DP4", "DP2", "TP2", "PP2", "TP2xPP2"]
    assert {name: processes for name, (processes, _) in found.items()} == {
        "DP4": 4, "DP2": 2, "TP2": 2, "PP2": 2, "TP2xPP2": 4
    }  # fmt: skip


def test_the_own_layout_is_scaled_down_with_its_switches() -> None:
    own = ParallelConfig(
        tensor=4, pipeline=8, virtual_pipeline=4, sequence=True, distributed_optimizer=True, recompute="full"
    )
    found = layouts(own, 4)
    more = "ZeRO-1+full recompute"
    assert list(found) == [
        "one process as configured", f"TP2xPP2xVPP2+SP+{more}", f"DP2+{more}", f"TP2+SP+{more}", f"PP2xVPP2+{more}"
    ]  # fmt: skip
    assert list(layouts(own, 2)) == ["one process as configured", f"TP2+SP+{more}", f"DP2+{more}", f"PP2xVPP2+{more}"]
    for _, parallel in found.values():
        assert parallel != ALONE and parallel.distributed_optimizer and parallel.recompute == "full"
        assert parallel.tensor > 1 or not parallel.sequence
