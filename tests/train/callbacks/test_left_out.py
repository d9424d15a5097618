"""Questions that were left out are added up over the run, and over a restart."""

from types import SimpleNamespace
from typing import Any

from megatron_af.train.callbacks.left_out import LeftOut

TRAINER: Any = SimpleNamespace(stage=SimpleNamespace(blend={"a": 1.0, "b": 1.0}))


def test_they_are_added_up_by_data_set_and_a_resumed_run_goes_on_counting() -> None:
    counter = LeftOut()
    steps: list[dict[str, float]] = [
        {"loss": 1.0},
        {"too_long/a": 2.0},
        {"loss": 1.0},
        {"too_long/a": 1.0, "too_long/b": 1.0},
    ]
    for record in steps:
        counter.on_step(TRAINER, record)
    assert steps == [
        {"loss": 1.0, "too_long/a": 0.0, "too_long/b": 0.0},
        {"too_long/a": 2.0, "too_long/b": 0.0},
        {"loss": 1.0, "too_long/a": 2.0, "too_long/b": 0.0},
        {"too_long/a": 3.0, "too_long/b": 1.0},
    ]
    resumed = LeftOut()
    resumed.load_state_dict(counter.state_dict())
    last = {"too_long/b": 4.0}
    resumed.on_step(TRAINER, last)
    assert last == {"too_long/a": 3.0, "too_long/b": 5.0}
