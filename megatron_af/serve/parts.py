"""The parts of a loaded model, made when they are asked for.

    join_process_group()
    listener = load_listener(config, checkpoint, ParallelConfig(), in_int8=False)
"""

from pathlib import Path
from typing import TYPE_CHECKING

from megatron_af.config import Config, ParallelConfig
from megatron_af.parallel.device import current_device

if TYPE_CHECKING:
    from megatron_af.inference.embedder import ClapEmbedder
    from megatron_af.inference.listener import Listener


def load_listener(config: Config, checkpoint: Path, parallel: ParallelConfig, *, in_int8: bool) -> "Listener":
    """What answers, of a checkpoint; with ``in_int8`` its language model's linears are held so."""
    # Imported only now: megatron-core must have been made portable before its modules run.
    from megatron_af.decoder.int8 import hold_in_int8
    from megatron_af.decoder.lora import merge_adapters
    from megatron_af.inference.listener import Listener

    listener = Listener(config, checkpoint, parallel=parallel)
    for chunk in listener.model.chunks if in_int8 else ():
        merge_adapters(chunk)
        hold_in_int8(chunk)
    return listener


def load_embedder(config: Config, checkpoint: Path) -> "ClapEmbedder":
    """What embeds, of a checkpoint of an AF-CLAP stage."""
    from megatron_af.inference.embedder import ClapEmbedder

    return ClapEmbedder(config, checkpoint)


def join_process_group() -> None:
    """The default process group: torchrun's, another model's of this process, or one of this process alone."""
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group(current_device().backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
