"""The training loop of one stage.

    with Trainer(config, callbacks) as trainer:
        trainer.train()

Used by ``tools/pretrain_af.py`` and ``tools/pretrain_clap.py``. The default process group must exist and the
configuration must have been validated.
"""

import hashlib
import math
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import torch
import torch.distributed as dist
from rich.console import Console
from rich.markup import escape

from megatron_af.config import PARTS, Config, StageConfig
from megatron_af.config.loading import to_yaml
from megatron_af.data.batch import StepBatch
from megatron_af.data.feature_cache import encoder_digest
from megatron_af.data.stream import Stream
from megatron_af.model import Vocabulary, build
from megatron_af.parallel import groups as process_groups
from megatron_af.parallel.device import current_device
from megatron_af.runs.paths import Resume, latest, read_resume, resolve_entry
from megatron_af.runs.resume import check_resume
from megatron_af.text.tokenizer import Tokenizer
from megatron_af.train.answer import AnswerObjective
from megatron_af.train.callbacks import Callback, Meter, Record
from megatron_af.train.checkpoint import Checkpoints, load_optimizer, load_parts
from megatron_af.train.contrastive import ContrastiveObjective, build_clap
from megatron_af.train.flops import peak_flops, step_flops
from megatron_af.train.optimizer import AudioFlamingoOptimizer, NonFiniteGradient, build_schedule
from megatron_af.train.trainable import global_counts, select, table

FRONT_PARTS = ("encoder", "transform", "rows", "clap")
"""Parts that every rank holds whole."""

MAX_SKIPPED_IN_A_ROW = 5
"""A few bad samples spoil a step or two; more in a row come from weights or settings that no next step mends."""

RETURN_MEMORY_STEPS = 20


class Objective(Protocol):
    """What a stage minimises; owns gradient buffers and optimizer."""

    optimizer: AudioFlamingoOptimizer

    def forward_backward(self, batch: StepBatch) -> dict[str, float]: ...

    def sync_parameters(self) -> None: ...


class Trainer:
    """One stage of a curriculum, from its entry weights (or its newest checkpoint) to its last step."""

    def __init__(self, config: Config, callbacks: Sequence[Callback] = ()) -> None:
        """Raises ``ConfigError`` when the newest checkpoint is of a run with other settings (``runs/resume.py``)."""
        self.config = config
        self.stage: StageConfig = config.curriculum[config.stage]
        self.callbacks = list(callbacks)
        self.device = current_device()
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        resume_from = latest(config.stage_folder(config.stage) / "checkpoints")
        if resume_from is not None:
            check_resume(config, resume_from)
        self.groups = process_groups.initialize(config.parallel, config.seed)
        self.folder = config.stage_folder(config.stage)
        self.step = 0
        self.skipped = 0
        """Steps whose gradient was not finite: they changed no weight."""
        self._skipped_in_a_row = 0
        self._stop = torch.zeros(1, device=self.device.torch)

        tokenizer = Tokenizer.load(config.data.tokenizer)
        self._contrastive = self.stage.objective == "contrastive"
        if self._contrastive:
            self.model = build_clap(config, tokenizer, self.device)
        else:
            vocabulary = Vocabulary(first_added_id=tokenizer.first_added_id, num_added=tokenizer.num_added)
            self.model = build(config, vocabulary, self.device)
        counts = select(self.model.named_parameters(), self.stage.trainable, self.stage.frozen)
        self.counts = global_counts(counts, self.groups.model, FRONT_PARTS)
        self._checkpoints = Checkpoints(
            self.folder / "checkpoints", config.checkpoint.keep, config.checkpoint.asynchronous, self._announce
        )
        self._parts = [part for part in PARTS if self.counts[part].trainable + self.counts[part].frozen]
        self._sources = self._load_weights(resume_from)
        self._stream = Stream(
            config,
            self.stage,
            dp_rank=self.groups.data_rank,
            dp_size=self.groups.data_size,
            mp_rank=self.groups.model_rank,
            mp_size=self.groups.model_size,
            device=self.device,
            start_step=0 if resume_from is None else read_resume(resume_from)["step"],
            # Features of an encoder that trains are worth nothing in the next step.
            encoder_digest=""
            if self.counts["encoder"].trainable
            else encoder_digest(self.model.front.get_submodule("encoder")),
        )
        self._objective: Objective = (
            ContrastiveObjective(config, self.stage, self.model, self.groups, self.device.torch)
            if self._contrastive
            else AnswerObjective(config, self.stage, self.model, self.groups, self.device.torch, self._stream.cache)
        )
        self._schedule = build_schedule(self.stage.optimizer, self.stage.steps, self._objective.optimizer)
        if resume_from is not None:
            load_optimizer(self.model, self._objective.optimizer, self.groups, resume_from, self._sources)
            resume = read_resume(resume_from)
            self.step, self.skipped = resume["step"], resume["skipped"]
            self._schedule.num_steps = self.step

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._checkpoints.abort()
            for callback in self.callbacks:
                callback.on_end(self, "failed")
        self._stream.close()
        process_groups.destroy()

    def request_stop(self) -> None:
        """End after the step under way, with a checkpoint (on all ranks, even if only this one was asked)."""
        self._stop.fill_(1)

    def train(self) -> str:
        """Run to the stage's last step.

        Returns:
            ``done``, or ``stopped`` when a stop was requested.

        Raises:
            NonFiniteGradient: on all ranks, after ``MAX_SKIPPED_IN_A_ROW`` steps without a finite gradient.
        """
        if self.rank == 0:
            Console().print(table(self.counts, self.config.stage))
        for callback in self.callbacks:
            callback.on_start(self)
        meter, peak = Meter(), peak_flops(self.config.precision, self.device) * self.world_size
        saved_step = self.step if self.step else -1
        every = self.config.checkpoint.every_steps
        reason = "done"
        while self.step < self.stage.steps:
            started = time.perf_counter()
            batch = self._stream.batch(self.step)
            waited = time.perf_counter() - started

            record = self._train_step(batch)
            record |= self._measure(meter, batch, waited, peak)
            for callback in self.callbacks:
                callback.on_step(self, record)
            self._checkpoints.poll()
            if self.step % RETURN_MEMORY_STEPS == 0:
                self.device.return_freed_memory()
            if every and self.step % every == 0:
                self.save()
                saved_step = self.step
                meter.pause()
            if self._asked_to_stop():
                reason = "stopped"
                break
        if saved_step != self.step:
            self.save()
        self._checkpoints.close()
        for callback in self.callbacks:
            callback.on_end(self, reason)
        return reason

    def save(self) -> Path:
        """Write a checkpoint of the present step; a collective."""
        self._objective.sync_parameters()
        return self._checkpoints.save(
            self.model,
            self._objective.optimizer,
            self.groups,
            Resume(
                stage=self.config.stage,
                step=self.step,
                skipped=self.skipped,
                samples=self.step * self.stage.global_batch_samples,
                world_size=self.world_size,
            ),
            self._sources,
            self._parts,
            to_yaml(self.config),
        )

    def _announce(self, checkpoint: Path) -> None:
        for callback in self.callbacks:
            callback.on_checkpoint(self, checkpoint)

    def _train_step(self, batch: StepBatch) -> Record:
        # Random numbers (drop-path, SpecAugment) depend on nothing but this, so a resumed run draws the same.
        torch.manual_seed(_step_seed(self.config.seed, self.step, self.rank))
        losses = self._objective.forward_backward(batch)
        self._schedule.step(1)
        self.step += 1
        try:
            grad_norm = self._objective.optimizer.step_checked()
            self._skipped_in_a_row = 0
        except NonFiniteGradient as error:  # on all ranks alike
            grad_norm = math.nan
            self._skip(batch, losses["loss"], error)
        return {
            "step": float(self.step),
            **losses,
            "grad_norm": grad_norm,
            "learning_rate": self._schedule.get_lr({}),
            **({"skipped": float(self.skipped)} if self.skipped else {}),
            **self._gates(),
        }

    def _skip(self, batch: StepBatch, loss: float, error: NonFiniteGradient) -> None:
        """Leave the step's update out. A gradient is a function of the step, so a restart would only meet it again."""
        self.skipped += 1
        self._skipped_in_a_row += 1
        what = f"stage {self.config.stage}, step {self.step}: {error}. Loss {loss}; samples of rank {self.rank}: "
        what += ", ".join(batch.sample_ids[:8])
        if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise NonFiniteGradient(
                f"{what}. It is step {self._skipped_in_a_row} of its kind in a row: mend these samples, or begin anew "
                "with a lower optimizer.learning_rate and another name="
            ) from None
        if self.rank == 0:
            Console(soft_wrap=True).print(f"[bold yellow]skipped[/] {escape(what)}")

    def _measure(self, meter: Meter, batch: StepBatch, waited: float, peak: float) -> Record:
        copies = self.groups.data_size
        windows = sum(batch.clip_windows)
        record = meter.measure(
            tokens=batch.num_text_tokens * copies,
            audio_seconds=batch.audio_seconds * copies,
            wait_seconds=waited,
            flops=step_flops(self.config, self.stage, batch.num_text_tokens * copies, windows * copies),
            left=self.stage.steps - self.step,
        )
        if "flops_per_second" in record:
            record["mfu"] = record["flops_per_second"] / peak
        return record

    def _gates(self) -> Record:
        """tanh of every gate by global layer, gathered from the pipeline stages on the steps that are logged."""
        if self.step % self.config.log_every_steps and self.step != self.stage.steps:
            return {}
        local = {}
        for name, parameter in self.model.named_parameters():
            if ".xattn.gate_" in name:
                layer, gate = name.split(".layers.")[1].split(".")[0], name.rsplit(".", 1)[1]
                local[f"{gate}/{layer}"] = parameter.detach().float().tanh().item()
        stages: list[Record] = [{} for _ in range(self.groups.model_size)]
        dist.all_gather_object(stages, local, group=self.groups.model)
        return {name: value for stage in stages for name, value in stage.items()}

    def _asked_to_stop(self) -> bool:
        asked = self._stop.clone()
        dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        return bool(asked.item())

    def _load_weights(self, resume_from: Path | None) -> dict[str, Path]:
        """Fill the model from the newest checkpoint, or from the stage's entry.

        Returns:
            Frozen parts and the checkpoints that hold them: these are not written again.
        """
        parts = self._parts
        frozen = [part for part in parts if self.counts[part].trainable == 0]
        if resume_from is not None:
            held_by = load_parts(self.model, self.groups, resume_from, parts)
            return {part: held_by[part] for part in frozen if held_by[part] != resume_from.resolve()}
        entry = self.stage.entry
        held_by = {}
        for part in parts:
            origin = entry.get(part, entry.get("all"))
            if origin is not None:
                held_by |= load_parts(self.model, self.groups, resolve_entry(self.config, origin), [part])
        if "rows" in parts and "rows" not in held_by:
            self.model.start_added_rows_at_mean(self.groups.model)
        # Frozen parts with fresh weights are in no other checkpoint: they go into this stage's.
        return {part: held_by[part] for part in frozen if part in held_by}


def _step_seed(seed: int, step: int, rank: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
