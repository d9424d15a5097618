"""Which parameters lie on a rank, by name, without building the decoder.

    weights = rank_weights(config, stage, held)         # canonical name -> elements on one tensor-parallel rank

Names and cuts are those of ``decoder/`` (held to the real model by a test); the audio side is built on torch's meta
device, which holds no memory, so that an encoder of anybody's own counts as well as HTS-AT.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from megatron_af.audio.encoder import encoder_of
from megatron_af.audio.transform import TransformationLayers
from megatron_af.config import Config, LMConfig, LoRAConfig, ModelConfig, StageConfig
from megatron_af.decoder.added_tokens import TokenTable
from megatron_af.decoder.family import family_of
from megatron_af.decoder.layer_spec import has_block
from megatron_af.decoder.lora import CUT_BY_OUTPUT
from megatron_af.decoder.placement import Held

TABLE = "lm.embedding.word_embeddings.weight"
ADDED_TOKENS = 4
"""What ``Tokenizer`` adds behind a vocabulary, about; a row each."""


@dataclass(frozen=True, kw_only=True)
class TextTower:
    """A published text encoder, which a plan does not load."""

    parameters: int
    shape: tuple[int, int, int]
    """Width, layers, heads."""


TEXT_TOWERS = {"google/flan-t5-large": TextTower(parameters=341_231_104, shape=(1024, 24, 16))}
"""By hub name. T5 1.1 large: 24 layers of 12,847,104, a table of 32,128 x 1,024, positions and the last norm."""
GUESSED_TOWER = TextTower(parameters=109_482_240, shape=(768, 12, 12))
"""Of a text encoder that is not listed: BERT base."""


def front_weights(config: Config, stage: StageConfig) -> dict[str, int]:
    """The audio side, whole on every rank: encoder, transformation layers and added rows; or CLAP's two towers."""
    if stage.objective == "contrastive":
        return _encoder(config.model, pretraining=True) | _clap(config.model)
    rows = {"added_rows": ADDED_TOKENS * config.model.lm.hidden}
    return _encoder(config.model, pretraining=False) | _transform(config.model) | rows


def rank_weights(config: Config, stage: StageConfig, held: Held) -> dict[str, int]:
    """The decoder's share of one rank: the layers that it holds, and the tables where it begins or ends the stack."""
    lm, tensor = config.model.lm, config.parallel.tensor
    found: dict[str, int] = {}
    for layer in held.layers:
        at = f"lm.decoder.layers.{layer}"
        found |= {f"{at}.{name}": size for name, size in _layer(config.model, stage.lora, layer, tensor)}
    table = TokenTable.of(lm, lm.vocab, ADDED_TOKENS, tensor_size=tensor, tensor_rank=0)
    tables = {TABLE} if held.first or (held.last and lm.tied) else set[str]()
    tables |= {"lm.output_layer.weight"} if held.last and not lm.tied else set()
    found |= dict.fromkeys(sorted(tables), table.local_rows * lm.hidden)
    for name in family_of(lm).outside_layers:
        if held.last and name.startswith("decoder.final_layernorm."):
            found[f"lm.{name}"] = lm.hidden
        if held.first and name == "position_embeddings.weight":
            found[f"lm.{name}"] = family_of(lm).position_rows * lm.hidden
    return found


def _layer(model: ModelConfig, lora: LoRAConfig | None, layer: int, tensor: int) -> Iterator[tuple[str, int]]:
    lm = model.lm
    gated = bool(family_of(lm).core_settings()["gated_linear_unit"])
    linears = linear_sizes(lm, gated)
    for name in family_of(lm).inside_layers:
        linear = name.split(".")[-2]
        if linear not in linears:  # a norm
            yield name, lm.hidden
            continue
        takes, gives = linears[linear]
        cut_output = linear in CUT_BY_OUTPUT
        if name.endswith("weight"):
            yield name, takes * gives // tensor
        else:
            yield name, gives // tensor if cut_output else gives
    if lora:
        for target in lora.targets:
            takes, gives = linears[target]
            cut_output = target in CUT_BY_OUTPUT
            yield f"lora.{target}.a.weight", takes * lora.rank // (1 if cut_output else tensor)
            yield f"lora.{target}.b.weight", gives * lora.rank // (tensor if cut_output else 1)
    if has_block(model, layer):
        cross = model.cross_attention
        inner = cross.heads * cross.head_dim
        for norm in ("attention_norm", "ffn_norm"):
            yield f"xattn.{norm}.weight", lm.hidden
            yield f"xattn.{norm}.bias", lm.hidden
        yield "xattn.attention.linear_q.weight", lm.hidden * inner // tensor
        yield "xattn.attention.linear_kv.weight", 2 * model.encoder.feature_dim * inner // tensor
        yield "xattn.attention.linear_proj.weight", inner * lm.hidden // tensor
        for linear in ("linear_fc1", "linear_fc2"):
            yield f"xattn.ffn.{linear}.weight", cross.ffn_multiplier * lm.hidden**2 // tensor
        yield "xattn.gate_attn", 1
        yield "xattn.gate_ffn", 1


def linear_sizes(lm: LMConfig, gated: bool) -> dict[str, tuple[int, int]]:
    """What each linear of a layer takes and gives."""
    key_width = lm.hidden // lm.heads * lm.kv_heads
    return {
        "linear_qkv": (lm.hidden, lm.hidden + 2 * key_width),
        "linear_proj": (lm.hidden, lm.hidden),
        "linear_fc1": (lm.hidden, (1 + gated) * lm.ffn),
        "linear_fc2": (lm.ffn, lm.hidden),
    }


def _encoder(model: ModelConfig, *, pretraining: bool) -> dict[str, int]:
    key = repr((model.encoder, model.front_end, pretraining))
    if key not in _BUILT:
        with torch.device("meta"):
            network = encoder_of(model.encoder).build(model.front_end, pretraining=pretraining)
        _BUILT[key] = {f"encoder.{name}": p.numel() for name, p in network.named_parameters()}
        _UNUSED.update(f"encoder.{n}" for n, p in network.named_parameters() if getattr(p, "unused", False))
    return _BUILT[key]


_BUILT: dict[str, dict[str, int]] = {}
"""Settings -> parameters of what has been built: a search asks for the same hundreds of times."""
_UNUSED: set[str] = set()
"""Names of what released weights carry and nothing computes with: it never trains."""


def _transform(model: ModelConfig) -> dict[str, int]:
    key = repr((model.encoder.feature_dim, model.transform))
    if key not in _BUILT:
        with torch.device("meta"):
            layers = TransformationLayers(model.encoder.feature_dim, model.transform)
        _BUILT[key] = {f"transform.{name}": parameter.numel() for name, parameter in layers.named_parameters()}
    return _BUILT[key]


def _clap(model: ModelConfig) -> dict[str, int]:
    """Text tower, projections of both towers, temperature."""
    clap, joint = model.clap, model.clap.joint_dim
    if clap.text_tower:
        published = TEXT_TOWERS.get(clap.text_tower, GUESSED_TOWER)
        tower, width = published.parameters, published.shape[0]
    else:  # BERT: per layer 4 square linears and two to and from 4 x hidden, biases, two norms; tables, pooler
        width, positions = clap.text_hidden, clap.text_max_tokens
        layer = 12 * width**2 + 13 * width
        tower = clap.text_layers * layer + (model.lm.vocab + ADDED_TOKENS + positions + 4) * width
    sizes = [width] if model.encoder.vector else [model.encoder.feature_dim, width]
    projections = sum(size * joint + joint**2 + 2 * joint for size in sizes)
    return {"clap.text.model": tower, "clap.projections": projections} | (
        {"clap.log_scale": 1} if clap.learn_temperature else {}
    )


def learning(weights: dict[str, int], trains: Callable[[str], bool]) -> list[int]:
    """Sizes of the parameters that learn."""
    return [size for name, size in weights.items() if name not in _UNUSED and trains(name)]


def trainable(weights: dict[str, int], trains: Callable[[str], bool]) -> int:
    """Elements that learn."""
    return sum(learning(weights, trains))
