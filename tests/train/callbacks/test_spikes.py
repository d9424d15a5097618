"""A spike sends the run back without the samples since; what comes behind is the run that never had them."""

import json
import math
import os
import random
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from megatron_af.config import CheckpointConfig, Config, SpikesConfig
from megatron_af.runs.paths import latest
from megatron_af.train.callbacks import Callback, Record, spikes
from megatron_af.train.callbacks.spikes import LEAST, GoBack, LossSpike, Spikes, Stretches
from megatron_af.train.checkpoint import Checkpoints
from megatron_af.train.trainer import Trainer, train_stage
from tests import tiny
from tests.data.toy import toy_config
from tests.distributed import RankError, run_distributed


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def fed(losses: list[float], settings: SpikesConfig, callback: Spikes | None = None, left_out: Stretches = ()) -> Any:
    """A trainer behind these losses, of which the first came at step 1; its checkpoint is of step 30."""
    callback = callback or Spikes(settings)
    trainer: Any = SimpleNamespace(
        saved_step=30, left_out=left_out, rank=0, world_size=1, folder=Path(), config=SimpleNamespace(stage="tune")
    )
    for step, loss in enumerate(losses, 1):
        trainer.step = step
        batch: Any = SimpleNamespace(sample_ids=(f"s{step}",))
        callback.on_batch(trainer, batch, 0.0)
        callback.on_step(trainer, {"loss": loss})
    return trainer


def usual(count: int = LEAST) -> list[float]:
    draw = random.Random(0)
    return [2.0 + draw.gauss(0, 0.1) for _ in range(count)]


def test_so_many_losses_in_a_row_send_it_back(capsys: pytest.CaptureFixture[str]) -> None:
    settings = SpikesConfig(deviations=6.0, steps=3)
    with pytest.raises(GoBack) as back:
        fed([*usual(), 9.0, 9.0, 9.0], settings)
    assert back.value.left_out == ((31, LEAST + 3),)
    told = capsys.readouterr().out
    assert f"stage tune, step {LEAST + 3}: a loss of 9, 3 in a row above" in told and "back to step 30" in told
    lines = [json.loads(line) for line in Path("skipped.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(31, LEAST + 4))
    assert lines[-1] == {"step": LEAST + 3, "why": "spike", "loss": "9.0", "samples": [[f"s{LEAST + 3}"]]}


@pytest.mark.parametrize(
    "losses",
    [
        [*usual(), 9.0, 9.0, 2.0, 9.0, 9.0],
        [*usual(LEAST - 1), 9.0, 9.0, 9.0],
        [*usual(), 2.3, 2.3, 2.3],
        [*usual(), math.nan, math.nan, math.nan],
        [2.0] * LEAST + [2.001, 2.001, 2.001],
    ],
    ids=["never three in a row", "too few are known", "within the noise", "not finite", "flat"],
)
def test_what_is_no_spike(losses: list[float]) -> None:
    fed(losses, SpikesConfig(deviations=6.0, steps=3))


def test_spikes_do_not_move_the_bound_and_are_suspicious() -> None:
    callback = Spikes(SpikesConfig(deviations=6.0, steps=10))
    assert not fed(usual(), SpikesConfig(), callback).suspicious
    bound = callback.bound()
    assert fed([9.0] * 5, SpikesConfig(), callback).suspicious and callback.bound() == bound
    assert not fed([2.0], SpikesConfig(), callback).suspicious
    other = Spikes(SpikesConfig(deviations=6.0))
    other.load_state_dict(json.loads(json.dumps(callback.state_dict())))
    assert other.bound() == callback.bound()


def test_too_often_is_no_use() -> None:
    settings = SpikesConfig(deviations=6.0, steps=1, times=2)
    with pytest.raises(LossSpike, match=r"gone back 2 times already.*skipped\.jsonl.*learning_rate"):
        fed([*usual(), 9.0], settings, left_out=((1, 2), (5, 6)))


STEPS, SPIKE = 14, (8, 9)
"""Steps of a run with a checkpoint every third step, and those whose loss is told a hundred higher."""


class Watch(Callback):
    """Numbers by step of the last start; some losses are told too high; may ask to stop."""

    def __init__(self, told_higher: tuple[int, ...], stop_after: int, kill_at: int, seen: dict[Any, Any]) -> None:
        self._told_higher, self._stop_after, self._kill_at, self._seen = told_higher, stop_after, kill_at, seen

    def on_start(self, trainer: Trainer) -> None:
        forward_backward = trainer.learner.forward_backward

        def told(batch: Any) -> dict[str, float]:
            numbers = forward_backward(batch)
            return numbers | {"loss": numbers["loss"] + 100 * (trainer.step + 1 in self._told_higher)}

        trainer.learner.forward_backward = told  # type: ignore[method-assign]

    def on_batch(self, trainer: Trainer, batch: Any, waited: float) -> None:
        self._seen.setdefault("samples", []).append((trainer.step + 1, list(batch.sample_ids)))
        if trainer.step + 1 == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_step(self, trainer: Trainer, record: Record) -> None:
        self._seen[trainer.step] = (record["loss"], record["grad_norm"])
        if trainer.step == self._stop_after:
            trainer.request_stop()

    def on_end(self, trainer: Trainer, reason: str) -> None:
        weights = [parameter.double().sum() for _, parameter in trainer.model.named_parameters()]
        self._seen[-1] = (float(trainer.skipped), float(sum(weights)))


def trained(
    rank: int,
    world_size: int,
    config: Config,
    told_higher: tuple[int, ...] = SPIKE,
    stop_after: int = 0,
    kill_at: tuple[int, int] = (0, 0),
) -> tuple[Any, int]:
    """Numbers by step, and how often it started; ``kill_at``: in which start, with which step's samples at hand."""
    spikes.LEAST = 4
    seen: dict[Any, Any] = {}
    starts: list[int] = []

    def callbacks() -> list[Callback]:
        starts.append(1)
        if kill_at == (len(starts), 0) and rank == world_size - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return [Watch(told_higher, stop_after, kill_at[1] if kill_at[0] == len(starts) else 0, seen)]

    try:
        train_stage(config, callbacks)
    except LossSpike as error:
        return str(error), len(starts)
    return seen, len(starts)


def without(rank: int, world_size: int, config: Config, left_out: Stretches) -> Any:
    seen: dict[Any, Any] = {}
    with Trainer(config, [Watch((), 0, 0, seen)], left_out) as trainer:
        trainer.train()
    return seen


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    toy, small = toy_config(tmp_path_factory.mktemp("run")), tiny.config()
    stage = replace(
        small.curriculum["stage"], blend={"a": 1.0}, global_batch_samples=2, micro_batch_samples=1, steps=STEPS,
        max_windows=1, spikes=SpikesConfig(deviations=20.0, steps=2, times=1),
    )  # fmt: skip
    return replace(
        toy,
        model=replace(small.model, front_end=toy.model.front_end, lm=replace(small.model.lm, vocab=257)),
        curriculum={"tune": stage},
        tracking=replace(toy.tracking, enabled=False),
        checkpoint=CheckpointConfig(every_steps=3),
    )


@pytest.fixture(scope="module")
def through(config: Config) -> list[Any]:
    """The run that nothing happens to, of two ranks."""
    return run_distributed(trained, 2, replace(config, name="through"))


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "asynchronous"), [(1, False), (2, True)])
def test_the_run_is_the_one_that_never_saw_them(config: Config, ranks: int, asynchronous: bool) -> None:
    checkpoint = replace(config.checkpoint, asynchronous=asynchronous)
    config = replace(config, name=f"spike{ranks}", checkpoint=checkpoint)
    bare = replace(config.curriculum["tune"], spikes=SpikesConfig())
    plain = replace(config, name=f"plain{ranks}", curriculum={"tune": bare})
    of_ranks = run_distributed(trained, ranks, config)
    for (seen, starts), expected in zip(of_ranks, run_distributed(without, ranks, plain, ((7, 9),)), strict=True):
        assert starts == 2 and expected[-1][0] == 3.0
        assert [step for step, _ in seen["samples"]] == list(range(1, STEPS + 1)), "each step's samples once"
        assert [one for one in seen["samples"] if one[0] not in (7, 8, 9)] == expected["samples"]
        assert all(seen[step] == expected[step] for step in (-1, *range(1, 7), *range(10, STEPS + 1)))
    written = [json.loads(line) for line in (config.stage_folder("tune") / "skipped.jsonl").read_text().splitlines()]
    assert [(line["step"], line["samples"]) for line in written] == [
        (step, [dict(seen["samples"])[step] for seen, _ in of_ranks]) for step in (7, 8, 9)
    ]

    if ranks == 1:
        return
    # stopped in front of its next checkpoint of the course, and gone on with: to the last bit
    cut = replace(config, name=f"cut{ranks}")
    first, _ = run_distributed(trained, ranks, cut, stop_after=11)[0]
    second, starts = run_distributed(trained, ranks, cut)[0]
    assert starts == 1 and second["samples"][0][0] == 12
    assert {**first, **second, "samples": first["samples"] + second["samples"]} == of_ranks[0][0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "kill_at", [(1, 9), (2, 0), (2, 11)], ids=["inside the spike", "going back", "before the next checkpoint"]
)
def test_a_run_that_is_killed_meanwhile_is_the_run_that_was_not(
    config: Config, through: list[Any], kill_at: tuple[int, int]
) -> None:
    config = replace(config, checkpoint=replace(config.checkpoint, asynchronous=True), name=f"killed{kill_at}")
    with pytest.raises(RankError, match="ended with code -9"):
        run_distributed(trained, 2, config, kill_at=kill_at)
    for (seen, starts), (expected, _) in zip(run_distributed(trained, 2, config), through, strict=True):
        assert starts == 2 and seen["samples"][0][0] in (4, 7), "the newer checkpoint may not be whole"
        assert all(seen[step] == expected[step] for step in (-1, *range(7, STEPS + 1)) if step in expected)


@pytest.mark.slow
def test_the_next_spike_ends_it_also_behind_a_restart(config: Config) -> None:
    twice = (*SPIKE, 12, 13)
    config = replace(config, name="again")
    message, starts = run_distributed(trained, 1, config, twice)[0]
    assert "the stage has gone back 1 times already" in message and "step 13" in message and starts == 2
    config = replace(config, name="later")
    run_distributed(trained, 1, config, twice, stop_after=11)
    message, starts = run_distributed(trained, 1, config, twice)[0]
    assert "the stage has gone back 1 times already" in message and "step 13" in message and starts == 1


def slowly_written(rank: int, world_size: int, config: Config) -> str:
    """The newest checkpoint behind the last spike, where none is written while a step computes."""
    Checkpoints.poll = lambda self: None  # type: ignore[method-assign]
    trained(rank, world_size, config, (*SPIKE, 13, 14))
    newest = latest(config.stage_folder("tune") / "checkpoints")
    return newest.name if newest else ""


@pytest.mark.slow
def test_a_checkpoint_under_way_is_completed_where_the_last_spike_ends_the_stage(config: Config) -> None:
    """Whoever begins anew may begin with its weights."""
    checkpoint = replace(config.checkpoint, asynchronous=True)
    assert run_distributed(slowly_written, 2, replace(config, name="last", checkpoint=checkpoint)) == [
        "step_00000012",
        "step_00000012",
    ]


def groups_of_starts(rank: int, world_size: int, config: Config) -> list[int]:
    """Process groups that there are at each start."""
    spikes.LEAST = 4
    found: list[int] = []

    def callbacks() -> list[Callback]:
        found.append(len(dist.distributed_c10d._world.pg_map))
        return [Watch(SPIKE, 0, 0, {})]

    train_stage(config, callbacks)
    return found


@pytest.mark.slow
def test_going_back_makes_no_group_again(config: Config) -> None:
    """Over NCCL each has memory of the GPU, and nobody ends them."""
    first, second = run_distributed(groups_of_starts, 1, replace(config, name="groups"))[0]
    assert first == second > 1
