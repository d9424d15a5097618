"""The public way is what Megatron-AF computes: checked whole in test_step.py; here what its parts leave out."""

from typing import Any

import pytest
import torch

from megatron_af.bench import learning as module
from megatron_af.bench.learning import Mixed
from megatron_af.config import ParallelConfig
from tests.distributed import run_distributed

pytestmark = pytest.mark.slow


def padding(rank: int, world_size: int) -> tuple[float, float, float]:
    """Losses of a short clip alone, beside a longer one whose text supervises nothing, and of another clip."""
    from megatron_af.parallel import groups

    learning = module.Learning(module.configuration(64), groups.initialize(ParallelConfig(), 0))
    features, ids = learning._samples(Mixed((1, 3), (40, 90)))
    public: Any = learning.public

    def loss(clips: Any, texts: Any, learnt: Any) -> float:
        return float(public.loss(clips, texts, learnt).detach())

    alone = loss(features[:1], ids[:1], [20])
    beside = loss(features, ids, [20, 89])
    other = loss([torch.randn_like(features[0])], ids[:1], [20])
    return alone, beside, other


def test_padding_is_computed_and_changes_nothing() -> None:
    ((alone, beside, other),) = run_distributed(padding, 1)
    assert beside == pytest.approx(alone, rel=1e-6) and abs(other - alone) > 1e-4
