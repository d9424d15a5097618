"""Released Audio Flamingo weights, read into any layout of ours and written back.

    weights = ReleasedFolder("audio-flamingo-2/safe_ckpt")      # metadata.json and model_chunk_*.safetensors
    load_released(model, weights.source, config.model, vocabulary)
    tensors = released_tensors(gather_global(model.chunks, model.front), config.model)
    weights = ReleasedFile(path, pickled_weights(path))         # Audio Flamingo 1's foundation.pt, chat.pt

A released file repeats tensors under the names of modules that the published code reaches by several paths. The
table of token embeddings ends with the rows of the added tokens; ours keeps those apart (``added_rows``), so
``model.lm.vocab`` is the number of rows before them (151,665 for Audio Flamingo 2).

Names: ``src/flamingo.py``, ``flamingo_lm.py`` and ``helpers.py`` of the branch audio_flamingo_2. Shapes: H hidden,
E keys and values of all heads, D audio width.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_af.config import CrossAttentionConfig, LMConfig, ModelConfig
from megatron_af.convert.language import Sliceable, Source, hugging_face_names, read_part, split_whole
from megatron_af.convert.shards import Held, open_weights
from megatron_af.decoder.family import LanguageFamily, family_of
from megatron_af.foreign import ForeignError, read_json
from megatron_af.model import AudioFlamingo, AudioFront, Vocabulary
from megatron_af.parallel.global_state import EMBEDDING, Placement, fill, placements


@dataclass(frozen=True, kw_only=True)
class Release:
    """What the published checkpoints call what both Audio Flamingos have."""

    transform: str
    block: str
    """In front of a layer of the language model."""


RELEASES = {
    "opt": Release(transform="audio_transformer", block="gated_cross_attn_layer"),
    "qwen2": Release(transform="audio_transformer_clap", block="gated_cross_attn_layer_sound"),
}
"""By ``model_type`` of the language model: Audio Flamingo 1 and 2."""
ENCODERS = ("clap.nvclap.", "clap.afclap.")
"""Prefix of the encoder in the published inference code, and in its training code."""
TRANSFORM = {
    "query": "slf_attn.w_qs",
    "key": "slf_attn.w_ks",
    "value": "slf_attn.w_vs",
    "output": "slf_attn.fc",
    "attention_norm": "slf_attn.layer_norm",
    "ffn_in": "pos_ffn.w_1",
    "ffn_out": "pos_ffn.w_2",
    "ffn_norm": "pos_ffn.layer_norm",
}
GATED_BLOCK = {
    "gate_attn": "attn_gate",
    "gate_ffn": "ff_gate",
    "attention_norm.weight": "attn.norm.weight",
    "attention_norm.bias": "attn.norm.bias",
    "attention.linear_q.weight": "attn.to_q.weight",
    "attention.linear_kv.weight": "attn.to_kv.weight",
    "attention.linear_proj.weight": "attn.to_out.weight",
    "ffn_norm.weight": "ff.0.weight",
    "ffn_norm.bias": "ff.0.bias",
    "ffn.linear_fc1.weight": "ff.1.weight",
    "ffn.linear_fc2.weight": "ff.3.weight",
}
ADDED_ROWS = "added_rows"


def released_names(name: str, lm: LMConfig) -> tuple[str, ...]:
    """Released names of the tensors that one of ours (canonical name) is made of.

    The encoder's come with the first of ``ENCODERS``; added rows are the end of the embedding table.

    Raises:
        ValueError: no Audio Flamingo was released with such a language model.
    """
    family = family_of(lm)
    if family.model_type not in RELEASES:
        known = " and ".join(RELEASES)
        raise ValueError(f"model.lm.family = {lm.family}: Audio Flamingo was released with {known} alone")
    release = RELEASES[family.model_type]
    if name.startswith("encoder."):
        return (ENCODERS[0] + name.removeprefix("encoder."),)
    if name.startswith("transform.layer_norm."):
        return (f"{release.transform}." + name.removeprefix("transform."),)
    layer = re.fullmatch(r"transform\.layers\.(\d+)\.(\w+)\.(weight|bias)", name)
    if layer:
        return (f"{release.transform}.layer_stack.{layer[1]}.{TRANSFORM[layer[2]]}.{layer[3]}",)
    block = re.fullmatch(r"lm\.decoder\.layers\.(\d+)\.xattn\.(.+)", name)
    if block:
        return (f"lang_encoder.{family.layer_prefix}.{block[1]}.{release.block}.{GATED_BLOCK[block[2]]}",)
    if name == ADDED_ROWS:
        name = EMBEDDING
    return tuple(_in_flamingo(part, family) for part in hugging_face_names(name, family))


def aliases(name: str) -> tuple[str, ...]:
    """Other names under which a released file may hold the tensor called ``name``."""
    for encoder in ENCODERS[1:]:
        if name.startswith(ENCODERS[0]):
            return (encoder + name.removeprefix(ENCODERS[0]),)
    layer = re.fullmatch(r"lang_encoder\.model\.(?:decoder\.)?layers\.(\d+)\.(\w+)\.(.+)", name)
    if layer:
        lists = {"decoder_layer": "old_decoder_blocks"}
        lists |= {release.block: release.block.replace("_layer", "_layers") for release in RELEASES.values()}
        return (f"lang_encoder.{lists[layer[2]]}.{layer[1]}.{layer[3]}",)
    return ("lang_encoder.lm_head.weight",) if name.endswith(".embed_tokens.weight") else ()


def _in_flamingo(name: str, family: LanguageFamily) -> str:
    """Released name of one of the language model's tensors."""
    return "lang_encoder." + re.sub(rf"^({re.escape(family.layer_prefix)}\.\d+\.)", r"\1decoder_layer.", name)


def load_released(
    model: AudioFlamingo, source: Source, config: ModelConfig, vocabulary: Vocabulary, *, encoder: bool = True
) -> None:
    """Fill every parameter and statistic of this rank.

    Args:
        source: from a released name to its tensor; a state dict's ``__getitem__`` is one.
        encoder: False leaves the encoder as it is.

    Raises:
        ValueError: the configuration describes another model.
        ForeignError: a tensor is missing, or of another shape.
    """
    table = source(released_names(EMBEDDING, config.lm)[0])
    rows = table.shape[0]
    if config.lm.vocab + vocabulary.num_added != rows or vocabulary.first_added_id != config.lm.vocab:
        raise ValueError(
            f"the released table has {rows} rows, the last {vocabulary.num_added} of added tokens: expected "
            f"model.lm.vocab = {rows - vocabulary.num_added}, got {config.lm.vocab}, and a data.tokenizer that adds "
            f"its tokens from there on, got {vocabulary.first_added_id}"
        )
    for chunk in model.chunks:
        for placement, parameter in placements(chunk):
            fill(parameter, placement, _decoder_part(placement, config, source, vocabulary.num_added))
    assert isinstance(model.front, AudioFront)
    load_front(model.front, source, config.lm, encoder=encoder)
    with torch.no_grad():
        model.front.added_rows.copy_(table[vocabulary.first_added_id :])


def load_front(front: AudioFront, source: Source, lm: LMConfig, *, encoder: bool = True) -> None:
    """Fill transformation layers and encoder, its running statistics included."""
    with torch.no_grad():
        for name, tensor in front.state_dict(keep_vars=True).items():
            if name != ADDED_ROWS and (encoder or not name.startswith("encoder.")):
                value = source(released_names(name, lm)[0])[...]
                if value.shape != tensor.shape:
                    raise ValueError(
                        f"{name}: expected shape {tuple(tensor.shape)} from the configuration, the released weights "
                        f"have {tuple(value.shape)}; check model.encoder and model.transform"
                    )
                tensor.copy_(value)


def _decoder_part(placement: Placement, config: ModelConfig, source: Source, added: int) -> Tensor:
    if ".xattn." not in placement.name:
        family = family_of(config.lm)
        return read_part(placement, config.lm, lambda name: source(_in_flamingo(name, family)), rows_behind=added)
    whole = source(released_names(placement.name, config.lm)[0])[...]
    if placement.name.endswith("linear_kv.weight") and whole.shape == placement.shape:
        whole = _kv_by_head(whole, config.cross_attention)
    return placement.take(whole)


def _kv_by_head(kv_ED: Tensor, config: CrossAttentionConfig) -> Tensor:
    """All keys, then all values -> for each head its keys, then its values."""
    heads = kv_ED.view(2, config.heads, config.head_dim, -1).transpose(0, 1)
    return heads.flatten(0, 2)


def _kv_by_kind(kv_ED: Tensor, config: CrossAttentionConfig) -> Tensor:
    heads = kv_ED.view(config.heads, 2, config.head_dim, -1).transpose(0, 1)
    return heads.flatten(0, 2)


def released_tensors(weights: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Whole tensors under canonical names (also gradients) as the released files lay them out, each once."""
    released: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if name != ADDED_ROWS:
            parts = _split(name, tensor, config)
            released |= dict(zip(released_names(name, config.lm), parts, strict=True))
    if ADDED_ROWS in weights:
        (table,) = released_names(EMBEDDING, config.lm)
        released[table] = torch.cat([released[table], weights[ADDED_ROWS].to(released[table])])
    return released


def _split(name: str, tensor: Tensor, config: ModelConfig) -> tuple[Tensor, ...]:
    if name.endswith(".linear_kv.weight"):
        return (_kv_by_kind(tensor, config.cross_attention),)
    in_decoder = name.startswith("lm.") and ".xattn." not in name
    return split_whole(name, tensor, config.lm) if in_decoder else (tensor,)


def wanted_names(model: AudioFlamingo, lm: LMConfig, *, encoder: bool = True) -> list[str]:
    """Released names of the tensors that this rank's part of the model is filled from."""
    ours = [placement.name for chunk in model.chunks for placement, _ in placements(chunk)]
    ours += [name for name in model.front.state_dict() if encoder or not name.startswith("encoder.")]
    return list(dict.fromkeys(part for name in ours for part in released_names(name, lm)))


JUNE_2025, MARCH_2025 = "epoch_16.pt", "epoch_15.pt"
"""The encoder's file beside a ``safe_ckpt`` (``clap_ckpt/``), by whose name the two releases are told apart."""


def release_problem(safe_ckpt: Path, max_hz: float) -> str:
    """Why weights of Audio Flamingo 2 are not for this project, or not for this front end; empty: they are.

    The release of March 2025 hears mel filters up to 14,000 Hz and turns rotary positions over the heads instead of
    over the tokens (its code until the 25th of June): neither is computed here.
    """
    beside = safe_ckpt.resolve().parent / "clap_ckpt"
    if (beside / MARCH_2025).exists() and not (beside / JUNE_2025).exists():
        return (
            f"{safe_ckpt} is the release of March 2025 ({MARCH_2025}), whose rotary positions run over the heads: "
            f"expected the one of June 2025, with {JUNE_2025}; fetch that"
        )
    if max_hz != 8_000:
        return f"model.front_end.max_hz = {max_hz:g}: Audio Flamingo 2 of June 2025 hears up to 8000 Hz; set it to that"
    return ""


class ReleasedFile:
    """A checkpoint as the published code trains and loads it, and as Audio Flamingo 1 was released: one pickle.

    It holds no encoder of ours: that of Audio Flamingo 1 is frozen and comes in by its own file.

    Raises:
        ValueError: it holds no Audio Flamingo, or more than tensors.
    """

    def __init__(self, path: Path, weights: Mapping[str, Tensor]) -> None:
        self.place, self._weights = path, weights

    @staticmethod
    def holds(weights: Mapping[str, Tensor]) -> bool:
        return any(name.startswith("lang_encoder.") for name in weights)

    @property
    def keys(self) -> list[str]:
        """Of all tensors but the encoder's, aliases included."""
        return [name for name in self._weights if not name.startswith("clap.")]

    def source(self, name: str) -> Sliceable:
        """A tensor by its released name, or by an alias where the file only has that."""
        found = _held_name(self._weights, name, self.place)
        return Held(self.place, found, self._weights[found])


def _held_name(held: Mapping[str, Any], name: str, place: Path) -> str:
    found = next((known for known in (name, *aliases(name)) if known in held), None)
    if found is None:
        raise ForeignError(f"{place} holds no {name}: fetch it again")
    return found


class ReleasedFolder:
    """``safe_ckpt`` of Audio Flamingo 2: ``metadata.json`` names the chunks, each a safetensors file.

    Raises:
        FileNotFoundError: the folder lacks the metadata or one of its chunks.
    """

    def __init__(self, folder: str | Path) -> None:
        self.place = Path(folder)
        metadata = self.place / "metadata.json"
        if not metadata.is_file():
            raise FileNotFoundError(f"expected a safe_ckpt folder with metadata.json, got {self.place}")
        self._file_of: dict[str, Any] = {}
        chunks = read_json(metadata)
        if not isinstance(chunks, list | dict) or not all(isinstance(c, str) and Path(c).name == c for c in chunks):
            raise ForeignError(f"{metadata} does not name the chunks of a release")
        for chunk in chunks:
            path = self.place / f"{chunk}.safetensors"
            if not path.is_file():
                raise FileNotFoundError(f"{metadata} names {path.name}, which is missing: fetch it again")
            file = open_weights(path)
            if twice := sorted(self._file_of.keys() & set(file.keys())):
                raise ForeignError(f"{path} holds {twice[0]}, as a chunk before it does: fetch all of them again")
            self._file_of |= dict.fromkeys(file.keys(), file)

    @property
    def keys(self) -> list[str]:
        """Of all tensors, aliases included."""
        return list(self._file_of)

    def source(self, name: str) -> Sliceable:
        """A tensor by its released name, or by an alias where the file only has that."""
        found = _held_name(self._file_of, name, self.place)
        return Held(self.place, found, self._file_of[found].get_slice(found))
