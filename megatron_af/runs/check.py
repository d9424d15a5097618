"""Can this configuration run? Checked before any process group, file or model is made.

validate(config, world_size)            # raises ConfigError with every problem, each with its key and a fix
validate_evaluation(config)             # the same for measuring a stage that has been trained
problems = check(config, world_size)    # without looking at files: for a dry run
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from functools import cache

from megatron_af.config import Config, ConfigError, StageConfig
from megatron_af.config.components import UnknownComponent
from megatron_af.config.errors import suggestion
from megatron_af.config.loading import Unread, unexplained
from megatron_af.config.model_rules import divisors, listed, model_problems
from megatron_af.config.ranges import keep_in_range
from megatron_af.runs.objectives import spec_of
from megatron_af.runs.presence import missing_for_evaluation, missing_for_training
from megatron_af.runs.results import metric_patterns

LONGEST_CLIP_SECONDS = 3600
"""A clip is encoded whole, and the transformation layers attend over all of its tokens at once."""
READ = Unread()


def validate(config: Config, world_size: int, unread: Unread = READ) -> None:
    """Stop a run that cannot work.

    Args:
        unread: what :func:`~megatron_af.config.loading.read_config` could not use, to be told in the same message.

    Raises:
        ConfigError: with every problem of the configuration, of ``config.stage`` and of the files it needs.
    """
    problems = _with_files(config, check(config, world_size), missing_for_training)
    if problems := unread.and_also(problems):
        raise ConfigError(f"{config.name} cannot run on {_count(world_size, 'process')}", problems)


def validate_evaluation(config: Config, objective: str, unread: Unread = READ) -> None:
    """Stop an evaluation of ``config.stage`` that cannot work; what only training needs may be absent.

    Args:
        objective: of the stages that this evaluation measures.

    Raises:
        ConfigError: with every problem of the model, the evaluation sets and the stage's checkpoint.
    """
    usable, out_of_range = keep_in_range(config)
    found = list(model_problems(usable.model))
    if stage := usable.curriculum.get(config.stage):
        prefix = f"curriculum.{config.stage}"
        if stage.objective == objective:
            found += _measured(usable, prefix, stage)
        else:
            found.append(f"stage = {config.stage}: its objective is {stage.objective}; name one with {objective}")
        if not stage.evaluation:
            found.append(f"{prefix}.evaluation is empty: name the data sets of data.datasets to measure it on")
    kept = {key: problem for key, problem in out_of_range.items() if not key.startswith("parallel.")}
    problems = [*_of_stages(kept, config.stage), *unexplained(found, out_of_range)]
    if problems := unread.and_also(_with_files(config, problems, missing_for_evaluation)):
        raise ConfigError(f"stage {config.stage} of {config.name} cannot be measured", problems)


def check(config: Config, world_size: int) -> list[str]:
    """Problems of the model, its layout and its stages (of ``config.stage``, or of all when none is named)."""
    config, out_of_range = keep_in_range(config)
    found = [*model_problems(config.model), *_layout(config, world_size), *_references(config)]
    if re.search(r"[/\\]|^\.*$", config.name):
        found.append(f"name = '{config.name}': names a folder in {config.output}; use letters, digits, - and _")
    stages = config.curriculum if not config.stage else {config.stage: config.curriculum.get(config.stage)}
    for name, stage in stages.items():
        if stage is not None:
            found += _stage(config, name, stage, world_size)
    return [*_of_stages(out_of_range, config.stage), *unexplained(found, out_of_range)]


def _of_stages(out_of_range: dict[str, str], stage: str) -> Iterator[str]:
    """Without the problems of stages that are not asked for."""
    for key, problem in out_of_range.items():
        if not stage or not key.startswith("curriculum.") or key.startswith(f"curriculum.{stage}."):
            yield problem


def _with_files(config: Config, problems: list[str], missing: Callable[[Config], Iterable[str]]) -> list[str]:
    if config.stage not in config.curriculum:
        return [_unknown_stage(config), *problems]
    try:
        return [*problems, *missing(config)]
    except UnknownComponent:  # its objective: one of the problems
        return problems


def _layout(config: Config, world_size: int) -> Iterator[str]:
    parallel, lm, xattn = config.parallel, config.model.lm, config.model.cross_attention
    sharded = {
        "model.lm.heads": lm.heads,
        "model.lm.kv_heads": lm.kv_heads,
        "model.lm.ffn": lm.ffn,
        "model.cross_attention.heads": xattn.heads,
    }
    refusing = [f"{key} = {value}" for key, value in sharded.items() if value % parallel.tensor]
    if refusing:
        fits = listed(divisors(math.gcd(*sharded.values())))
        yield f"parallel.tensor = {parallel.tensor} does not divide {', '.join(refusing)}: set it to one of {fits}"
    chunks = parallel.pipeline * parallel.virtual_pipeline
    if lm.layers % chunks:
        yield (
            f"parallel.pipeline = {parallel.pipeline} x parallel.virtual_pipeline = {parallel.virtual_pipeline} does "
            f"not divide model.lm.layers = {lm.layers}: set their product to one of {listed(divisors(lm.layers))}"
        )
    if parallel.virtual_pipeline > 1 and parallel.pipeline < 2:
        yield (
            f"parallel.virtual_pipeline = {parallel.virtual_pipeline} needs parallel.pipeline of at least 2; "
            "set virtual_pipeline to 1"
        )
    if parallel.sequence and parallel.tensor < 2:
        yield "parallel.sequence shards over the tensor-parallel group: set it to false or parallel.tensor above 1"
    model_ranks = parallel.tensor * parallel.pipeline
    if world_size % model_ranks:
        yield (
            f"parallel.tensor = {parallel.tensor} x parallel.pipeline = {parallel.pipeline} does not divide "
            f"{_count(world_size, 'process')}: start a multiple of {model_ranks} (torchrun --nproc_per_node)"
        )


def _stage(config: Config, name: str, stage: StageConfig, world_size: int) -> Iterator[str]:
    prefix = f"curriculum.{name}"
    yield from _batch(config, prefix, stage, world_size)
    try:
        objective = spec_of(stage)
    except UnknownComponent as error:
        yield f"{prefix}.objective = {error}"
        return
    front = config.model.front_end
    seconds = front.window_seconds + (stage.max_windows - 1) * (front.window_seconds - front.overlap_seconds)
    if seconds > LONGEST_CLIP_SECONDS:
        yield (
            f"{prefix}.max_windows = {stage.max_windows}: clips of {seconds:.0f} s; a clip is encoded whole, and at "
            f"most {LONGEST_CLIP_SECONDS} s long"
        )
    if not stage.trainable:
        yield f"{prefix}.trainable is empty: name what learns, such as 'lm.*.xattn.*' or '*'"
    families = objective.parameters(config)
    for key in ("trainable", "frozen"):
        for pattern in getattr(stage, key):
            any_character = re.sub(r"\[.*?\]", "?", pattern)
            if not any(_meet(any_character, family) for family in families):
                generic = dict.fromkeys(re.sub(r"\d+", "*", family) for family in families)
                yield f"{prefix}.{key}: pattern '{pattern}' matches no parameter{suggestion(pattern, list(generic))}"
    for part, origin in stage.entry.items():
        if part not in (parts := (*objective.parts, "all")):
            yield f"{prefix}.entry.{part}: no such part of the model{suggestion(part, parts)}"
        order = list(config.curriculum)
        if origin in order and order.index(origin) >= order.index(name):
            yield f"{prefix}.entry.{part} = {origin}: comes no earlier than {name} in curriculum; name an earlier stage"
    if not stage.blend:
        yield f"{prefix}.blend is empty: name data sets of data.datasets with weights above 0"
    for dataset, weight in stage.blend.items():
        if dataset not in config.data.datasets:
            yield f"{prefix}.blend.{dataset}: not in data.datasets{suggestion(dataset, list(config.data.datasets))}"
        if weight <= 0:
            yield f"{prefix}.blend.{dataset} = {weight}: must be above 0; remove it to leave the data set out"
    yield from objective.problems(config, name)
    optimizer = stage.optimizer
    if optimizer.min_learning_rate > optimizer.learning_rate:
        yield (
            f"{prefix}.optimizer.min_learning_rate = {optimizer.min_learning_rate}: must not exceed "
            f"{prefix}.optimizer.learning_rate = {optimizer.learning_rate}"
        )
    yield from _measured(config, prefix, stage)


def _measured(config: Config, prefix: str, stage: StageConfig) -> Iterator[str]:
    """Evaluation sets and exit gate."""
    for name in stage.evaluation:
        if name not in config.data.datasets:
            yield f"{prefix}.evaluation: '{name}' is not in data.datasets{suggestion(name, list(config.data.datasets))}"
    known = metric_patterns(stage)
    for name, bounds in stage.exit_gate.items():
        if not any(fnmatchcase(name, pattern) for pattern in known):
            yield f"{prefix}.exit_gate.{name}: nobody logs it{suggestion(name, known)}"
        if bounds.min is not None and bounds.max is not None and bounds.min > bounds.max:
            yield f"{prefix}.exit_gate.{name}: nothing lies between min = {bounds.min} and max = {bounds.max}"


def _batch(config: Config, prefix: str, stage: StageConfig, world_size: int) -> Iterator[str]:
    unit = config.step_unit(stage, world_size)
    if unit < 1:
        return  # too few processes for one copy of the model: reported elsewhere
    why = "data-parallel ranks x micro_batch_samples"
    if config.parallel.virtual_pipeline > 1:
        why += " x parallel.pipeline, for the interleaved schedule"
    if stage.batch_tokens:
        tokens = config.sample_tokens(stage)
        if tokens * unit > stage.batch_tokens:
            yield (
                f"{prefix}.batch_tokens = {stage.batch_tokens}: the longest sample has {tokens} tokens "
                f"({prefix}.max_windows = {stage.max_windows}, max_text_tokens = {stage.max_text_tokens}) and a step "
                f"takes at least {unit} samples ({why}); raise it to {tokens * unit} or lower max_windows"
            )
    elif stage.global_batch_samples % unit:
        yield (
            f"{prefix}.global_batch_samples = {stage.global_batch_samples}: must be a multiple of {unit} ({why}); "
            f"change it or micro_batch_samples = {stage.micro_batch_samples}"
        )


def _references(config: Config) -> Iterator[str]:
    """Names that must exist elsewhere in the configuration."""
    known = [*config.curriculum, *config.all_steps()]
    for name, step in config.steps.items():
        for other in step.after:
            if other != "stages" and other not in known:
                yield f"steps.{name}.after: no step or stage '{other}'{suggestion(other, known)}"
        for other in step.before:
            if other not in config.curriculum:
                yield f"steps.{name}.before: no stage '{other}'{suggestion(other, list(config.curriculum))}"
    yield from retrieval_problems(config)


def _embeds(stage: StageConfig) -> bool:
    try:
        return spec_of(stage).embeds
    except UnknownComponent:  # told elsewhere
        return False


def retrieval_problems(config: Config) -> Iterator[str]:
    """Neighbours come from a contrastive stage's embedding, and out of training rows alone."""
    datasets, name = config.data.datasets, config.retrieval.stage
    made_of = {f"data.datasets.{key}.neighbours.of": d.neighbours.of for key, d in datasets.items() if d.neighbours}
    indexed = {"retrieval.datasets": config.retrieval.datasets, **{key: (of,) for key, of in made_of.items()}}
    held_out = {benchmark: stage for stage, s in config.curriculum.items() for benchmark in s.evaluation}
    if name or made_of:
        embedding = [key for key, stage in config.curriculum.items() if _embeds(stage)]
        if name not in embedding:
            yield f"retrieval.stage = '{name}': no contrastive stage of curriculum{suggestion(name, embedding)}"
    for key, names in indexed.items():
        for dataset in names:
            if dataset not in datasets:
                yield f"{key} = {dataset}: not in data.datasets{suggestion(dataset, list(datasets))}"
            elif datasets[dataset].neighbours:
                yield f"{key} = {dataset}: is itself made of neighbours; name what it is made of"
            elif dataset in held_out:
                yield f"{key} = {dataset}: curriculum.{held_out[dataset]} is evaluated on it; name a training split"
    for key, settings in datasets.items():
        if settings.neighbours and not settings.manifest.endswith(".jsonl"):
            yield f"data.datasets.{key}.manifest = {settings.manifest}: neighbours are written as JSONL; end it so"


def _unknown_stage(config: Config) -> str:
    names = list(config.curriculum)
    if not config.stage:
        return f"stage is not set: add stage=NAME with one of {listed(names)}"
    return f"stage = {config.stage}: not in curriculum{suggestion(config.stage, names)}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}es"


@cache
def _meet(one: str, other: str) -> bool:
    """Whether some name fits both patterns (``*`` and ``?``)."""
    if one.startswith("*"):
        return _meet(one[1:], other) or (other != "" and _meet(one, other[1:]))
    if other.startswith("*"):
        return _meet(other, one)
    if not one or not other:
        return one == other
    return (one[0] == other[0] or "?" in (one[0], other[0])) and _meet(one[1:], other[1:])
