"""Which tensors of a model a checkpoint holds, in megatron-core's words, and what one rank does for all.

    state, weights = model_state(model, groups, lambda name: part_of(name) in {"lm"})
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedBase
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint

from megatron_af.entry import sentence
from megatron_af.model import AudioFlamingo
from megatron_af.parallel.global_state import canonical_name
from megatron_af.parallel.groups import Groups
from megatron_af.runs.lock import StageBusy
from megatron_af.runs.paths import CheckpointError, Resume


def on_first(action: Callable[[], None]) -> None:
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
        raise CheckpointError(message, exit_code=code, on_all_ranks=True)


def updates(resume: Resume) -> int:
    """Steps that the optimizer made."""
    return resume["step"] - resume["skipped"]


def model_state(
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


def local_name(name: str) -> str:
    """Of a tensor in a state, the name that its module has for it."""
    return name.removeprefix("lm.")
