"""The trainer on the real stream: goes on to the last bit, leaves bad steps out, tells of checkpoints that exist."""

import json
import math
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.dist_checkpointing import load_tensors_metadata

from megatron_af.config import CheckpointConfig, Config, ConfigError, StageConfig
from megatron_af.decoder import initialization
from megatron_af.inference.listener import Listener
from megatron_af.runs.paths import latest, read_resume
from megatron_af.runs.pointers import source_of
from megatron_af.train import trainer as trainer_module
from megatron_af.train.callbacks import Callback, Record
from megatron_af.train.callbacks.skipped_steps import MAX_SKIPPED_IN_A_ROW
from megatron_af.train.optimizer import NonFiniteGradient
from megatron_af.train.stage_result import StageResult
from megatron_af.train.trainable import part_of
from megatron_af.train.trainer import Trainer
from tests import tiny
from tests.data.toy import toy_config, toy_rows
from tests.distributed import RankError, run_distributed

pytestmark = pytest.mark.slow

STEPS, STOP = 7, 3


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Everything trains, with drop-path and SpecAugment; clips of several windows, rows of several questions."""
    toy = toy_config(tmp_path_factory.mktemp("run"))
    small = tiny.config()
    encoder = replace(small.model.encoder, drop_path=0.1, spec_augment=True)
    lm = replace(small.model.lm, vocab=257, max_positions=512)
    stage = replace(
        small.curriculum["stage"], blend=toy.curriculum["tune"].blend, global_batch_samples=4, questions_per_sample=2,
        steps=STEPS, frozen=("encoder.bn0.*",),
    )  # fmt: skip
    return replace(
        toy,
        model=replace(small.model, encoder=encoder, lm=lm, front_end=toy.model.front_end),
        curriculum={"tune": stage},
        tracking=replace(toy.tracking, enabled=False),
        log_every_steps=1,
    )


def with_stage(config: Config, **changes: Any) -> Config:
    stage: StageConfig = replace(config.curriculum["tune"], **changes)
    return replace(config, curriculum={"tune": stage})


class Watch(Callback):
    """Losses and norms by step, and what is on disk whenever a checkpoint is announced; asks to stop after a step."""

    def __init__(self, stop_after: int = 0) -> None:
        self.numbers: dict[int, tuple[float, float]] = {}
        self.announced: list[tuple[str, int, bool]] = []
        self._stop_after = stop_after

    def on_step(self, trainer: Trainer, record: Record) -> None:
        self.numbers[trainer.step] = (record["loss"], record["grad_norm"])
        if trainer.step == self._stop_after and trainer.rank == trainer.world_size - 1:
            trainer.request_stop()

    def on_checkpoint(self, trainer: Trainer, path: Path) -> None:
        self.announced.append((path.name, read_resume(path)["step"], latest(path.parent) == path))


def train(rank: int, world_size: int, config: Config, stop_after: int = 0) -> Watch:
    watch = Watch(stop_after)
    with Trainer(config, [watch, StageResult()]) as trainer:
        reason = trainer.train()
    assert reason == ("stopped" if stop_after else "done")
    return watch


def drawn(rank: int, world_size: int, config: Config) -> set[str]:
    """Parts of the decoder that got first values when the run was set up."""
    names: set[str] = set()
    draw = initialization.fresh

    def noted(placement: Any, *arguments: Any) -> Any:
        names.add(part_of(placement.name))
        return draw(placement, *arguments)

    initialization.fresh = noted
    with Trainer(config, []):
        pass
    return names


def test_resumed_run_is_the_uninterrupted_one_to_the_last_bit(config: Config) -> None:
    through = run_distributed(train, 2, replace(config, name="through"))[0]
    cut = replace(config, name="cut", checkpoint=CheckpointConfig(every_steps=2, asynchronous=True))
    first = run_distributed(train, 2, cut, stop_after=STOP)[0]
    second = run_distributed(train, 2, cut)[0]
    assert first.numbers | second.numbers == through.numbers
    assert set(second.numbers) == set(range(STOP + 1, STEPS + 1))
    assert len({loss for loss, _ in through.numbers.values()}) == STEPS
    # told of when they can be read, in their order
    assert first.announced == [(f"step_{step:08d}", step, True) for step in (2, 3)]
    assert second.announced == [(f"step_{step:08d}", step, True) for step in (4, 6, 7)]
    newest = latest(config.stage_folder("tune").parents[1] / "cut" / "tune" / "checkpoints")
    assert newest is not None
    resume = read_resume(newest)
    remembered = resume.pop("callbacks")
    assert resume == {"stage": "tune", "step": 7, "skipped": 0, "samples": 28, "world_size": 2}
    # what callbacks remember goes on over the restart, too
    assert [record["step"] for record in remembered["StageResult"]["last"]] == list(range(1, STEPS + 1))
    assert remembered["SkippedSteps"] == {"in_a_row": 0}
    # what a checkpoint fills is not drawn first
    assert run_distributed(drawn, 2, cut) == [set(), set()]
    assert run_distributed(drawn, 2, replace(config, name="new")) == [{"lm", "xattn"}] * 2


def answers(rank: int, world_size: int, config: Config) -> list[str | None]:
    listener = Listener(config)
    rows = [row.each_question()[0] for row in toy_rows(Path(config.data.root), "a", 4)]
    found = listener(rows)
    listener.close()
    return found


def test_adapters_go_on_alone_and_answer(config: Config) -> None:
    """Of a stage with adapters a checkpoint holds nothing else, and goes on to the last bit, dropout included."""
    base = run_distributed(train, 1, with_stage(replace(config, name="base"), steps=1))
    whole = latest(replace(config, name="base").stage_folder("tune") / "checkpoints")
    assert base and whole is not None
    lora = replace(tiny.LORA, dropout=0.2)
    changes = {"lora": lora, "trainable": ("lm.*.lora.*",), "frozen": (), "entry": {"all": str(whole)}}
    tuned = with_stage(config, **changes)
    through = run_distributed(train, 2, replace(tuned, name="tuned"))[0]
    cut = replace(tuned, name="cut-tuned")
    first = run_distributed(train, 2, cut, stop_after=STOP)[0]
    second = run_distributed(train, 2, cut)[0]
    assert first.numbers | second.numbers == through.numbers and len(through.numbers) == STEPS

    newest = latest(cut.stage_folder("tune") / "checkpoints")
    assert newest is not None
    held = load_tensors_metadata(str(newest))
    assert held and all(".lora." in name for name in held), list(held)
    assert source_of(newest, "lm") == whole.resolve() and source_of(newest, "lora") == newest.resolve()

    (said,) = run_distributed(answers, 1, cut)
    assert said == run_distributed(answers, 1, replace(tuned, name="tuned"))[0]
    assert said != run_distributed(answers, 1, replace(config, name="base"))[0]

    # never without its adapters, nor with others
    for other, told in (
        (with_stage(cut, lora=None), "has adapters on its language model, and this model has none"),
        (with_stage(cut, lora=replace(lora, alpha=1.0)), "set targets, rank and alpha"),
    ):
        with pytest.raises(RankError, match=told):
            run_distributed(answers, 1, other)


def refused(rank: int, world_size: int, config: Config) -> str:
    with pytest.raises(ConfigError) as error:
        Trainer(config)
    return str(error.value)


def test_other_settings_are_refused_before_anything_is_loaded(config: Config) -> None:
    short = with_stage(replace(config, name="other"), steps=1)
    run_distributed(train, 1, short)
    (message,) = run_distributed(refused, 1, with_stage(replace(short, seed=3), global_batch_samples=6))
    assert "seed: was 0, now 3" in message and "tune.global_batch_samples: was 4, now 6" in message
    run_distributed(train, 1, with_stage(short, steps=2))  # longer is no other run


def poisoned(rank: int, world_size: int, config: Config, bad: tuple[int, ...], stop_after: int = 0) -> Any:
    """The last rank alone hears NaN in some steps (from 0)."""

    def poison(batch: Callable[[int], Any]) -> Callable[[int], Any]:
        def make(step: int) -> Any:
            made = batch(step)
            if step in bad and rank == world_size - 1:
                for rows in made.text.rows:  # whether it hears anything or not
                    rows.labels_BS[0, 0] = 1
                if made.audio.mel_WFM is not None:
                    made.audio.mel_WFM.fill_(math.nan)
            return made

        return make

    watch = Watch(stop_after)
    with Trainer(config, [watch, StageResult()]) as trainer:
        trainer._stream.batch = poison(trainer._stream.batch)  # type: ignore[method-assign]
        weights = {}

        class Weights(Callback):
            def on_step(self, trainer: Trainer, record: Record) -> None:
                weights[trainer.step] = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}

        trainer.callbacks.append(Weights())
        try:
            trainer.train()
        except NonFiniteGradient as error:
            return str(error), trainer.step, weights
    return watch.numbers, trainer.skipped, weights


@pytest.mark.parametrize("parallel", [{}, {"distributed_optimizer": True, "overlap": True}], ids=["DP2", "ZeRO-1"])
def test_a_step_without_a_finite_gradient_is_left_out_and_counted(config: Config, parallel: Any) -> None:
    name = f"bad{len(parallel)}"
    config = replace(config, name=name, parallel=replace(config.parallel, **parallel))
    results = run_distributed(poisoned, 2, config, bad=(1,), stop_after=STOP)
    for numbers, skipped, weights in results:
        assert skipped == 1 and math.isnan(numbers[2][1]) and math.isfinite(numbers[3][0])
        if not parallel:
            assert all(torch.equal(weights[1][n], weights[2][n]) for n in weights[1])
        assert any(not torch.equal(weights[2][n], weights[3][n]) for n in weights[2])
    # the restart counts on, and its Adam has made one step less
    resumed = run_distributed(poisoned, 2, config, bad=())[0]
    through = run_distributed(poisoned, 2, replace(config, name=name + "through"), bad=(1,))[0]
    assert resumed[1] == 1 and resumed[0] == {s: n for s, n in through[0].items() if s > STOP}
    # the samples of every rank are written down
    written = [json.loads(line) for line in (config.stage_folder("tune") / "skipped.jsonl").read_text().splitlines()]
    assert [line["step"] for line in written] == [2] and [len(ids) for ids in written[0]["samples"]] == [2, 2]
    assert written[0]["samples"][0] != written[0]["samples"][1]
    result = json.loads((config.stage_folder("tune") / "result.json").read_text())
    assert result["skipped"] == 1 and math.isfinite(result["loss"])


def test_too_many_such_steps_in_a_row_end_the_run_on_all_ranks(config: Config) -> None:
    bad = tuple(range(1, STEPS))
    for message, step, weights in run_distributed(poisoned, 2, replace(config, name="hopeless"), bad=bad):
        assert f"step {MAX_SKIPPED_IN_A_ROW} of its kind in a row" in message and step == 1 + MAX_SKIPPED_IN_A_ROW
        assert all(torch.equal(weights[1][n], weights[step - 1][n]) for n in weights[1])


def broken(rank: int, world_size: int, config: Config) -> int | None:
    """Exit code of a writer that was at work when the run failed."""
    writers: list[Any] = []

    class Break(Callback):
        def on_start(self, trainer: Trainer) -> None:
            trainer.checkpoints._writer.process.send_signal(signal.SIGSTOP)  # it will never be done

        def on_step(self, trainer: Trainer, record: Record) -> None:
            if trainer.step == 2:
                writers.append(trainer.checkpoints._writer.process)
                raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"), Trainer(config, [Break()]) as trainer:
        trainer.train()
    (writer,) = writers
    return writer.wait(timeout=60)


def test_a_run_that_fails_leaves_no_writer_behind(config: Config) -> None:
    settings = replace(config, name="broken", checkpoint=CheckpointConfig(every_steps=1, asynchronous=True))
    assert run_distributed(broken, 1, settings) == [-signal.SIGKILL]


def late(rank: int, world_size: int, config: Config) -> Watch:
    """The first rank's machine knows of the checkpoint; the other one's volume shows the folder as it was."""
    newest = trainer_module.latest
    trainer_module.latest = lambda folder: None if rank else newest(folder)
    return train(rank, world_size, config)


def test_ranks_go_on_from_the_checkpoint_that_the_first_one_sees(config: Config) -> None:
    seen = replace(config, name="seen")
    run_distributed(train, 2, seen, stop_after=STOP)
    for watch in run_distributed(late, 2, seen):
        assert set(watch.numbers) == set(range(STOP + 1, STEPS + 1))
