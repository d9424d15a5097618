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
(``runs/whole.py``).

megatron-core describes a checkpoint's tensors in ``.metadata``, a pickle, and torch reads it by ``pickle.load``, which
runs whatever code a file asks for. What is loaded here is looked at first: it may name the classes that describe
tensors, and nothing else (``train/described_tensors.py``).
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial as partial_of
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedBase, ShardedTensor
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException

from megatron_af.config.loading import load_config
from megatron_af.entry import sentence
from megatron_af.files import write
from megatron_af.model import AudioFlamingo
from megatron_af.parallel.global_state import canonical_name
from megatron_af.parallel.groups import Groups
from megatron_af.runs.digests import record_digest
from megatron_af.runs.lock import StageBusy, ensure_kept
from megatron_af.runs.paths import (
    BEST,
    LATEST,
    MANIFEST,
    REPLACED,
    SETTINGS,
    CheckpointError,
    Resume,
    read_resume,
    replaced,
)
from megatron_af.runs.pointers import checkpoint_digest, holds, is_pointed_at, source_of, verify
from megatron_af.train.checkpoint_files import note_of, write_and_digest
from megatron_af.train.checkpoint_writer import CheckpointWriter, Saves, results_queue
from megatron_af.train.described_tensors import only_tensors
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
        state, weights = _model_state(model, groups, lambda name: part_of(name) in own)
        if optimizer is not None:
            state["optimizer"] = optimizer.sharded_state(weights, _updates(resume), is_loading=False)
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

            _on_first(put_in_place)
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
            shutil.rmtree(left)
        complete = sorted(p for p in self._folder.glob("step_" + 8 * "[0-9]") if (p / MANIFEST).exists())
        best = self._folder / BEST
        named = {newest.name, best.read_text().strip() if best.exists() else ""}
        old = [p for p in complete[: -self._keep] if p.name not in named] if self._keep > 0 else []
        for checkpoint in (*old, *self._folder.glob(f"step_*{KEPT}*")):
            if not self._is_needed(checkpoint):
                shutil.rmtree(checkpoint)

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


def _still_there(sources: Mapping[str, Path]) -> Mapping[str, Path]:
    """The sources that exist, as rank 0 sees it; a part whose checkpoint was deleted meanwhile is written anew."""
    found = [{part: path for part, path in sources.items() if (path / MANIFEST).exists()}]
    dist.broadcast_object_list(found)
    return found[0]


def load_parts(
    model: AudioFlamingo, groups: Groups, checkpoint: Path, parts: Iterable[str], *, settled: bool = False
) -> dict[str, Path]:
    """Load the weights of some parts; a collective.

    Args:
        settled: the checkpoint's own files were compared with their digests a moment ago (``runs/whole.py``).

    Returns:
        For each part the checkpoint that its weights really came from.

    Raises:
        CheckpointError: naming the checkpoint and what it lacks.
    """
    parts = list(parts)
    _check_adapters(model, checkpoint, parts)
    wanted: dict[Path, set[str]] = {}
    for part in parts:
        wanted.setdefault(source_of(checkpoint, part), set()).add(part)

    def compare() -> None:
        for source in wanted:
            if not (settled and source == checkpoint.resolve()):
                verify(source)

    _on_first(compare)
    for source, group in wanted.items():
        _load_from(model, groups, source, group)
    return {part: source for source, group in wanted.items() for part in group}


def _check_adapters(model: AudioFlamingo, checkpoint: Path, parts: Sequence[str]) -> None:
    """A language model is never read without the adapters that it was trained with, nor are they read as others."""
    ours = model.chunks[0].lora if model.chunks else None
    if ours is None:
        if "lm" in parts and holds(checkpoint, "lora"):
            raise CheckpointError(
                f"checkpoint {checkpoint} has adapters on its language model, and this model has none; give the stage "
                f"the lora that stands in {SETTINGS} beside it, or merge them first (tools/convert_checkpoint.py)"
            )
    elif "lora" in parts and (settings := source_of(checkpoint, "lora") / SETTINGS).is_file():
        theirs = load_config(settings).lora
        if theirs is not None and theirs.computes != ours.computes:
            raise CheckpointError(
                f"checkpoint {checkpoint} has adapters with {theirs}, and this model's are {ours}; set targets, rank "
                "and alpha of the stage's lora to what it was trained with"
            )


def _on_first(action: Callable[[], None]) -> None:
    """Do something on one rank; what the system or a checkpoint refuses, all ranks raise. A collective."""
    trouble: list[tuple[str, int] | None] = [None]
    if dist.get_rank() == 0:
        try:
            action()
        except (CheckpointError, StageBusy, OSError) as error:
            trouble = [sentence(error)]
    dist.broadcast_object_list(trouble)
    if trouble[0]:
        message, code = trouble[0]
        raise CheckpointError(message, exit_code=code)


def _digests_of_all(folder: Path) -> dict[str, str]:
    """File -> digest, of what every rank has written; a collective."""
    note, written = note_of(folder, dist.get_rank()), {}
    if note.exists():
        written = json.loads(note.read_text())
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
        ) from failed


def _why(error: BaseException) -> str:
    """What a writer met, in one line."""
    return " ".join(str(error).removeprefix("Worker failure:").split()) or type(error).__name__


def load_optimizer(
    model: AudioFlamingo, optimizer: AudioFlamingoOptimizer, groups: Groups, checkpoint: Path, sources: Iterable[str]
) -> None:
    """Load the optimizer's state for the parts that are not in ``sources``; a collective."""
    frozen = set(sources)
    updates = _updates(read_resume(checkpoint))
    _, weights = _model_state(model, groups, lambda name: part_of(name) not in frozen)
    state = {"optimizer": optimizer.sharded_state(weights, updates, is_loading=True)}
    loaded = _load(state, checkpoint)
    optimizer.load_sharded_state(loaded.get("optimizer", {}), updates)


def _updates(resume: Resume) -> int:
    """Steps that the optimizer made."""
    return resume["step"] - resume["skipped"]


def _load_from(model: AudioFlamingo, groups: Groups, source: Path, parts: set[str]) -> None:
    state, _ = _model_state(model, groups, lambda name: part_of(name) in parts)
    loaded = _load(state, source)  # into the parameters themselves, where shapes allow
    modules: dict[str, nn.Module] = {f"model{i}": chunk for i, chunk in enumerate(model.chunks)}
    modules["front"] = model.front
    with torch.no_grad():
        for key, module in modules.items():
            own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
            for name, tensor in loaded.get(key, {}).items():
                own[_local_name(name)].copy_(tensor)
    if "lm" in parts:
        _draw_new_words(model, source)


def _draw_new_words(model: AudioFlamingo, checkpoint: Path) -> None:
    """Where the model has words that a checkpoint has not: it has padding in their place."""
    settings = checkpoint / SETTINGS
    if model.chunks and settings.is_file():
        vocab = load_config(settings).model.lm.vocab
        for chunk in model.chunks:
            if vocab < chunk.table.vocab:
                chunk.draw_words(vocab)


def _load(state: dict[str, Any], checkpoint: Path) -> dict[str, Any]:
    try:
        with only_tensors(checkpoint):
            loaded: dict[str, Any] = dist_checkpointing.load(state, str(checkpoint))
        return loaded
    except (CheckpointingException, CheckpointException, KeyError, ValueError) as error:
        why = _misfit(state, checkpoint) or error
        raise CheckpointError(
            f"checkpoint {checkpoint} does not fit the model: {why}. It was written for another model (its own stands "
            f"in {SETTINGS} beside it), or holds other parts; check the stage's `entry` and the `model:` section"
        ) from error


def _misfit(state: dict[str, Any], checkpoint: Path) -> str:
    """Which tensors the checkpoint has not, or of another shape, in a few words; empty where none."""
    try:
        held = dist_checkpointing.load_tensors_metadata(str(checkpoint))
    except (CheckpointingException, OSError):
        return ""
    wanted = {part.key: part for part in nested_values(state) if isinstance(part, ShardedTensor)}
    missing = sorted(key for key in wanted if key not in held)
    shapes = {key: (part.global_shape, held[key].global_shape) for key, part in wanted.items() if key in held}
    told = [f"it has no {', '.join(missing[:3])}" + (f" (and {len(missing) - 3} more)" if len(missing) > 3 else "")]
    told = told if missing else []
    for key, (ours, theirs) in sorted(shapes.items()):
        if ours != theirs and not wanted[key].allow_shape_mismatch:
            told.append(f"its {key} has shape {tuple(theirs)}, expected {tuple(ours)}")
            break
    return "; ".join(told)


def _model_state(
    model: AudioFlamingo, groups: Groups, keep: Callable[[str], bool]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sharded weights of the parameters and buffers whose canonical name ``keep`` accepts.

    Returns:
        The state to save or to load into, and the same entries restricted to parameters (what the optimizer
        matches its own state with).
    """
    front_tensors = {**dict(model.front.named_parameters()), **_persistent_buffers(model.front)}
    state: dict[str, Any] = {
        "front": make_sharded_tensors_for_checkpoint(
            {name: tensor for name, tensor in front_tensors.items() if keep(name)},
            "",
            {},
            # Every rank of the world holds the same audio side: it is stored once.
            tp_group=groups.front.tp,
            dp_cp_group=groups.front.dp_cp,
        )
    }
    metadata = {
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
        # Layers with and without a gated block cannot share one stacked tensor.
        "non_homogeneous_layers": True,
        "singleton_local_shards": False,
    }
    for index, chunk in enumerate(model.chunks):
        entries = chunk.sharded_state_dict(prefix="lm.", metadata=metadata)
        state[f"model{index}"] = {
            name: entry
            for name, entry in entries.items()
            if isinstance(entry, ShardedBase)
            and not name.endswith("_extra_state")
            and keep(canonical_name(chunk, name.removeprefix("lm.")))
        }
    parameters = {id(parameter) for _, parameter in model.named_parameters()}
    weights = {
        key: {name: entry for name, entry in entries.items() if id(entry.data) in parameters}
        for key, entries in state.items()
    }
    return {key: entries for key, entries in state.items() if entries}, weights


def _persistent_buffers(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    stored = module.state_dict(keep_vars=True)
    return {name: buffer for name, buffer in module.named_buffers() if name in stored}


def _local_name(name: str) -> str:
    return name.removeprefix("lm.")
