"""The training loop of one stage.

    with Trainer(config, callbacks) as trainer:
        trainer.train()
    reason = train_stage(config, make_callbacks)        # the same, and back to a checkpoint where the loss spikes

Used by ``tools/pretrain_af.py`` and ``tools/pretrain_clap.py``. The default process group must exist and the
configuration must have been validated. What is minimised is up to the stage's objective (``objectives/``), and whatever
else happens in a step to callbacks (``callbacks/``).
"""

import gc
import hashlib
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_af.audio.augment import set_augment
from megatron_af.config import Config, StageConfig
from megatron_af.config.loading import to_yaml
from megatron_af.data.batch import StepBatch
from megatron_af.data.stream import Stream
from megatron_af.parallel import groups as process_groups
from megatron_af.parallel.collectives import from_first
from megatron_af.parallel.device import current_device
from megatron_af.parallel.world import patience
from megatron_af.runs.identity import check_resume
from megatron_af.runs.paths import Resume, latest, read_resume, resolve_entry
from megatron_af.runs.pointers import holds
from megatron_af.text.tokenizer import Tokenizer
from megatron_af.train.callbacks import Callback, Record
from megatron_af.train.callbacks.agreement import Agreement
from megatron_af.train.callbacks.meter import Meter
from megatron_af.train.callbacks.saving import ReturnMemory, SaveEvery
from megatron_af.train.callbacks.skipped_steps import SkippedSteps
from megatron_af.train.callbacks.spikes import GoBack, LossSpike, Spikes, Stretches
from megatron_af.train.callbacks.watch import Watch
from megatron_af.train.checkpoint import Checkpoints
from megatron_af.train.checkpoint_reading import load_optimizer, load_parts
from megatron_af.train.objectives.base import Learner, objective_of
from megatron_af.train.optimizer import NonFiniteGradient, build_schedule
from megatron_af.train.trainable import global_counts, part_of, select


class Trainer:
    """One stage of a curriculum, from its entry weights (or its newest checkpoint) to its last step."""

    def __init__(self, config: Config, callbacks: Sequence[Callback] = (), left_out: Stretches = ()) -> None:
        """
        Args:
            left_out: steps (from 1) that are passed over, besides those that the newest checkpoint knows of.

        Raises:
            ConfigError: the newest checkpoint is of a run with other settings (``runs/identity.py``).
        """
        self.config = config
        self.stage: StageConfig = config.curriculum[config.stage]
        self.device = current_device()
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.folder = config.stage_folder(config.stage)
        # by one rank for all: a volume may show machines the folder as it was before the run came here
        resume_from = from_first(lambda: latest(self.folder / "checkpoints"))
        if resume_from is not None:
            check_resume(config, resume_from)
        self.groups = _join_groups(config)
        self._stop = torch.zeros(1, device=self.device.torch)
        self.objective = objective_of(self.stage)
        tokenizer = Tokenizer.load(config.data.tokenizer)
        self.callbacks = [
            SkippedSteps(),
            *([Spikes(self.stage.spikes)] if self.stage.spikes.deviations else []),
            Meter(),
            *self.objective.callbacks(config, tokenizer),
            *([Watch(config, tokenizer)] if self.stage.watch.dataset else []),
            *callbacks,
            ReturnMemory(),
            Agreement(config.checkpoint.agree_every_steps),
            SaveEvery(config.checkpoint.every_steps),
        ]
        entries = self._entries(resume_from)
        fresh = set(self.objective.parts_of(self.stage)) - set(entries)
        self.model = self.objective.build(config, tokenizer, self.device, fresh)
        counts = select(self.model.named_parameters(), self.stage)
        on_every_rank = {part_of(name) for name, _ in self.model.front.named_parameters()}
        self.counts = global_counts(counts, self.groups.model, self.objective.parts_of(self.stage), on_every_rank)
        self._parts = [part for part, count in self.counts.items() if count.trainable + count.frozen]
        self.checkpoints = Checkpoints(
            self.folder / "checkpoints", config.checkpoint.keep, config.checkpoint.asynchronous, self._announce
        )
        self._sources = self._load_weights(resume_from, entries)
        set_augment(self.model.front, self.stage.augment, config.model.front_end)
        self.learner: Learner = self.objective.start(config, self.stage, self.model, self.groups, self.device)
        self._schedule = build_schedule(self.stage.optimizer, self.stage.steps, self.learner.optimizer)
        self.step = 0
        self.skipped = 0
        """Steps that changed no weight: their gradient was not finite, or they were left out."""
        self.left_out = left_out
        self.suspicious = False
        """The loss has left its course: no checkpoint is written meanwhile (on all ranks alike)."""
        if resume_from is not None:
            self._resume(resume_from)
        self.best_step = -1
        """The step whose weights are the best so far; a callback says so (on all ranks alike)."""
        self.enough = False
        """A callback may end the stage before its last step, as done (on all ranks alike)."""
        self._saved_step = self.step if resume_from is not None else -1
        self._stream = Stream(
            config,
            self.stage,
            self.objective.texts(config, self.stage, tokenizer),
            dp_rank=self.groups.data_rank,
            dp_size=self.groups.data_size,
            mp_rank=self.groups.model_rank,
            mp_size=self.groups.model_size,
            device=self.device,
            start_step=self.step,
            encoder_side=self.learner.encoder_side,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            if isinstance(error, GoBack | LossSpike | NonFiniteGradient):  # on all ranks alike: they complete it
                self.checkpoints.close()
            else:
                self.checkpoints.abort()
            for callback in self.callbacks:
                callback.on_end(self, "failed")
        self._stream.close()
        self.learner.close()
        process_groups.destroy()

    def request_stop(self) -> None:
        """End after the step under way, with a checkpoint (on all ranks, even if only this one was asked)."""
        self._stop.fill_(1)

    def train(self) -> str:
        """Run to the stage's last step, or until it is enough.

        Returns:
            ``done``, or ``stopped`` when a stop was requested before.

        Raises:
            NonFiniteGradient: on all ranks, after too many steps in a row without a finite gradient.
            GoBack: on all ranks; :func:`train_stage` does.
            LossSpike: on all ranks, where that was done too often.
        """
        for callback in self.callbacks:
            callback.on_start(self)
        stopped = False
        while self.step < self.stage.steps and not stopped and not self.enough:
            if any(first <= self.step + 1 <= last for first, last in self.left_out):
                self._leave_out()
                continue
            batch = self._next_batch()
            record = self._train_step(batch)
            for callback in self.callbacks:
                callback.on_step(self, record)
            stopped = self._asked_to_stop()
        if not (stopped and self.suspicious):
            self.save()
        self.checkpoints.close()
        reason = "done" if self.step >= self.stage.steps or self.enough else "stopped"
        for callback in self.callbacks:
            callback.on_end(self, reason)
        return reason

    def _next_batch(self) -> StepBatch[Any]:
        began = time.perf_counter()
        batch = self._stream.batch(self.step)
        waited = time.perf_counter() - began
        for callback in self.callbacks:
            callback.on_batch(self, batch, waited)
        return batch

    def _leave_out(self) -> None:
        """Pass over a step as if its gradient had not been finite: what comes behind it stays in its place."""
        self._schedule.step(1)
        self.step += 1
        self.skipped += 1

    def _train_step(self, batch: StepBatch[Any]) -> Record:
        # Random numbers (drop-path, SpecAugment, dropout) depend on nothing but this, so a resumed run draws the same.
        share = f"{self.groups.data_rank}, stage {parallel_state.get_pipeline_model_parallel_rank()}"
        process_groups.seed_streams(_step_seed(self.config.seed, self.step, share))
        torch.manual_seed(_step_seed(self.config.seed, self.step, self.rank))
        losses = self.learner.forward_backward(batch)
        self._schedule.step(1)
        self.step += 1
        try:
            grad_norm = self.learner.optimizer.step_checked()
        except NonFiniteGradient:  # on all ranks alike
            grad_norm = math.nan
            self.skipped += 1
        return {
            "step": float(self.step),
            **losses,
            "grad_norm": grad_norm,
            "learning_rate": self._schedule.get_lr({}),
        }

    def _asked_to_stop(self) -> bool:
        asked = self._stop.clone()
        dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        return bool(asked.item())

    @property
    def saved_step(self) -> int:
        """The step of the newest checkpoint, which may still be being written; 0 where there is none."""
        return max(0, self._saved_step)

    def save(self) -> None:
        """Write a checkpoint of the present step, unless there is one; a collective."""
        if self._saved_step == self.step:
            return
        for callback in self.callbacks:
            callback.on_save(self)
        self._saved_step = self.step
        self.learner.sync_parameters()
        remembered = {type(callback).__name__: callback.state_dict() for callback in self.callbacks}
        resume = Resume(
            stage=self.config.stage,
            step=self.step,
            skipped=self.skipped,
            samples=self.step * self.stage.global_batch_samples,
            world_size=self.world_size,
            callbacks={name: state for name, state in remembered.items() if state},
        )
        if self.left_out:
            resume["left_out"] = list(self.left_out)
        self.checkpoints.save(
            self.model,
            self.learner.optimizer,
            self.groups,
            resume,
            self._sources,
            self._parts,
            to_yaml(self.config),
            best=self.step == self.best_step,
        )

    def _announce(self, checkpoint: Path) -> None:
        for callback in self.callbacks:
            callback.on_checkpoint(self, checkpoint)

    def _resume(self, checkpoint: Path) -> None:
        """Go on from a checkpoint whose weights are loaded."""
        load_optimizer(self.model, self.learner.optimizer, self.groups, checkpoint, self._sources)
        resume = read_resume(checkpoint)
        self.step, self.skipped = resume["step"], resume["skipped"]
        self.left_out = self.left_out or tuple((first, last) for first, last in resume.get("left_out", []))
        self._schedule.num_steps = self.step
        remembered = resume.get("callbacks", {})
        for callback in self.callbacks:
            if state := remembered.get(type(callback).__name__):
                callback.load_state_dict(state)

    def _entries(self, resume_from: Path | None) -> dict[str, Path]:
        """Part of the model -> the checkpoint that fills it: the newest one, or what the stage's entry names."""
        parts = self.objective.parts_of(self.stage)
        if resume_from is not None:
            return dict.fromkeys(parts, resume_from)
        origins = {part: origin for part in parts if (origin := self.stage.origin_of(part)) is not None}
        entries = {part: resolve_entry(self.config, origin) for part, origin in origins.items()}
        taken = self.objective.taken(self.stage)
        return {part: entry for part, entry in entries.items() if part in taken or holds(entry, part)}

    def _load_weights(self, resume_from: Path | None, entries: dict[str, Path]) -> dict[str, Path]:
        """Fill the model's parts from their checkpoints.

        Returns:
            Frozen parts and the checkpoints that hold them: these are not written again.
        """
        parts = self._parts
        frozen = [part for part in parts if self.counts[part].trainable == 0]
        if resume_from is not None:
            held_by = load_parts(self.model, self.groups, resume_from, parts, settled=True)
            return {part: held_by[part] for part in frozen if held_by[part] != resume_from.resolve()}
        held_by = {}
        for part in parts:
            if part in entries:
                held_by |= load_parts(self.model, self.groups, entries[part], [part])
        self.objective.fill(self.model, [part for part in parts if part not in held_by], self.groups)
        # Frozen parts with fresh weights are in no other checkpoint: they go into this stage's.
        return {part: held_by[part] for part in frozen if part in held_by}


def train_stage(config: Config, callbacks: Callable[[], Sequence[Callback]]) -> str:
    """Train a stage to its end, going back to its newest checkpoint as often as a spike of the loss asks for it.

    Going back is starting again, in the same process, with some steps to leave out: nothing of what was is kept.

    Args:
        callbacks: makes them, for each start.

    Returns what :meth:`Trainer.train` returns, and raises the same but ``GoBack``.
    """
    left_out: Stretches = ()
    _join_groups(config)  # and stay in them: each start would leave its own behind
    try:
        while True:
            try:
                return _started(config, callbacks(), left_out)
            except GoBack as back:
                left_out = back.left_out
            gc.collect()  # the model of before, before there is another
    finally:
        process_groups.destroy()


def _join_groups(config: Config) -> process_groups.Groups:
    return process_groups.initialize(config.parallel, config.seed, patience(config.launch.hang_seconds))


def _started(config: Config, callbacks: Sequence[Callback], left_out: Stretches) -> str:
    with Trainer(config, callbacks, left_out) as trainer:
        return trainer.train()


def _step_seed(seed: int, step: int, who: int | str) -> int:
    digest = hashlib.blake2b(f"{seed}/{step}/{who}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
