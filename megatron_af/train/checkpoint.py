"""Checkpoints: megatron-core distributed checkpoints that any layout reads, and a small manifest beside them.

    runs/demo/align/checkpoints/
      latest                    name of the newest complete checkpoint (replaced atomically)
      best                      name of the best one, which is not pruned; where the stage looks for it
      step_00000300/
        checkpoint.json         manifest: resume state, and where each part's weights are
        config.yaml             the resolved configuration it was trained with
        …                       trained weights and optimizer state, sharded

A part of the model that a stage does not train is not copied into its checkpoints: the manifest points at the
checkpoint that already holds it (``runs/pointers.py``), which is not pruned as long as one does. A checkpoint is
written beside its place and renamed when it is complete, so a run that dies at any moment leaves the previous one as it
was. Each process digests the files that it wrote; a run goes on from a checkpoint whose files are what was written
(``runs/whole.py``). ``train/checkpoint_reading.py`` reads them.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial as partial_of
from pathlib import Path

import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
from torch.distributed.checkpoint.api import CheckpointException

from megatron_af.files import write
from megatron_af.foreign import read_text
from megatron_af.model import AudioFlamingo
from megatron_af.parallel.groups import Groups
from megatron_af.runs.digests import record_digest
from megatron_af.runs.lock import ensure_kept
from megatron_af.runs.paths import (
    BEST,
    LATEST,
    MANIFEST,
    REPLACED,
    SETTINGS,
    CheckpointError,
    Resume,
    replaced,
)
from megatron_af.runs.pointers import checkpoint_digest, is_pointed_at
from megatron_af.train.checkpoint_files import note_of, write_and_digest
from megatron_af.train.checkpoint_state import model_state, on_first, updates
from megatron_af.train.checkpoint_writer import CheckpointWriter, Saves, results_queue
from megatron_af.train.optimizer import AudioFlamingoOptimizer
from megatron_af.train.trainable import part_of

KEPT = ".kept-"
"""Behind the name of a checkpoint that others point at, when another one of its step took its place."""


class Checkpoints:
    """The checkpoints of one stage.

    Args:
        folder: ``output/name/stage/checkpoints``.
        keep: how many newest ones stay; 0: all.
        announce: called on every rank with the place of each checkpoint once it can be read.
    """

    def __init__(
        self, folder: Path, keep: int, asynchronous: bool = False, announce: Callable[[Path], None] = lambda path: None
    ) -> None:
        self._folder = folder
        self._keep = keep
        self._writer = CheckpointWriter() if asynchronous else None
        self._queue = Saves(self._writer) if self._writer else None
        self._under_way = folder
        self._announce = announce

    def save(
        self,
        model: AudioFlamingo,
        optimizer: AudioFlamingoOptimizer | None,
        groups: Groups,
        resume: Resume,
        sources: Mapping[str, Path],
        parts: Sequence[str],
        settings: str = "",
        best: bool = False,
    ) -> Path:
        """Write the checkpoint of ``resume['step']``; a collective.

        Args:
            sources: parts whose weights are not written because the checkpoint named here already holds them.
            parts: what the checkpoint offers; asking it for another part is an error.
            settings: resolved configuration as YAML.
            best: it is better than the ones before it.

        Returns:
            Where the checkpoint is (with asynchronous saving: will be, after :meth:`wait`).
        """
        self.wait()
        final = self._folder / f"step_{resume['step']:08d}"
        partial = final.with_suffix(".partial")
        if dist.get_rank() == 0:
            for left in self._folder.glob("step_*.partial"):  # of a run that died
                shutil.rmtree(left)
            partial.mkdir(parents=True)
        sources = _still_there(sources)
        own = set(parts) - set(sources)
        state, weights = model_state(model, groups, lambda name: part_of(name) in own)
        if optimizer is not None:
            state["optimizer"] = optimizer.sharded_state(weights, updates(resume), is_loading=False)
        manifest = {
            "resume": resume,
            "parts": {
                part: os.path.relpath(sources[part].resolve(), final.resolve()) if part in sources else "."
                for part in parts
            },
            "digests": {part: checkpoint_digest(source) for part, source in sources.items() if part in parts}
            if dist.get_rank() == 0
            else {},
        }

        def publish() -> None:
            written = _digests_of_all(partial)

            def put_in_place() -> None:
                ensure_kept(self._folder.parent)
                if settings:
                    write(partial / SETTINGS, settings)
                write(partial / MANIFEST, json.dumps(manifest, indent=2))
                record_digest(partial, written)
                if final.exists():
                    self._put_aside(final)
                partial.rename(final)
                write(self._folder / LATEST, final.name)
                if best:
                    write(self._folder / BEST, final.name)
                self._prune(final)

            on_first(put_in_place)
            self._announce(final)

        results_queue()
        with _written(partial):
            request = dist_checkpointing.save(
                state,
                str(partial),
                sharded_strategy=FullyParallelSaveStrategyWrapper(
                    TorchDistSaveShardedStrategy("torch_dist", 1), groups.data
                ),
                async_sharded_save=True,
                async_strategy="mcore",
            )
            request.add_finalize_fn(publish)
            if request.async_fn is not None:  # something of it is this rank's
                request = request._replace(async_fn=partial_of(write_and_digest, partial))
            if self._queue is None:
                request.execute_sync()
            else:
                self._queue.schedule_async_request(request)
                self._under_way = partial
        return final

    def poll(self) -> None:
        """Publish an asynchronous checkpoint that has become complete; cheap, call it every step."""
        self._finalize(blocking=False)

    def wait(self) -> None:
        """Wait for the asynchronous checkpoint under way, if any."""
        self._finalize(blocking=True)

    def _finalize(self, *, blocking: bool) -> None:
        if self._queue is not None:
            with _written(self._under_way):
                self._queue.maybe_finalize_async_calls(blocking=blocking)

    def close(self) -> None:
        if self._writer is not None:
            self.wait()
            self._writer.close()

    def abort(self) -> None:
        """End without the other ranks, which may be gone: the checkpoint under way is given up."""
        if self._writer is not None:
            self._writer.close(abort=True)

    def _prune(self, newest: Path) -> None:
        for left in self._folder.glob(f"step_*{REPLACED}"):
            _remove(left)
        complete = sorted(p for p in self._folder.glob("step_" + 8 * "[0-9]") if (p / MANIFEST).exists())
        best = self._folder / BEST
        named = {newest.name, read_text(best).strip() if best.exists() else ""}
        old = [p for p in complete[: -self._keep] if p.name not in named] if self._keep > 0 else []
        for checkpoint in (*old, *self._folder.glob(f"step_*{KEPT}*")):
            if not self._is_needed(checkpoint):
                _remove(checkpoint)

    def _is_needed(self, checkpoint: Path) -> bool:
        """Later stages, of this run or another one, read their frozen parts from here."""
        return is_pointed_at(checkpoint.resolve(), self._folder.resolve().parents[2])

    def _put_aside(self, checkpoint: Path) -> None:
        """Make room for another checkpoint of the same step, which is never taken for this one by who points at it."""
        aside = replaced(checkpoint)
        if self._is_needed(checkpoint):
            aside = checkpoint.with_name(f"{checkpoint.name}{KEPT}{checkpoint_digest(checkpoint)[7:19]}")
        shutil.rmtree(aside, ignore_errors=True)
        checkpoint.rename(aside)


def _remove(checkpoint: Path) -> None:
    """Under another name first, so that what a death leaves of it is no checkpoint, and goes with the next one.

    What cannot be removed (over NFS, while somebody reads it) stays until then: the new checkpoint is in place.
    """
    aside = checkpoint if checkpoint.name.endswith(REPLACED) else replaced(checkpoint)
    try:
        if aside != checkpoint:
            checkpoint.rename(aside)
        shutil.rmtree(aside)
    except OSError as error:
        print(f"{aside} could not be removed ({error}); it is tried again with the next checkpoint", flush=True)


def _still_there(sources: Mapping[str, Path]) -> Mapping[str, Path]:
    """The sources that exist, as rank 0 sees it; a part whose checkpoint was deleted meanwhile is written anew."""
    found = [{part: path for part, path in sources.items() if (path / MANIFEST).exists()}]
    dist.broadcast_object_list(found)
    return found[0]


def _digests_of_all(folder: Path) -> dict[str, str]:
    """File -> digest, of what every rank has written; a collective."""
    note, written = note_of(folder, dist.get_rank()), {}
    if note.exists():
        written = json.loads(read_text(note))
        note.unlink()
    of_ranks: list[dict[str, str]] = [{}] * dist.get_world_size()
    dist.all_gather_object(of_ranks, written)
    return {name: digest for files in of_ranks for name, digest in files.items()}


@contextlib.contextmanager
def _written(partial: Path) -> Iterator[None]:
    """What a writer cannot write (megatron-core tells all ranks of it) ends as one sentence, and gives its space back.

    Raises:
        CheckpointError: the same command may succeed later.
    """
    try:
        yield
    except CheckpointException as failed:  # on all ranks, but only the first is told of whom and why
        told = [f"rank {rank} ({_why(error)})" for rank, (error, _) in failed.failures.items()][:1]
        dist.broadcast_object_list(told := told or [""])
        free = shutil.disk_usage(partial.parent).free / 2**30
        if dist.get_rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"checkpoint {partial} could not be written by {told[0]}, {free:.3g} GiB were free there; the one before "
            "is whole",
            exit_code=1,
            on_all_ranks=True,
        ) from failed


def _why(error: BaseException) -> str:
    """What a writer met, in one line."""
    return " ".join(str(error).removeprefix("Worker failure:").split()) or type(error).__name__
