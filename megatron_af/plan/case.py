"""What is planned: a stage of a configuration, on so many GPUs of a kind."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache

from megatron_af.config import Config, ParallelConfig, StageConfig
from megatron_af.decoder.placement import Held, placement
from megatron_af.plan import weights
from megatron_af.plan.activations import How
from megatron_af.plan.gpu import Gpu
from megatron_af.plan.load import Load

ELEMENT = {"bf16": 2, "fp32": 4}
"""Bytes of a number by precision."""


@lru_cache(maxsize=64)
def trains_of(trainable: tuple[str, ...], frozen: tuple[str, ...]) -> Callable[[str], bool]:
    """``StageConfig.trains`` that remembers: a plan asks for the same names thousands of times."""
    return cache(StageConfig(trainable=trainable, frozen=frozen).trains)


@dataclass(frozen=True, kw_only=True, eq=False)  # its own identity: what follows from it is remembered
class Case:
    config: Config
    """Its ``stage`` is the one that is planned."""
    gpu: Gpu
    world: int

    @property
    def parallel(self) -> ParallelConfig:
        return self.config.parallel

    @property
    def stage(self) -> StageConfig:
        return self.config.curriculum[self.config.stage]

    @property
    def answers(self) -> bool:
        """There is a language model."""
        return self.stage.objective == "answer"

    @property
    def element(self) -> int:
        return ELEMENT[self.config.precision]

    @property
    def model_ranks(self) -> int:
        """That share one copy of the decoder, and the encoding of its clips."""
        return self.parallel.tensor * self.parallel.pipeline

    @property
    def copies(self) -> int:
        return self.world // self.model_ranks

    @property
    def per_copy(self) -> int:
        """Samples of a step on one data-parallel rank."""
        return self.stage.global_batch_samples // self.copies

    @cached_property
    def trains(self) -> Callable[[str], bool]:
        return trains_of(self.stage.trainable, self.stage.frozen)

    @cached_property
    def stages(self) -> list[list[Held]]:
        """The chunks of each pipeline stage."""
        if not self.answers:
            return [[]]
        chunks = placement(self.config)
        return [chunks[stage :: self.parallel.pipeline] for stage in range(self.parallel.pipeline)]

    @cached_property
    def front(self) -> dict[str, int]:
        """Parameters of the audio side."""
        return weights.front_weights(self.config, self.stage)

    @lru_cache(maxsize=64)  # noqa: B019 - a case lives as long as its plan
    def decoder(self, stage: int) -> dict[str, int]:
        """Parameters on a rank of a pipeline stage; a table that two of its chunks use counts twice, as it lies."""
        found: dict[str, int] = {}
        for chunk in self.stages[stage]:
            for name, size in weights.rank_weights(self.config, self.stage, chunk).items():
                found[name] = found.get(name, 0) + size
        return found

    @cached_property
    def learns_front(self) -> int:
        """Numbers of the audio side that learn."""
        return weights.trainable(self.front, self.trains)

    @lru_cache(maxsize=1024)  # noqa: B019
    def learns_decoder(self, stage: int) -> int:
        """Numbers that learn on a rank of a pipeline stage."""
        return weights.trainable(self.decoder(stage), self.trains)

    def how(self, load: Load) -> How:
        return How(
            fused=self.gpu.fused and self.config.layers != "torch",
            kernels=self.gpu.fused,
            text_stretches=load.text_stretches,
            audio_stretches=load.audio_stretches,
            rows=load.rows,
            recompute=self.parallel.recompute,
            lora=self.stage.lora,
        )
