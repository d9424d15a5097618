"""Do the sections of a configuration go together? What holds within one stands beside its fields, as ``problems``.

problems = [*model_rules(config.model), *layout_rules(config, world_size), *reference_rules(config)]
problems += stage_rules(config, "align", world_size)        # numbers must lie in their ranges

What needs an objective's word, or files, is asked in ``megatron_af.runs.check``.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from megatron_af.config.components import UnknownComponent
from megatron_af.config.errors import divides, divisors, listed, suggestion
from megatron_af.config.model import ModelConfig
from megatron_af.config.run import Config

LONGEST_CLIP_SECONDS = 3600
"""A clip is encoded whole, and the transformation layers attend over all of its tokens at once."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
LONGEST_EXPERIMENT = 500


def own_problems(section: Any, key: str) -> Iterator[str]:
    """What each section of a tree says about itself."""
    if hasattr(section, "problems"):
        yield from section.problems(key)
    for field in fields(section):
        value, inner = getattr(section, field.name), f"{key}.{field.name}"
        entries = value.items() if isinstance(value, Mapping) else ()
        for place, part in ((inner, value), *((f"{inner}.{name}", entry) for name, entry in entries)):
            if is_dataclass(part):
                yield from own_problems(part, place)


def model_rules(model: ModelConfig) -> Iterator[str]:
    """Whether a model of these sizes can be built."""
    yield from own_problems(model, "model")
    layers, interval = model.lm.layers, model.cross_attention.interval
    if not 1 <= interval <= layers:
        yield (
            f"model.cross_attention.interval = {interval}: a gated block stands before every n-th of the "
            f"{layers} layers (model.lm.layers); set it to 1 … {layers}"
        )
    try:
        encoder = model.encoder.component
    except UnknownComponent as error:
        yield f"model.encoder.kind = {error}"
        return
    yield from encoder.problems(model.front_end)
    if width := encoder.feature_dim:
        yield from _transform(model, width, encoder.feature_key)


def _transform(model: ModelConfig, width: int, source: str) -> Iterator[str]:
    transform = model.transform
    yield from divides("model.transform.heads", transform.heads, f"the encoder's width, {source}", width)
    turned = transform.heads if transform.positions == "rope" else 1
    if transform.layers and width % turned == 0 and width // turned % 2:
        yield (
            f"model.transform.positions = {transform.positions} needs an even width, got {width // turned}: "
            f"{source} / {turned}{' (model.transform.heads)' if turned > 1 else ''}"
        )


def layout_rules(config: Config, world_size: int) -> Iterator[str]:
    """Whether the model can be laid on these ranks."""
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
    if lm.layers < chunks:
        yield (
            f"parallel.pipeline = {parallel.pipeline} x parallel.virtual_pipeline = {parallel.virtual_pipeline} makes "
            f"{chunks} chunks, and model.lm.layers = {lm.layers}: each holds one at least; lower their product"
        )
    yield from own_problems(parallel, "parallel")
    if config.compile and parallel.overlap:  # of a compiled layer all gradients come at once, in no order agreed on
        yield (
            "compile = true with parallel.overlap = true: overlapped collectives start where the code of each layer "
            "stands, and ranks that compiled for other batches would start them in another order; set one to false"
        )
    model_ranks = parallel.tensor * parallel.pipeline
    if world_size % model_ranks:
        yield (
            f"parallel.tensor = {parallel.tensor} x parallel.pipeline = {parallel.pipeline} does not divide "
            f"{count(world_size, 'process')}: start a multiple of {model_ranks} (torchrun --nproc_per_node)"
        )


def name_rules(config: Config) -> Iterator[str]:
    """Names that something refuses later: a folder, an MLflow run, metric or model, an object of Kubernetes."""
    given = {"name": [config.name], "curriculum": config.curriculum, "steps": config.steps}
    given |= {"data.datasets": config.data.datasets, "scenes.sets": config.scenes.sets}
    for key, names in given.items():
        for name in names:
            if not NAME.fullmatch(name):
                yield (
                    f"{key}{' =' if key == 'name' else ':'} '{name}': names folders, MLflow's runs and metrics and "
                    "Kubernetes' objects; write 1 to 63 of a-z, A-Z, 0-9, '.', '_' and '-', a letter or digit first"
                )
    if refused := sorted(set("/:'\"`") & set(config.registry.model)):
        yield (
            f"registry.model = '{config.registry.model}': MLflow's registry takes no {' '.join(refused)} in a name; "
            "leave it out"
        )
    if len(config.tracking.experiment) > LONGEST_EXPERIMENT:
        yield f"tracking.experiment: MLflow takes {LONGEST_EXPERIMENT} characters at most; shorten it"


def reference_rules(config: Config) -> Iterator[str]:
    """The names that steps wait for."""
    known = [*config.curriculum, *config.all_steps()]
    for name, step in config.steps.items():
        for other in step.after:
            if other != "stages" and other not in known:
                yield f"steps.{name}.after: no step or stage '{other}'{suggestion(other, known)}"
        for other in step.before:
            if other not in config.curriculum:
                yield f"steps.{name}.before: no stage '{other}'{suggestion(other, list(config.curriculum))}"


def part_rules(config: Config) -> Iterator[str]:
    """Data sets that are parts of others."""
    datasets = config.data.datasets
    for name, dataset in datasets.items():
        if (part := dataset.part) is None:
            continue
        key = f"data.datasets.{name}"
        yield from own_problems(part, f"{key}.part")
        if part.of not in datasets:
            yield f"{key}.part.of = {part.of}: not in data.datasets{suggestion(part.of, list(datasets))}"
        elif datasets[part.of].part:
            yield f"{key}.part.of = {part.of}: is itself a part; name what it is a part of"
        elif datasets[part.of].neighbours:
            yield f"{key}.part.of = {part.of}: is made of neighbours; name a data set that is imported"
        if dataset.origin:
            yield f"{key}: has an origin and is a part of {part.of}; leave one of the two out"
        if not (dataset.source or dataset.manifest).endswith(".jsonl"):
            yield f"{key}.source = {dataset.source}: a part's rows are written there; let it end with .jsonl"


def retrieval_rules(config: Config, embedding: Sequence[str]) -> Iterator[str]:
    """Neighbours come from a contrastive stage's embedding, and out of training rows alone.

    Args:
        embedding: stages whose model gives vectors that say what sounds alike.
    """
    datasets, name = config.data.datasets, config.retrieval.stage
    made_of = {f"data.datasets.{key}.neighbours.of": d.neighbours.of for key, d in datasets.items() if d.neighbours}
    indexed = {"retrieval.datasets": config.retrieval.datasets, **{key: (of,) for key, of in made_of.items()}}
    held_out = {benchmark: stage for stage, s in config.curriculum.items() for benchmark in s.evaluation}
    if name and config.retrieval.encoder:
        yield (
            f"retrieval.stage = '{name}' and retrieval.encoder = '{config.retrieval.encoder}': only one can say what "
            "sounds alike; leave one empty"
        )
    elif (name or made_of) and not config.retrieval.encoder and name not in embedding:
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
        if settings.neighbours is None:
            continue
        yield from own_problems(settings.neighbours, f"data.datasets.{key}.neighbours")
        if not settings.manifest.endswith(".jsonl"):
            yield f"data.datasets.{key}.manifest = {settings.manifest}: neighbours are written as JSONL; end it so"


def stage_rules(config: Config, name: str, world_size: int) -> Iterator[str]:
    """A stage within its run: batch, length of its clips, what it starts from, and its data sets."""
    prefix, stage = f"curriculum.{name}", config.curriculum[name]
    yield from batch_rules(config, name, world_size)
    front = config.model.front_end
    if front.long_clips == "views":
        yield (
            f"{prefix}: stages hear windows, and model.front_end.long_clips = views; set it to windows (views are how "
            "retrieval.encoder hears)"
        )
    seconds = front.heard_seconds(stage.max_windows)
    if seconds > LONGEST_CLIP_SECONDS:
        yield (
            f"{prefix}.max_windows = {stage.max_windows}: clips of {seconds:.0f} s; a clip is encoded whole, and at "
            f"most {LONGEST_CLIP_SECONDS} s long"
        )
    yield from own_problems(stage, prefix)
    yield from _augmentation(config, name)
    order = list(config.curriculum)
    for part, origin in stage.entry.items():
        if origin in order and order.index(origin) >= order.index(name):
            yield f"{prefix}.entry.{part} = {origin}: comes no earlier than {name} in curriculum; name an earlier stage"
    known = list(config.data.datasets)
    if (watched := stage.watch.dataset) and watched not in known:
        yield f"{prefix}.watch.dataset = {watched}: not in data.datasets{suggestion(watched, known)}"
    elif watched in stage.blend:
        yield f"{prefix}.watch.dataset = {watched}: the stage learns from it (blend); name rows that it does not see"
    if stage.spikes.deviations and not config.checkpoint.every_steps:
        yield (
            f"{prefix}.spikes.deviations = {stage.spikes.deviations:g}: a spike sends the run back to its newest "
            "checkpoint, and checkpoint.every_steps = 0 writes none on the way: all steps before it would be left out; "
            "set every_steps to what may be lost"
        )
    for dataset in stage.blend:
        if dataset not in config.data.datasets:
            yield f"{prefix}.blend.{dataset}: not in data.datasets{suggestion(dataset, list(config.data.datasets))}"


def _augmentation(config: Config, name: str) -> Iterator[str]:
    """Stripes that blank something, and not everything."""
    stage, front = config.curriculum[name], config.model.front_end
    window, bins = front.window_seconds, front.mel_bins
    if (augment := stage.augment) is None:
        return
    key = f"curriculum.{name}.augment"
    if config.model.encoder.kind != "htsat":
        yield f"{key}: model.encoder.kind = {config.model.encoder.kind} blanks nothing; take it out"
    elif not stage.trains("encoder.norm.weight"):
        yield f"{key}: the encoder is frozen, and its features are made once; take it out, or let encoder.* train"
    if 2 * augment.time_seconds > window:
        yield f"{key}.time_seconds = {augment.time_seconds:g}: two stripes may blank a window of {window:g} s; lower it"
    if 2 * augment.mel_bins > bins:
        yield f"{key}.mel_bins = {augment.mel_bins}: two stripes may blank all of {bins} (model.front_end.mel_bins)"


def evaluation_rules(config: Config, name: str) -> Iterator[str]:
    """The data sets that a stage is measured on."""
    stage = config.curriculum[name]
    named = [("evaluation", dataset) for dataset in stage.evaluation]
    for key, dataset in [*named, *([("calibrate", stage.calibrate)] if stage.calibrate else [])]:
        if dataset not in config.data.datasets:
            hint = suggestion(dataset, list(config.data.datasets))
            yield f"curriculum.{name}.{key}: '{dataset}' is not in data.datasets{hint}"
    if stage.calibrate and not stage.evaluation:
        yield f"curriculum.{name}.calibrate: needs {name}.evaluation, which is measured with it; name data sets there"


def batch_rules(config: Config, name: str, world_size: int) -> Iterator[str]:
    """Whether these ranks can share a stage's global batch."""
    prefix, stage = f"curriculum.{name}", config.curriculum[name]
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


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}es"
