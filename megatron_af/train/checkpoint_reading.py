"""What a checkpoint holds, into a model and its optimizer of any layout.

    model = load_model(config, stage, vocabulary, groups, checkpoint)
    found = load_parts(model, groups, Path("runs/demo/align/checkpoints/step_00000300"), ["encoder", "lm"])

Each part comes from the checkpoint that really holds it (``runs/pointers.py``).

megatron-core describes a checkpoint's tensors in ``.metadata``, a pickle, and torch reads it by ``pickle.load``, which
runs whatever code a file asks for. What is loaded here is looked at first: it may name the classes that describe
tensors, and nothing else (``train/described_tensors.py``).
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException

from megatron_af.config import Config, StageConfig
from megatron_af.config.loading import load_config
from megatron_af.model import AudioFlamingo, Vocabulary, build
from megatron_af.parallel.device import current_device
from megatron_af.parallel.groups import Groups
from megatron_af.runs.objectives import spec_of
from megatron_af.runs.paths import SETTINGS, CheckpointError, read_resume
from megatron_af.runs.pointers import holds, source_of, verify
from megatron_af.train.checkpoint_state import local_name, model_state, on_first, updates
from megatron_af.train.described_tensors import only_tensors
from megatron_af.train.optimizer import AudioFlamingoOptimizer
from megatron_af.train.trainable import part_of


def load_model(
    config: Config, stage: StageConfig, vocabulary: Vocabulary, groups: Groups, checkpoint: Path
) -> AudioFlamingo:
    """This rank's share of a stage's whole model, as a checkpoint holds it; a collective. No weight is drawn that is
    then read.

    Raises:
        CheckpointError: naming the checkpoint and what it lacks.
    """
    parts = spec_of(stage).parts_of(stage)
    model = build(config, vocabulary, current_device(), drawn=lambda name: part_of(name) not in parts)
    load_parts(model, groups, checkpoint, parts)
    return model


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

    on_first(compare)
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


def load_optimizer(
    model: AudioFlamingo, optimizer: AudioFlamingoOptimizer, groups: Groups, checkpoint: Path, sources: Iterable[str]
) -> None:
    """Load the optimizer's state for the parts that are not in ``sources``; a collective."""
    frozen = set(sources)
    made = updates(read_resume(checkpoint))
    _, weights = model_state(model, groups, lambda name: part_of(name) not in frozen)
    state = {"optimizer": optimizer.sharded_state(weights, made, is_loading=True)}
    loaded = _load(state, checkpoint)
    optimizer.load_sharded_state(loaded.get("optimizer", {}), made)


def _load_from(model: AudioFlamingo, groups: Groups, source: Path, parts: set[str]) -> None:
    state, _ = model_state(model, groups, lambda name: part_of(name) in parts)
    loaded = _load(state, source)  # into the parameters themselves, where shapes allow
    modules: dict[str, nn.Module] = {f"model{i}": chunk for i, chunk in enumerate(model.chunks)}
    modules["front"] = model.front
    with torch.no_grad():
        for key, module in modules.items():
            own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
            for name, tensor in loaded.get(key, {}).items():
                own[local_name(name)].copy_(tensor)
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
