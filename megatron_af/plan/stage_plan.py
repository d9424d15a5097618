"""The plan of one stage: memory of its ranks, time of its steps, and what the whole stage takes.

    plan = plan_stage(case, lengths)
    plan.fits, plan.memory.kinds, plan.time.parts, plan.days
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import fmean, pstdev

from megatron_af.config import Config, StageConfig
from megatron_af.plan.case import Case
from megatron_af.plan.gpu import Gpu
from megatron_af.plan.lengths import Lengths
from megatron_af.plan.load import Cut, Load, draw_steps, made_of, mean
from megatron_af.plan.memory import AHEAD, Memory, memory
from megatron_af.plan.step_time import COMMUNICATION, ENCODER, StepTime, step_time
from megatron_af.runs.sizes import batch_samples, steps_of_samples

DRAWN = 48
"""Steps that are drawn from the lengths."""
DEVIATIONS = 5.0
"""Above the mean of the drawn steps: of 5,000 steps on 8 ranks of a normal distribution the largest lies there."""
DAY = 86_400


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    case: Case
    lengths: Lengths
    memory: Memory
    """Of the rank that needs the most."""
    pipeline_stage: int
    """On which it is."""
    margin: float
    """Bytes that longer steps than those drawn may need besides."""
    time: StepTime
    load: Load
    """A step of middling lengths."""
    steps: int
    """0: nobody knows how many."""

    @property
    def needed(self) -> float:
        """Bytes of tensors on the rank that needs the most."""
        return self.memory.total + self.margin

    @property
    def fits(self) -> bool:
        return self.needed <= self.case.gpu.usable_bytes

    @property
    def samples(self) -> int:
        """Of a step, over the world."""
        return self.case.stage.global_batch_samples

    @property
    def days(self) -> float:
        return self.steps * self.time.total / DAY

    @property
    def gpu_hours(self) -> float:
        return self.days * 24 * self.case.world

    @property
    def tokens_per_second(self) -> float:
        return self.time.tokens / self.time.total

    @property
    def audio_seconds_per_second(self) -> float:
        return self.time.audio_seconds / self.time.total

    @property
    def samples_per_second_and_gpu(self) -> float:
        return self.samples / self.time.total / self.case.world

    @property
    def utilisation(self) -> float:
        """Model FLOPs of the peak that the data sheet names."""
        return self.time.operations / self.time.total / (self.case.gpu.peak * self.case.world)

    @property
    def bubble(self) -> float:
        return self.time.share("bubble")

    @property
    def encoder_share(self) -> float:
        return self.time.share(*ENCODER)

    @property
    def communication_share(self) -> float:
        return self.time.share(*COMMUNICATION)


def case_of(config: Config, stage: str, gpu: Gpu, world: int) -> Case:
    """With the number of samples of a step as these ranks would share it."""
    config = replace(config, stage=stage)
    settings = config.curriculum[stage]
    if settings.batch_tokens:
        settings = replace(settings, global_batch_samples=batch_samples(config, settings, world))
        config = replace(config, curriculum={**config.curriculum, stage: settings})
    return Case(config=config, gpu=gpu, world=world)


def plan_stage(
    case: Case, lengths: Lengths, *, drawn: int = DRAWN, encoded: float = 1.0, ahead: int = AHEAD
) -> StagePlan:
    """
    Args:
        encoded: part of the windows that no feature cache has.
    """
    cut = Cut.of(case.config, case.stage)
    loads = [replace(load, encoded=encoded) for load in _drawn(lengths, cut, case.per_copy, drawn)]
    needs = [_neediest(case, load, ahead) for load in loads]
    totals = [found.total for found, _ in needs]
    most = max(range(len(needs)), key=totals.__getitem__)
    bound = _neediest(case, replace(_longest(lengths, cut, case.per_copy), encoded=encoded), ahead)[0].total
    spread = max(totals[most], fmean(totals) + DEVIATIONS * pstdev(totals))
    middle = mean(loads)
    return StagePlan(
        case=case,
        lengths=lengths,
        memory=needs[most][0],
        pipeline_stage=needs[most][1],
        margin=max(0.0, min(bound, spread) - totals[most]),
        time=step_time(case, middle),
        load=middle,
        steps=_steps(case.stage, lengths.total),
    )


def _steps(stage: StageConfig, total: int) -> int:
    """As training counts them; a batch of so many tokens changes the steps of passes, and of nothing else."""
    if total:
        return steps_of_samples(stage, total)
    return 0 if stage.passes else stage.steps


def _neediest(case: Case, load: Load, ahead: int) -> tuple[Memory, int]:
    found = [(memory(case, stage, load, ahead=ahead), stage) for stage in range(len(case.stages))]
    return max(found, key=lambda one: one[0].total)


@lru_cache(maxsize=64)
def _drawn(lengths: Lengths, cut: Cut, per_rank: int, count: int) -> tuple[Load, ...]:
    """Steps to plan by: a search tries many layouts that make the same ones."""
    if lengths.longest:
        return (made_of([lengths.samples[0]] * per_rank, cut),)
    return tuple(draw_steps(cut, lengths.samples, per_rank=per_rank, count=count))


@lru_cache(maxsize=64)
def _longest(lengths: Lengths, cut: Cut, per_rank: int) -> Load:
    """A step in which every sample is as long as the longest, in clips and in text."""
    heard = max((sample.windows for sample in lengths.samples), key=sum)
    text = max(lengths.samples, key=lambda sample: sample.tokens)
    supervised = max(sample.supervised * sample.tokens for sample in lengths.samples) / max(1, text.tokens)
    return made_of([replace(text, windows=heard, supervised=supervised)] * per_rank, cut)
