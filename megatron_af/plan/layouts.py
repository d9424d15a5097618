"""Which layouts fit, which is the fastest, and what is the nearest change to one that does not.

    tried = search(config, "finetune", gpu, 64, lengths)        # fastest first; those that do not fit behind
    best(config, "finetune", gpu, 64, lengths, tried, most=5)   # planned with all their steps
    nearest(config, "finetune", tried)                          # fewest changes, or None

Tried are tensor and sequence parallelism within a node, pipelines with and without interleaving, micro-batches of
samples or of packed rows, recomputation, ZeRO-1 and the feature cache of a frozen encoder; a stage's batch stays what
the configuration says.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from megatron_af.config import Config, ConfigError, StageConfig
from megatron_af.config.errors import divisors
from megatron_af.config.rules import batch_rules, layout_rules
from megatron_af.plan.case import trains_of
from megatron_af.plan.gpu import Gpu
from megatron_af.plan.lengths import Lengths
from megatron_af.plan.stage_plan import StagePlan, case_of, plan_stage
from megatron_af.plan.weights import front_weights

DRAWN = 2
"""Steps that are drawn for each layout that is tried."""
MOST_CHUNKS = 4
ABOUT = 0.03
"""Times that differ by no more than this part are the same to a plan."""
TEXTS_AT_ONCE = (512, 64)
"""``model.clap.text_micro_batch`` that are tried."""
PACKED = (2048, 4096, 8192, 16384)
"""``pack_tokens`` that are tried, in micro-batches of one row: several of half the length are the same work."""
ALONE = tuple(2**power for power in range(6))
"""Samples of a micro-batch that are tried where each has a row of its own."""
RECOMPUTES = ("none", "selective", "full")
CACHED = 0.0
"""Part of the windows that are encoded once a feature cache is full."""


@dataclass(frozen=True, kw_only=True)
class Changes:
    """Settings of a layout, as keys of the configuration."""

    parallel: tuple[tuple[str, object], ...]
    stage: tuple[tuple[str, object], ...] = ()
    clap: tuple[tuple[str, object], ...] = ()
    cached: bool = False

    def of(self, config: Config, name: str) -> Config:
        stage = replace(config.curriculum[name], **dict(self.stage))  # type: ignore[arg-type]
        clap = replace(config.model.clap, **dict(self.clap))  # type: ignore[arg-type]
        return replace(
            config,
            model=replace(config.model, clap=clap),
            parallel=replace(config.parallel, **dict(self.parallel)),  # type: ignore[arg-type]
            curriculum={**config.curriculum, name: stage},
            stage=name,
        )

    def differing(self, config: Config, name: str) -> list[str]:
        """What has to be added to the command line."""
        stage = config.curriculum[name]
        found = [
            f"parallel.{key}={_word(value)}" for key, value in self.parallel if getattr(config.parallel, key) != value
        ]
        found += [f"curriculum.{name}.{key}={value}" for key, value in self.stage if getattr(stage, key) != value]
        clap = config.model.clap
        found += [f"model.clap.{key}={_word(value)}" for key, value in self.clap if getattr(clap, key) != value]
        return [*found, *(["data.feature_cache=FOLDER"] if self.cached and not config.data.feature_cache else [])]


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True, kw_only=True)
class Ranked:
    changes: Changes
    plan: StagePlan


def as_configured(config: Config, name: str, gpu: Gpu, world: int, lengths: Lengths) -> StagePlan:
    """The plan of the layout that the configuration has.

    Raises:
        ConfigError: these GPUs cannot be shared like this; with the nearest numbers that can.
    """
    problems = [*layout_rules(config, world), *batch_rules(config, name, world)]
    if problems:
        near = _worlds(config, name, world)
        raise ConfigError(
            f"stage {name} of {config.name} cannot be laid on {world} GPUs as it is configured"
            + (f"; --gpus {near} works" if near else ""),
            problems,
        )
    return planned_as_is(config, name, gpu, world, lengths)


def planned_as_is(config: Config, name: str, gpu: Gpu, world: int, lengths: Lengths) -> StagePlan:
    """:func:`as_configured` of a layout that has been checked."""
    return plan_stage(case_of(config, name, gpu, world), lengths, encoded=_encoded(config, name))


def _worlds(config: Config, name: str, world: int) -> str:
    """The nearest numbers of GPUs below and above that the layout and the batch can be shared by."""
    unit = config.parallel.tensor * config.parallel.pipeline
    fitting = [
        ranks
        for ranks in range(unit, 4 * max(world, unit) + 1, unit)
        if not [*layout_rules(config, ranks), *batch_rules(config, name, ranks)]
    ]
    below, above = [n for n in fitting if n < world][-1:], [n for n in fitting if n > world][:1]
    return " or ".join(map(str, below + above))


def _encoded(config: Config, name: str) -> float:
    """A run that caches the features of a frozen encoder reads them, once it has gone through its data."""
    learns = _encoder_learns(config, name)
    return CACHED if config.data.feature_cache and not learns else 1.0


def _encoder_learns(config: Config, name: str) -> bool:
    stage = config.curriculum[name]
    encoder = (parameter for parameter in front_weights(config, stage) if parameter.startswith("encoder."))
    return any(map(trains_of(stage.trainable, stage.frozen), encoder))


def search(config: Config, name: str, gpu: Gpu, world: int, lengths: Lengths) -> list[Ranked]:
    """Every layout that can be laid on these GPUs: those that fit, the fastest first; behind them the others, what
    needs the least first. More is computed again only where less does not fit: it never makes a step faster."""
    found = []
    for layout in layouts(config, name, gpu, world):
        for recompute in RECOMPUTES:
            changes = replace(layout, parallel=(*layout.parallel, ("recompute", recompute)))
            plan = _try(config, name, gpu, world, lengths, changes, DRAWN)
            if plan is None:
                break
            found.append(Ranked(changes=changes, plan=plan))
            if plan.fits or plan.case.stages == [[]]:
                break
    fitting = sorted((one for one in found if one.plan.fits), key=_rank)
    return fitting + sorted((one for one in found if not one.plan.fits), key=lambda one: one.plan.needed)


def _rank(one: Ranked) -> tuple[int, int, float]:
    """Of layouts that are about as fast, the one with the fewest cuts comes first."""
    parallel, seconds = one.plan.case.parallel, one.plan.time.total / one.plan.samples
    cuts = parallel.tensor * parallel.pipeline * parallel.virtual_pipeline
    return round(math.log(seconds) / math.log(1 + ABOUT)), cuts, seconds


def best(
    config: Config, name: str, gpu: Gpu, world: int, lengths: Lengths, tried: list[Ranked], most: int
) -> list[Ranked]:
    """The fastest of those that :func:`search` tried, planned with all their steps, and, where the encoder is frozen,
    the fastest with a feature cache."""
    fitting = [one for one in tried if one.plan.fits]
    wanted = [one.changes for one in fitting]
    if wanted and not config.data.feature_cache and fitting[0].plan.case.answers and not _encoder_learns(config, name):
        wanted = [replace(wanted[0], cached=True), *wanted]
    whole: list[Ranked] = []
    for changes in wanted:
        if len(whole) == most:
            break
        plan = _try(config, name, gpu, world, lengths, changes, 0)
        if plan is not None and plan.fits:
            whole.append(Ranked(changes=changes, plan=plan))
    return whole


def nearest(config: Config, name: str, tried: list[Ranked]) -> Ranked | None:
    """Of the layouts that fit, the one with the fewest changes to the configured one, the fastest of those."""
    fitting = [one for one in tried if one.plan.fits]
    return min(
        fitting, key=lambda one: (len(one.changes.differing(config, name)), one.plan.time.total), default=None
    )


def _try(
    config: Config, name: str, gpu: Gpu, world: int, lengths: Lengths, changes: Changes, drawn: int
) -> StagePlan | None:
    """The plan of a layout; None where it cannot be."""
    encoded = CACHED if changes.cached else _encoded(config, name)
    config = changes.of(config, name)
    if [*layout_rules(config, world), *batch_rules(config, name, world)]:
        return None
    case = case_of(config, name, gpu, world)
    return plan_stage(case, lengths, encoded=encoded, **({"drawn": drawn} if drawn else {}))


def layouts(config: Config, name: str, gpu: Gpu, world: int) -> Iterator[Changes]:
    """What is worth trying, before anybody has asked whether it can be."""
    stage, lm = config.curriculum[name], config.model.lm
    zero = (
        ("distributed_optimizer", world > 1 or config.parallel.distributed_optimizer),
        ("overlap", not config.compile and (world > 1 or config.parallel.overlap)),
    )
    if stage.objective != "answer":  # no decoder: every rank does the same
        whole = ("tensor", 1), ("sequence", False), ("pipeline", 1), ("virtual_pipeline", 1)
        for samples in sorted({stage.micro_batch_samples, *ALONE}):
            for texts in (config.model.clap.text_micro_batch, *TEXTS_AT_ONCE):
                yield Changes(
                    parallel=(*whole, *zero),
                    stage=(("micro_batch_samples", samples),),
                    clap=(("text_micro_batch", texts),),
                )
        return
    sharded = math.gcd(lm.kv_heads, lm.heads, config.model.cross_attention.heads)
    for tensor in (n for n in divisors(sharded) if n <= gpu.per_node):
        for pipeline in (n for n in divisors(world) if n <= lm.layers and world % (tensor * n) == 0):
            for chunks in range(1, 1 + (MOST_CHUNKS if pipeline > 1 else 1)):
                if lm.layers < pipeline * chunks:
                    continue
                for rows in _rows(stage):
                    cut = ("tensor", tensor), ("sequence", tensor > 1)
                    staged = ("pipeline", pipeline), ("virtual_pipeline", chunks)
                    yield Changes(
                        parallel=(*cut, *staged, *zero),
                        stage=rows,
                    )


def _rows(stage: StageConfig) -> list[tuple[tuple[str, object], ...]]:
    """Ways to make micro-batches of samples: one or several to a row."""
    longest = stage.questions_per_sample * stage.max_text_tokens
    wanted = {(samples, 0) for samples in ALONE} | {(1, tokens) for tokens in PACKED if tokens >= longest}
    wanted.add((stage.micro_batch_samples, stage.pack_tokens))
    return [(("micro_batch_samples", samples), ("pack_tokens", tokens)) for samples, tokens in sorted(wanted)]
