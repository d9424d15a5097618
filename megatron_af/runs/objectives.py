"""What a stage minimises, as far as it is known before anything is built; needs neither torch nor megatron.

    spec = spec_of(config.curriculum["align"])
    spec.parts, spec.step_metrics, list(spec.problems(config, "align")), spec.evaluations(config, "align")

``objective`` of a stage names a built-in objective, or ``module:Class`` of anybody's own. What it does with a model is
in ``megatron_af.train.objectives``, whose classes these are.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from megatron_af.config import Config, StageConfig
from megatron_af.config.components import component

if TYPE_CHECKING:
    from megatron_af.data.sample_source import Texts
    from megatron_af.text.tokenizer import Tokenizer

OBJECTIVES = {
    "answer": "megatron_af.train.objectives.answer:Answer",
    "contrastive": "megatron_af.train.objectives.contrastive:Contrastive",
}


class ObjectiveSpec:
    """What checks, checkpoints, exit gates and pipelines must know of an objective."""

    parts: ClassVar[tuple[str, ...]]
    """Parts of its model: what ``entry`` may name, and what its checkpoints hold."""
    step_metrics: ClassVar[tuple[str, ...]] = ()
    """Names (fnmatch) of what it logs of a step besides ``loss``, its data sets' own numbers left out."""
    set_losses: ClassVar[tuple[str, ...]] = ("loss",)
    """What it logs of each data set of the blend, as ``name/<data set>``."""
    set_metrics: ClassVar[tuple[str, ...]] = ()
    """Names (fnmatch) of what is measured on each evaluation set."""
    embeds: ClassVar[bool] = False
    """Its model gives vectors that say what sounds alike (retrieval needs such a stage)."""

    def parts_of(self, stage: StageConfig) -> tuple[str, ...]:
        """``parts``, and those that the model has in this stage besides."""
        return self.parts

    def taken(self, stage: StageConfig) -> dict[str, str]:
        """Part -> the stage or checkpoint of ``entry`` that must hold it. By ``all``, what only some models have comes
        from where it is, and starts fresh where it is not."""
        found = {part: stage.origin_of(part) for part in self.parts_of(stage)}
        return {part: at for part, at in found.items() if at and (part in self.parts or part in stage.entry)}

    def parameters(self, config: Config) -> list[str]:
        """Patterns that together cover the names of the parameters of ``config.stage``, and nothing else."""
        return [f"{part}.*" for part in self.parts]

    def problems(self, config: Config, stage: str) -> Iterator[str]:
        """What keeps a stage of this objective from running, each with its key and a fix."""
        yield from ()

    def missing(self, config: Config, stage: str) -> Iterator[str]:
        """Files that it needs besides data, tokenizer and weights, and that are not there."""
        yield from ()

    @abstractmethod
    def texts(self, config: Config, stage: StageConfig, tokenizer: Tokenizer) -> Texts[Any, Any]:
        """Its side of the data: what it takes from a row, and its part of a batch."""

    def files(self, config: Config) -> dict[str, str]:
        """Name -> folder, file or hub name of what it reads besides data, tokenizer and weights: part of what makes
        two runs the same."""
        return {}

    def evaluations(self, config: Config, stage: str) -> list[tuple[str, list[str]]]:
        """How a trained stage is measured: scripts (in ``tools/``, or by their path) with their further arguments."""
        raise NotImplementedError(f"{type(self).__name__} measures nothing; leave curriculum.{stage}.evaluation empty")


def spec_of(stage: StageConfig) -> ObjectiveSpec:
    """
    Raises:
        UnknownComponent: ``stage.objective`` names none.
    """
    found: type[ObjectiveSpec] = component(stage.objective, OBJECTIVES, "megatron_af.train.objectives.base:Objective")
    return found()
