"""Which layouts some ranks can hold: those that a proof compares with one process.

layouts(config.parallel, ranks=4)      # {"DP2": (2, ParallelConfig(…)), "TP2+SP": …, …}
"""

from dataclasses import replace

from megatron_af.config import ParallelConfig

type Layouts = dict[str, tuple[int, ParallelConfig]]
"""Name -> number of processes, and how the model lies on them."""

ALONE = ParallelConfig()
"""One process, nothing shared, nothing computed again: what all others are compared with."""


def layouts(own: ParallelConfig, ranks: int) -> Layouts:
    """The configuration's own layout scaled down to ``ranks``, first, and each kind of parallelism by itself.

    What the configuration says besides sizes (sequence parallelism, ZeRO-1, overlap, recompute, chunks per stage) holds
    in all of them.
    """
    tensor = min(own.tensor, 2 if ranks >= 2 else 1)
    pipeline = min(own.pipeline, 2 if ranks >= 2 * tensor else 1)
    sizes = [(tensor, pipeline, ranks - ranks % (tensor * pipeline)), (1, 1, 2), (2, 1, 2), (1, 2, 2), (2, 2, 4)]
    found: Layouts = {"one process as configured": (1, _sized(own, 1, 1))} if _sized(own, 1, 1) != ALONE else {}
    for tensor, pipeline, processes in sizes:
        if 1 < processes <= ranks:
            parallel = _sized(own, tensor, pipeline)
            found.setdefault(name_of(parallel, processes), (processes, parallel))
    return found


def _sized(own: ParallelConfig, tensor: int, pipeline: int) -> ParallelConfig:
    return replace(
        own,
        tensor=tensor,
        pipeline=pipeline,
        virtual_pipeline=min(own.virtual_pipeline, 2) if pipeline > 1 else 1,
        sequence=own.sequence and tensor > 1,
    )


def name_of(parallel: ParallelConfig, processes: int) -> str:
    """``TP2xPP2xVPP2+SP+ZeRO-1``."""
    copies = processes // (parallel.tensor * parallel.pipeline)
    sizes = {"TP": parallel.tensor, "PP": parallel.pipeline, "VPP": parallel.virtual_pipeline, "DP": copies}
    more = {
        "SP": parallel.sequence,
        "ZeRO-1": parallel.distributed_optimizer,
        "overlap": parallel.overlap,
        f"{parallel.recompute} recompute": parallel.recompute != "none",
    }
    name = "x".join(f"{kind}{size}" for kind, size in sizes.items() if size > 1) or "one process"
    return "+".join([name, *(kind for kind, on in more.items() if on)])
