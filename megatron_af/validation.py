"""Can this configuration run? Checked before any process group, file or model is made.

    validate(config, world_size)            # raises ConfigError with every problem, each with its key and a fix
    problems = check(config, world_size)    # the same without looking at files: for a dry run
"""

import math
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from megatron_af.config import PARTS, Config, ConfigError, StageConfig
from megatron_af.config_file import suggestion
from megatron_af.data.shards import INDEX
from megatron_af.data.storage import DataRoot

MEL_FRAMES, MEL_BINS = 1024, 64
"""HTS-AT folds this many frames by bins into its square image."""


def validate(config: Config, world_size: int) -> None:
    """Stop a run that cannot work.

    Raises:
        ConfigError: with every problem of the configuration, of ``config.stage`` and of the files it needs.
    """
    problems = check(config, world_size)
    stage = config.curriculum.get(config.stage)
    if stage is None:
        problems.insert(0, _unknown_stage(config))
    else:
        problems += _missing_files(config, stage)
    if problems:
        raise ConfigError(f"{config.name} cannot run on {_count(world_size, 'process')}", problems)


def check(config: Config, world_size: int) -> list[str]:
    """Problems of the model, its layout and its stages (of ``config.stage``, or of all when none is named)."""
    problems = [*_model(config), *_layout(config, world_size), *_references(config)]
    if re.search(r"[/\\]|^\.*$", config.name):
        problems.append(f"name = '{config.name}': names a folder in {config.output}; use letters, digits, - and _")
    stages = config.curriculum if not config.stage else {config.stage: config.curriculum.get(config.stage)}
    for name, stage in stages.items():
        if stage is not None:
            problems += _stage(config, name, stage, world_size)
    return problems


def _model(config: Config) -> Iterator[str]:
    model, lm = config.model, config.model.lm
    front, encoder, xattn = model.front_end, model.encoder, model.cross_attention
    yield from _divides("model.lm.heads", lm.heads, "model.lm.hidden", lm.hidden)
    yield from _divides("model.lm.kv_heads", lm.kv_heads, "model.lm.heads", lm.heads)
    yield from _divides("model.transform.heads", model.transform.heads, "the encoder's width", encoder.feature_dim)
    if not 1 <= xattn.interval <= lm.layers:
        yield (
            f"model.cross_attention.interval = {xattn.interval}: a gated block stands before every n-th of the "
            f"{lm.layers} layers (model.lm.layers); set it to 1 … {lm.layers}"
        )
    if len(encoder.depths) != len(encoder.heads):
        yield (
            f"model.encoder.heads has {len(encoder.heads)} stages and model.encoder.depths has "
            f"{len(encoder.depths)}: give both the same length"
        )
    for stage, heads in enumerate(encoder.heads):
        width = encoder.embed_dim * 2**stage
        yield from _divides(f"model.encoder.heads[{stage}]", heads, f"the width of encoder stage {stage}", width)
    if encoder.tokens_per_window < 1:
        yield (
            f"model.encoder.patch_size = {encoder.patch_size} with {len(encoder.depths)} stages leaves no token of a "
            "window: use smaller patches or fewer model.encoder.depths"
        )
    if front.mel_bins != MEL_BINS:
        yield f"model.front_end.mel_bins = {front.mel_bins}: HTS-AT's image holds {MEL_BINS}; set it to {MEL_BINS}"
    if not 0 <= front.overlap_seconds < front.window_seconds:
        yield (
            f"model.front_end.overlap_seconds = {front.overlap_seconds}: must be at least 0 and below "
            f"window_seconds = {front.window_seconds}"
        )
    elif front.window_frames > MEL_FRAMES:
        yield (
            f"model.front_end.window_seconds = {front.window_seconds} makes {front.window_frames} mel frames; "
            f"HTS-AT takes {MEL_FRAMES}: shorten the window or raise model.front_end.hop_samples = {front.hop_samples}"
        )
    mel_rate = front.mel_sample_rate or front.sample_rate
    if not 0 <= front.min_hz < front.max_hz <= mel_rate / 2:
        yield (
            f"model.front_end.min_hz = {front.min_hz}, max_hz = {front.max_hz}: need 0 <= min_hz < max_hz <= "
            f"{mel_rate / 2} (half of {'mel_sample_rate' if front.mel_sample_rate else 'sample_rate'})"
        )


def _layout(config: Config, world_size: int) -> Iterator[str]:
    parallel, lm, xattn = config.parallel, config.model.lm, config.model.cross_attention
    for key in ("tensor", "pipeline", "virtual_pipeline"):
        if getattr(parallel, key) < 1:
            yield f"parallel.{key} = {getattr(parallel, key)}: must be at least 1"
    sharded = {
        "model.lm.heads": lm.heads,
        "model.lm.kv_heads": lm.kv_heads,
        "model.lm.ffn": lm.ffn,
        "model.cross_attention.heads": xattn.heads,
    }
    refusing = [f"{key} = {value}" for key, value in sharded.items() if value % max(1, parallel.tensor)]
    if refusing:
        fits = _list(_divisors(math.gcd(*sharded.values())))
        yield f"parallel.tensor = {parallel.tensor} does not divide {', '.join(refusing)}: set it to one of {fits}"
    chunks = parallel.pipeline * parallel.virtual_pipeline
    if chunks > 0 and lm.layers % chunks:
        yield (
            f"parallel.pipeline = {parallel.pipeline} x parallel.virtual_pipeline = {parallel.virtual_pipeline} does "
            f"not divide model.lm.layers = {lm.layers}: set their product to one of {_list(_divisors(lm.layers))}"
        )
    if parallel.virtual_pipeline > 1 and parallel.pipeline < 2:
        yield (
            f"parallel.virtual_pipeline = {parallel.virtual_pipeline} needs parallel.pipeline of at least 2; "
            "set virtual_pipeline to 1"
        )
    if parallel.sequence and parallel.tensor < 2:
        yield "parallel.sequence shards over the tensor-parallel group: set it to false or parallel.tensor above 1"
    model_ranks = parallel.tensor * parallel.pipeline
    if model_ranks > 0 and world_size % model_ranks:
        yield (
            f"parallel.tensor = {parallel.tensor} x parallel.pipeline = {parallel.pipeline} does not divide "
            f"{_count(world_size, 'process')}: start a multiple of {model_ranks} (torchrun --nproc_per_node)"
        )


def _stage(config: Config, name: str, stage: StageConfig, world_size: int) -> Iterator[str]:
    prefix = f"curriculum.{name}"
    yield from _batch(config, prefix, stage, world_size)
    counts = ("max_windows", "max_text_tokens", "micro_batch_samples", "global_batch_samples", "questions_per_sample")
    for key in (*counts, "steps"):
        if getattr(stage, key) < 1:
            yield f"{prefix}.{key} = {getattr(stage, key)}: must be at least 1"
    families = _parameter_families(config)
    for key in ("trainable", "frozen"):
        for pattern in getattr(stage, key):
            any_character = re.sub(r"\[.*?\]", "?", pattern)
            if not any(_meet(any_character, family) for family in families):
                generic = dict.fromkeys(re.sub(r"\d+", "*", family) for family in families)
                yield f"{prefix}.{key}: pattern '{pattern}' matches no parameter{suggestion(pattern, list(generic))}"
    for part, origin in stage.entry.items():
        if part not in (*PARTS, "all"):
            yield f"{prefix}.entry.{part}: no such part of the model{suggestion(part, (*PARTS, 'all'))}"
        order = list(config.curriculum)
        if origin in order and order.index(origin) >= order.index(name):
            yield f"{prefix}.entry.{part} = {origin}: comes no earlier than {name} in curriculum; name an earlier stage"
    if not stage.blend:
        yield f"{prefix}.blend is empty: name data sets of data.datasets with weights above 0"
    for dataset, weight in stage.blend.items():
        if dataset not in config.data.datasets:
            yield f"{prefix}.blend.{dataset}: not in data.datasets{suggestion(dataset, list(config.data.datasets))}"
        if not weight > 0:
            yield f"{prefix}.blend.{dataset} = {weight}: must be above 0; remove it to leave the data set out"
    if stage.objective == "contrastive":
        yield from _contrastive(config, prefix, stage)
    positions = config.model.lm.max_positions
    if stage.objective == "answer" and stage.max_text_tokens > positions:
        yield (
            f"{prefix}.max_text_tokens = {stage.max_text_tokens}: the language model has "
            f"model.lm.max_positions = {positions}"
        )
    optimizer = stage.optimizer
    if not optimizer.learning_rate > 0:
        yield f"{prefix}.optimizer.learning_rate = {optimizer.learning_rate}: must be above 0"
    if not 0 <= optimizer.min_learning_rate <= optimizer.learning_rate:
        yield (
            f"{prefix}.optimizer.min_learning_rate = {optimizer.min_learning_rate}: must lie between 0 and "
            f"learning_rate = {optimizer.learning_rate}"
        )
    for key in ("beta1", "beta2"):
        if not 0 <= getattr(optimizer, key) < 1:
            yield f"{prefix}.optimizer.{key} = {getattr(optimizer, key)}: must be at least 0 and below 1"


def _contrastive(config: Config, prefix: str, stage: StageConfig) -> Iterator[str]:
    clap = config.model.clap
    if stage.global_batch_samples == 1:
        yield f"{prefix}.global_batch_samples = 1: a contrastive loss compares samples; use 2 or more"
    if stage.contrastive.mix_up < 0:
        yield f"{prefix}.contrastive.mix_up = {stage.contrastive.mix_up}: must be 0 (none) or above"
    if stage.contrastive.mix_up > 0 and stage.max_windows > 1:
        yield f"{prefix}.contrastive.mix_up mixes single windows: set {prefix}.max_windows to 1 or mix_up to 0"
    if not clap.text_tower:
        yield from _divides("model.clap.text_heads", clap.text_heads, "model.clap.text_hidden", clap.text_hidden)
    if not clap.temperature > 0:
        yield f"model.clap.temperature = {clap.temperature}: must be above 0"
    encoder = config.model.encoder
    if encoder.vector and encoder.vector_dim != clap.joint_dim:
        yield (
            f"model.encoder.vector_dim = {encoder.vector_dim}, model.clap.joint_dim = {clap.joint_dim}: an encoder "
            "that gives vectors gives those of the joint space; set both alike"
        )
    if clap.text_micro_batch < 0:
        yield f"model.clap.text_micro_batch = {clap.text_micro_batch}: must be 0 (all captions at once) or above"


def _parameter_families(config: Config) -> list[str]:
    """Patterns that together cover the canonical parameter names and nothing else in the language model."""
    lm = config.model.lm
    families = ["encoder.*", "transform.*", "added_rows", "clap.*", "lm.embedding.word_embeddings.weight"]
    for layer in range(lm.layers):
        parts = ["input_layernorm.*", "self_attention.*", "pre_mlp_layernorm.*", "mlp.*"]
        if (layer + 1) % max(1, config.model.cross_attention.interval) == 0:
            parts.append("xattn.*")
        families += [f"lm.decoder.layers.{layer}.{part}" for part in parts]
    families.append("lm.decoder.final_layernorm.*")
    if not lm.tied:
        families.append("lm.output_layer.weight")
    return families


def _batch(config: Config, prefix: str, stage: StageConfig, world_size: int) -> Iterator[str]:
    unit = config.step_unit(stage, world_size) if min(config.parallel.tensor, config.parallel.pipeline) > 0 else 0
    if unit < 1:
        return  # too few processes for one copy of the model, or no samples: reported elsewhere
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


def retrieval_problems(config: Config) -> Iterator[str]:
    """Neighbours come from a contrastive stage's embedding, and out of training rows alone."""
    datasets, name = config.data.datasets, config.retrieval.stage
    made_of = {f"data.datasets.{key}.neighbours.of": d.neighbours.of for key, d in datasets.items() if d.neighbours}
    indexed = {"retrieval.datasets": config.retrieval.datasets, **{key: (of,) for key, of in made_of.items()}}
    held_out = {benchmark: stage for stage, s in config.curriculum.items() for benchmark in s.evaluation}
    if name or made_of:
        stage = config.curriculum.get(name)
        contrastive = [key for key, s in config.curriculum.items() if s.objective == "contrastive"]
        if stage is None or stage.objective != "contrastive":
            yield f"retrieval.stage = '{name}': no contrastive stage of curriculum{suggestion(name, contrastive)}"
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
        if settings.neighbours and settings.neighbours.examples < 1:
            yield f"data.datasets.{key}.neighbours.examples = {settings.neighbours.examples}: must be at least 1"


def _unknown_stage(config: Config) -> str:
    names = list(config.curriculum)
    if not config.stage:
        return f"stage is not set: add stage=NAME with one of {_list(names)}"
    return f"stage = {config.stage}: not in curriculum{suggestion(config.stage, names)}"


def _missing_files(config: Config, stage: StageConfig) -> Iterator[str]:
    root = DataRoot(config.data.root)
    if "://" not in config.data.root and not Path(config.data.root).is_dir():
        yield f"data.root = {root}: no such folder; prepare the data (tools/prepare_data.py) or name where it lies"
    else:
        for name in filter(config.data.datasets.__contains__, stage.blend):
            manifest = config.data.datasets[name].manifest
            key = f"data.datasets.{name}.manifest = {manifest}"
            try:
                if not root.exists(manifest if manifest.endswith(".jsonl") else f"{manifest}/{INDEX}"):
                    made = config.data.datasets[name].neighbours
                    how = "make it (tools/build_retrieval.py interleave)" if made else "prepare the data"
                    yield f"{key}: not in {root}; {how} or correct the path"
            except (OSError, ValueError) as error:
                yield f"{key}: {error}"
    tokenizer = config.data.tokenizer
    is_hub_name = re.fullmatch(r"[\w.-]+/[\w.-]+", tokenizer) and not tokenizer.endswith(".json")
    if not tokenizer:
        yield "data.tokenizer is not set: name a folder, a tokenizer.json or a hub name such as Qwen/Qwen2.5-3B"
    elif not Path(tokenizer).exists() and not is_hub_name:
        yield f"data.tokenizer = {tokenizer}: does not exist; name a folder, a tokenizer.json or a hub name"
    for part, origin in stage.entry.items():
        key = f"curriculum.{config.stage}.entry.{part}"
        if origin in config.curriculum:
            folder = config.stage_folder(origin)
            if not (folder / "checkpoints" / "latest").exists():
                yield f"{key} = {origin}: stage {origin} has no checkpoint in {folder}; run stage={origin} first"
        elif not Path(origin).exists():
            yield (
                f"{key} = {origin}: neither a stage nor an existing checkpoint"
                f"{suggestion(origin, list(config.curriculum))}"
            )


def _divides(divisor_key: str, divisor: int, key: str, value: int) -> Iterator[str]:
    if divisor < 1:
        yield f"{divisor_key} = {divisor}: must be at least 1"
    elif value % divisor:
        fits = _list(_divisors(value))
        yield f"{divisor_key} = {divisor} does not divide {key} = {value}: set {divisor_key} to one of {fits}"


def _divisors(value: int) -> list[int]:
    return [d for d in range(1, value + 1) if value % d == 0]


def _list(values: Sequence[object], most: int = 12) -> str:
    shown = ", ".join(map(str, values[:most])) or "(none)"
    return shown + (", …" if len(values) > most else "")


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
