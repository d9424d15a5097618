"""An estimate of minutes grows with what is done, and leaves torch's generator and threads as they were."""

from dataclasses import replace

import pytest
import torch

from megatron_af.config import LaunchConfig
from megatron_af.start.pace import START_SECONDS, Pace
from tests import contrastive_run, tiny


def test_time_follows_from_steps_processes_and_questions() -> None:
    config = tiny.config()
    pace = Pace(forward=0.1, trained=0.3)
    stage = replace(config.curriculum["stage"], steps=10, global_batch_samples=8, max_windows=1)

    def seconds(processes: int = 1, rows: int = 0, **changes: object) -> float:
        launch = LaunchConfig(processes_per_node=processes)
        changed = replace(config, launch=launch, curriculum={"stage": replace(stage, **changes)})  # type: ignore[arg-type]
        return pace.seconds(changed, "stage", rows) - 2 * START_SECONDS

    assert seconds(objective="contrastive") == pytest.approx(3 * seconds())
    assert seconds(steps=20) == pytest.approx(2 * seconds()) == pytest.approx(4 * seconds(processes=2))
    assert seconds(max_windows=3) == pytest.approx(3 * seconds())
    assert seconds(rows=100) == seconds() and seconds(rows=100, evaluation=("test",)) == pytest.approx(seconds() + 20)


def test_the_encoder_is_run_by_itself() -> None:
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    pace = Pace.measure(contrastive_run.config())
    assert 0 < pace.forward < pace.trained < 60
    assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == threads
