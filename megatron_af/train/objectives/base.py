"""What an objective is: all that the loop needs of it, so that it asks about none in particular.

    class Mine(Objective): ...                      # curriculum.STAGE.objective: "my_package.mine:Mine"

    objective = objective_of(stage)
    model = objective.build(config, tokenizer, device, fresh)
    learner = objective.start(config, stage, model, groups, device)
    numbers = learner.forward_backward(batch)       # gradients; learner.optimizer makes the step

Modules of objectives are imported by checks that must not wait for torch or megatron-core: they import either only
where they build something.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from megatron_af.config import Config, StageConfig
from megatron_af.runs.objectives import ObjectiveSpec, spec_of

if TYPE_CHECKING:
    from megatron_af.data.batch import EncoderSide, StepBatch
    from megatron_af.model import AudioFlamingo
    from megatron_af.parallel.device import Device
    from megatron_af.parallel.groups import Groups
    from megatron_af.text.tokenizer import Tokenizer
    from megatron_af.train.callbacks import Callback
    from megatron_af.train.optimizer import AudioFlamingoOptimizer


class Learner(Protocol):
    """A model with its gradient buffers and its optimizer."""

    optimizer: AudioFlamingoOptimizer
    encoder_side: EncoderSide | None
    """Whom the stream asks which clips' mel is wanted; None: of all."""

    def forward_backward(self, batch: StepBatch[Any]) -> dict[str, float]:
        """Gradients of one optimizer step; a collective. Its numbers, ``loss`` among them, are equal on all ranks."""

    def measure(self, batch: StepBatch[Any]) -> dict[str, float]:
        """``loss``, and perhaps more, of a batch that is not learnt from; a collective, equal on all ranks."""

    def flops(self, batch: StepBatch[Any]) -> float:
        """Floating-point operations of a step whose data-parallel ranks all have a batch like this one."""

    def sync_parameters(self) -> None:
        """Gather what a next forward pass would gather; before weights are saved."""

    def close(self) -> None:
        """What is written in the background reaches the disk."""


class Objective(ObjectiveSpec):
    """One kind of stage: its model, its side of the data, and how it learns."""

    @abstractmethod
    def build(self, config: Config, tokenizer: Tokenizer, device: Device, fresh: Container[str]) -> AudioFlamingo:
        """This rank's share of its model, with fresh weights.

        Args:
            fresh: the parts that no checkpoint is about to fill; others may hold anything.
        """

    def fill(self, model: AudioFlamingo, fresh: Sequence[str], groups: Groups) -> None:
        """Give parts that no checkpoint filled what fresh weights cannot know; a collective."""

    @abstractmethod
    def start(
        self, config: Config, stage: StageConfig, model: AudioFlamingo, groups: Groups, device: Device
    ) -> Learner:
        """Make gradient buffers and optimizer: weights must be loaded, and ``requires_grad`` be final."""

    def callbacks(self, config: Config, tokenizer: Tokenizer) -> list[Callback]:
        """What it wants to log of its own model."""
        return []


def objective_of(stage: StageConfig) -> Objective:
    """
    Raises:
        UnknownComponent: ``stage.objective`` names none.
    """
    found = spec_of(stage)
    assert isinstance(found, Objective), "ObjectiveSpec is no objective to train with: subclass Objective"
    return found
