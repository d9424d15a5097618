"""A release as a folder that transformers loads, where neither this project nor megatron-core is installed.

    export(Path("runs/demo/releases/3f2a91c04d7e"), Path("published/demo"))

      config.json  generation_config.json  model*.safetensors  README.md  chat_template.jinja
      tokenizer.json  tokenizer_config.json  processor_config.json  *_audio_flamingo.py

The code in the folder is that of ``megatron_af/convert/huggingface``; the weights pass through memory shard by shard
beside the model. The process must have made megatron-core portable (``parallel.world.join_world``).
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import tokenizers
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerFast

from megatron_af.audio.htsat import HTSAT
from megatron_af.config import Config, ParallelConfig
from megatron_af.convert import huggingface
from megatron_af.convert.huggingface.configuration_audio_flamingo import (
    AudioFlamingo1Config,
    AudioFlamingoConfig,
    AudioSizes,
)
from megatron_af.convert.huggingface.feature_extraction_audio_flamingo import AudioFlamingoFeatureExtractor
from megatron_af.convert.huggingface.modeling_audio_flamingo import (
    AudioFlamingo1ForConditionalGeneration,
    AudioFlamingoForConditionalGeneration,
)
from megatron_af.convert.huggingface.processing_audio_flamingo import AudioFlamingoProcessor
from megatron_af.convert.language import hugging_face_names, split_whole
from megatron_af.convert.shards import SHARD_BYTES, write_shards
from megatron_af.data.templates import STYLES
from megatron_af.decoder.family import family_of
from megatron_af.decoder.lora import merge_adapters
from megatron_af.decoder.transformer_config import DTYPES
from megatron_af.files import put_in_place, write
from megatron_af.model import AudioFlamingo, AudioFront, Vocabulary
from megatron_af.parallel import groups as process_groups
from megatron_af.parallel.global_state import TABLES, whole_tensors
from megatron_af.release.model_card import model_card
from megatron_af.serve.places import find
from megatron_af.text.tokenizer import OPT_BEGIN, OPT_PAD, PAD, Tokenizer
from megatron_af.train.checkpoint_reading import load_model
from megatron_af.train.conversion import refuse_occupied

ENCODER = ("embed_dim", "depths", "heads", "patch_size", "window_size", "mlp_ratio", "absolute_positions", "vector")
TRANSFORM = ("layers", "heads", "ffn", "positions", "rope_base", "sees", "row_windows")
ATTENTION = ("interval", "heads", "head_dim", "ffn_multiplier", "immediate")
FRONT_END = (
    *("window_seconds", "overlap_seconds", "fft_size", "hop_samples"),
    *("mel_bins", "min_hz", "max_hz", "mel_scale", "mel_sample_rate"),
)
"""Settings that the exported code calls as ours."""
FAMILIES: dict[str, tuple[Any, Any]] = {
    "qwen2": (AudioFlamingoConfig, AudioFlamingoForConditionalGeneration),
    "opt": (AudioFlamingo1Config, AudioFlamingo1ForConditionalGeneration),
}
GATED_BLOCK = {
    "gate_attn": "attention_gate",
    "gate_ffn": "ffn_gate",
    "attention_norm.weight": "attention_norm.weight",
    "attention_norm.bias": "attention_norm.bias",
    "attention.linear_q.weight": "q_proj.weight",
    "attention.linear_proj.weight": "o_proj.weight",
    "ffn_norm.weight": "ffn_norm.weight",
    "ffn_norm.bias": "ffn_norm.bias",
    "ffn.linear_fc1.weight": "up_proj.weight",
    "ffn.linear_fc2.weight": "down_proj.weight",
}
"""Of ours -> the exported name. Keys and values are fused in ours."""


class NotExportable(ValueError):
    """A model that the exported code does not compute; the message names the key."""


def export(place: Path, folder: Path, *, shard_bytes: int = SHARD_BYTES) -> Path:
    """Export a release, or what else ``megatron_af.load`` takes; returns ``folder``.

    Args:
        folder: a new or empty one; it appears whole.

    Raises:
        NotExportable: the model is of a kind that the exported code does not compute.
        Occupied: the folder holds something.
        FileNotFoundError: nothing trained is there.
    """
    config, checkpoint = find(place)
    refuse_occupied(folder)
    if problem := _problem(config):
        raise NotExportable(f"{place} cannot be exported: {problem}")
    tokenizer = Tokenizer.load(config.data.tokenizer)
    model = _model(config, checkpoint, tokenizer)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write_processor(config, tokenizer, partial)
        _write_config(config, tokenizer, partial)
        write_shards(partial, exported_tensors(model, config), shard_bytes)
        write(partial / "README.md", model_card(config, checkpoint, place, folder.name))
        put_in_place(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        process_groups.destroy()
    return folder


def _problem(config: Config) -> str:
    stage, model = config.curriculum[config.stage], config.model
    if stage.objective != "answer":
        return f"stage = {config.stage}: expected one with objective answer, got {stage.objective}"
    if model.lm.family not in FAMILIES:
        return f"model.lm.family: expected {' or '.join(FAMILIES)}, got {model.lm.family}"
    if model.encoder.kind != "htsat":
        return f"model.encoder.kind: expected htsat, got {model.encoder.kind}"
    if model.front_end.short_clips != "pad":
        return f"model.front_end.short_clips: expected pad, got {model.front_end.short_clips}"
    if model.front_end.level != "peak":
        return f"model.front_end.level: expected peak, got {model.front_end.level}"
    if model.transform.sees == "past":
        return "model.transform.sees: expected clip or row, got past"
    return ""


def _model(config: Config, checkpoint: Path, tokenizer: Tokenizer) -> AudioFlamingo:
    """The whole model on this rank, whatever layout it was trained in, its adapters merged."""
    groups = process_groups.initialize(ParallelConfig(), config.seed)
    whole = replace(config, parallel=ParallelConfig())
    model = load_model(whole, config.curriculum[config.stage], _vocabulary(tokenizer), groups, checkpoint)
    for chunk in model.chunks:
        merge_adapters(chunk)
    return model


def exported_tensors(model: AudioFlamingo, config: Config) -> Iterator[tuple[str, Tensor]]:
    """All tensors under the names of ``modeling_audio_flamingo.py``; the model lies whole on this rank."""
    front = model.front
    assert isinstance(front, AudioFront)
    left_out = ("added_rows", *(f"encoder.{part}" for part in (*HTSAT.UNUSED, "bn0.num_batches_tracked")))
    for name, tensor in front.state_dict().items():
        if not name.startswith(left_out):
            yield f"audio_tower.{name}", tensor
    yield from decoder_tensors(model.chunks, front.added_rows.detach(), config)


def decoder_tensors(chunks: Sequence[Any], added_rows_NH: Tensor, config: Config) -> Iterator[tuple[str, Tensor]]:
    """Those of the language model and its gated blocks."""
    (decoder,) = chunks
    table = decoder.table
    for name, whole in whole_tensors(chunks):
        if ".xattn." in name:
            yield from _gated_block(name, whole, config)
            continue
        if name in TABLES:
            rows = whole.new_zeros(table.num_tokens, whole.shape[1])
            rows[: len(whole)] = whole
            rows[table.first_added_id : table.first_added_id + table.num_added] = added_rows_NH
            whole = rows
        lm = config.model.lm
        yield from zip(hugging_face_names(name, family_of(lm)), split_whole(name, whole, lm), strict=True)


def _gated_block(name: str, whole: Tensor, config: Config) -> Iterator[tuple[str, Tensor]]:
    layer, own = name.removeprefix("lm.decoder.layers.").split(".xattn.")
    prefix = f"{family_of(config.model.lm).layer_prefix}.{layer}.audio_attention"
    if own == "attention.linear_kv.weight":  # a head's keys, its values, head after head
        sizes = config.model.cross_attention
        key_value = whole.view(sizes.heads, 2, sizes.head_dim, -1)
        yield f"{prefix}.k_proj.weight", key_value[:, 0].flatten(0, 1)
        yield f"{prefix}.v_proj.weight", key_value[:, 1].flatten(0, 1)
    else:
        yield f"{prefix}.{GATED_BLOCK[own]}", whole


def exported_config(config: Config, vocabulary: Vocabulary) -> AudioSizes:
    """The sizes of the exported model; its table has a row for every token, the added ones included."""
    encoder, front_end = config.model.encoder, config.model.front_end
    language = family_of(config.model.lm).write_config()
    language["vocab_size"] = max(config.model.lm.vocab, vocabulary.first_added_id + vocabulary.num_added)
    stated, _ = FAMILIES[config.model.lm.family]
    sizes: AudioSizes = stated(
        **{key: value for key, value in language.items() if key not in ("architectures", "model_type")},
        audio_encoder=_chosen(encoder, ENCODER) | {"vector_dim": encoder.vector_dim, "mel_bins": front_end.mel_bins},
        audio_transform=_chosen(config.model.transform, TRANSFORM),
        audio_attention=_chosen(config.model.cross_attention, ATTENTION),
        audio_token_id=vocabulary.first_added_id,  # the first of them
    )
    return sizes


def _write_config(config: Config, tokenizer: Tokenizer, folder: Path) -> None:
    stated: Any = exported_config(config, _vocabulary(tokenizer))
    stated.dtype = DTYPES[config.precision]
    stated.bos_token_id, stated.eos_token_id = tokenizer.bos_id, tokenizer.eos_id
    stated.pad_token_id = tokenizer.pad_id
    _, model = FAMILIES[config.model.lm.family]
    stated.architectures = [model.__name__]
    stated.auto_map = {"AutoConfig": _code(type(stated)), "AutoModelForCausalLM": _code(model)}
    stated.auto_map["AutoModelForMultimodalLM"] = _code(model)
    stated.save_pretrained(folder)
    GenerationConfig(
        max_new_tokens=config.evaluation.max_answer_tokens,
        do_sample=False,
        eos_token_id=[tokenizer.end_of_chunk_id, tokenizer.eos_id],
        pad_token_id=tokenizer.pad_id,
        suppress_tokens=tokenizer.never_written(stated.vocab_size),
    ).save_pretrained(folder)


def _code(exported: type) -> str:
    """Where ``from_pretrained`` finds a class."""
    return f"{exported.__module__.rpartition('.')[2]}.{exported.__name__}"


def _vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary(first_added_id=tokenizer.first_added_id, num_added=tokenizer.num_added)


def _chosen(section: Any, keys: tuple[str, ...]) -> dict[str, Any]:
    """As JSON has them."""
    values = {key: getattr(section, key) for key in keys}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def _write_processor(config: Config, tokenizer: Tokenizer, folder: Path) -> None:
    """Tokenizer, feature extractor, chat template, and all code."""
    front_end = config.model.front_end
    extractor = AudioFlamingoFeatureExtractor(
        sampling_rate=front_end.sample_rate,
        max_windows=config.curriculum[config.stage].max_windows,
        **_chosen(front_end, FRONT_END),
    )
    extractor.auto_map = {"AutoFeatureExtractor": _code(AudioFlamingoFeatureExtractor)}
    code = resources.files(huggingface)
    template = chat_template(config, tokenizer)
    processor = AudioFlamingoProcessor(extractor, _exported_tokenizer(config, tokenizer), chat_template=template)
    processor.auto_map = {"AutoProcessor": _code(AudioFlamingoProcessor)}
    processor.save_pretrained(folder)
    for file in code.iterdir():
        if file.name.endswith("_audio_flamingo.py"):
            write(folder / file.name, file.read_text())


def chat_template(config: Config, tokenizer: Tokenizer) -> str:
    """What ``data.templates.render`` writes, in Jinja."""
    style = STYLES[config.data.text_style]
    begin = "" if tokenizer.bos_id is None else OPT_BEGIN * style.begin_tokens
    words = {"begin": begin, "suffix": style.suffix}
    head = "".join(f"{{%- set {name} = {json.dumps(value)} -%}}\n" for name, value in words.items())
    return head + resources.files(huggingface).joinpath("chat_template.jinja").read_text()


def _exported_tokenizer(config: Config, tokenizer: Tokenizer) -> Any:
    """The language model's own with the added tokens as special ones, under the ids that they have here."""
    base = tokenizers.Tokenizer.from_str(tokenizer.base_json())
    base.add_special_tokens(list(tokenizer.added))
    found = {token: base.token_to_id(token) for token in tokenizer.added}
    if found != tokenizer.added:
        raise NotExportable(f"data.tokenizer: expected the added tokens at {tokenizer.added}, they came out at {found}")
    return PreTrainedTokenizerFast(
        tokenizer_object=base,
        bos_token=None if tokenizer.bos_id is None else OPT_BEGIN,
        eos_token=tokenizer.eos,
        pad_token=PAD if PAD in tokenizer.added else OPT_PAD,
        additional_special_tokens=[token for token in tokenizer.added if token != PAD],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=config.model.lm.max_positions,
    )
