"""Where tests find the processes that talk over gloo: ``megatron_af.parallel.ranks``."""

from megatron_af.parallel.ranks import RankError, run_distributed

__all__ = ["RankError", "run_distributed"]
