"""When a checkpoint is written on the way, and when memory is given back."""

from types import SimpleNamespace
from typing import Any

import pytest

from megatron_af.train.callbacks.saving import RETURN_MEMORY_STEPS, ReturnMemory, SaveEvery


@pytest.mark.parametrize(("every", "saved"), [(3, [3, 6, 9]), (1, list(range(1, 11))), (0, [])])
def test_a_checkpoint_every_few_steps(every: int, saved: list[int]) -> None:
    found: list[int] = []
    polled: list[int] = []
    callback = SaveEvery(every)
    for step in range(1, 11):
        checkpoints = SimpleNamespace(poll=lambda s=step: polled.append(s))
        trainer: Any = SimpleNamespace(step=step, best_step=-1, checkpoints=checkpoints, suspicious=False)
        trainer.save = lambda s=step: found.append(s)
        callback.on_step(trainer, {})
    assert found == saved
    assert polled == list(range(1, 11)), "a complete checkpoint waits to be published"


def test_a_checkpoint_of_each_step_that_is_the_best() -> None:
    found: list[int] = []
    for step in range(1, 7):
        trainer: Any = SimpleNamespace(step=step, best_step=step - step % 2, save=lambda s=step: found.append(s))
        trainer.suspicious = False
        trainer.checkpoints = SimpleNamespace(poll=lambda: None)
        SaveEvery(5).on_step(trainer, {})
    assert found == [2, 4, 5, 6]


def test_no_checkpoint_while_the_loss_has_left_its_course() -> None:
    found: list[int] = []
    for step in range(1, 7):
        trainer: Any = SimpleNamespace(step=step, best_step=2, save=lambda s=step: found.append(s))
        trainer.suspicious = step in (2, 3)
        trainer.checkpoints = SimpleNamespace(poll=lambda: None)
        SaveEvery(3).on_step(trainer, {})
    assert found == [6]


def test_memory_is_given_back_now_and_then() -> None:
    returned: list[int] = []
    for step in range(1, 3 * RETURN_MEMORY_STEPS):
        trainer: Any = SimpleNamespace(step=step)
        trainer.device = SimpleNamespace(return_freed_memory=lambda s=step: returned.append(s))
        ReturnMemory().on_step(trainer, {})
    assert returned == [RETURN_MEMORY_STEPS, 2 * RETURN_MEMORY_STEPS]
