"""What autograd keeps of a forward pass until its backward pass, in bytes, as formulas over the sizes of the model.

    kept = Kept(element=2, tensor=2, sequence=True)
    x = keep_layer(kept, config.model, stage.trains, layer=0, x=True, audio=True, how=How())
    kept.of(Amounts(text=8 * 512, keys=8 * 192))            # of one micro-batch, on one rank

Each line keeps one tensor and says why. The rule (PyTorch, "Autograd mechanics"): a linear keeps its input where its
weight trains; a norm its input and its statistics where a gradient flows through it; fused attention queries, keys,
values, its output and a float32 per query and head; a product of two tensors what the other's gradient asks for. What
is frozen and has nothing trainable below keeps nothing.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from megatron_af.audio.htsat_encoder import IMAGE_SIDE
from megatron_af.config import EncoderConfig, LoRAConfig, ModelConfig, TransformConfig
from megatron_af.decoder.family import family_of
from megatron_af.decoder.layer_spec import has_block
from megatron_af.decoder.lora import CUT_BY_OUTPUT, OWNER
from megatron_af.flops import Amounts, Per

type Trains = Callable[[str], bool]
"""Whether the parameter of a canonical name learns."""

STATISTIC = 4
"""Bytes of a number that stays float32 in every precision: means, deviations, logarithms of sums."""


class Kept:
    """Bytes, linear in :class:`~megatron_af.flops.Amounts`.

    Args:
        element: bytes of a number in the model's precision.
        tensor: tensor-parallel ranks.
        sequence: they cut what they would otherwise all hold, over the positions.
    """

    def __init__(self, element: int, tensor: int = 1, sequence: bool = False) -> None:
        self.element, self.tensor, self._whole = element, tensor, tensor if sequence else 1
        self._per: defaultdict[str, float] = defaultdict(float)

    def whole(self, per: Per, elements: float) -> None:
        """Of the residual stream: on every tensor-parallel rank, or cut over positions."""
        self._per[per] += elements * self.element / self._whole

    def cut(self, per: Per, elements: float) -> None:
        """Of heads, of the feed-forward unit's width, or of the vocabulary."""
        self._per[per] += elements * self.element / self.tensor

    def everywhere(self, per: Per, elements: float) -> None:
        self._per[per] += elements * self.element

    def statistics(self, per: Per, numbers: float, *, cut: bool = False) -> None:
        self._per[per] += numbers * STATISTIC / (self.tensor if cut else self._whole)

    def of(self, amounts: Amounts) -> float:
        return float(sum(each * getattr(amounts, per) for per, each in self._per.items()))


@dataclass(frozen=True, kw_only=True)
class How:
    """What the layers are computed with."""

    fused: bool = False
    """Transformer Engine's layers: norms and units keep less than torch's."""
    kernels: bool = False
    """A GPU's attention: where its bias learns it keeps no scores."""
    text_stretches: bool = False
    audio_stretches: bool = False
    """Attention goes by stretches (``decoder/stretches.py``)."""
    rows: float = 1
    """Of a micro-batch. With one alone positions lie side by side in either order, and nothing is copied for that."""
    recompute: str = "none"
    """``parallel.recompute``."""
    lora: LoRAConfig | None = None
    """Adapters beside the language model's linears."""

    def copies(self, stretches: bool) -> bool:
        """What a linear takes of attention is a copy of what attention keeps: its stretches are put together again,
        or one kernel's output is turned from rows to positions."""
        return stretches and (self.rows > 1 or not self.kernels)


def _norm(
    kept: Kept, trains: Trains, name: str, x: bool, per: Per, width: float, numbers: float = 2, composed: bool = False
) -> bool:
    """A norm: its input and statistics where a gradient flows through it; returns whether one does.

    Args:
        numbers: of statistics.
        composed: it is made of single operations, and keeps what the scale is multiplied with where that learns.
    """
    learns = trains(f"{name}.weight") or trains(f"{name}.bias")
    if x or learns:
        kept.whole(per, width)
        kept.statistics(per, numbers)
    if composed and learns:
        kept.whole(per, width)
    return x or learns


def _language_norm(kept: Kept, model: ModelConfig, trains: Trains, name: str, x: bool, how: How) -> bool:
    """The language model's; without a kernel torch composes RMSNorm."""
    root_mean_square = family_of(model.lm).core_settings()["normalization"] == "RMSNorm"
    composed = root_mean_square and not (how.fused or how.kernels)
    return _norm(kept, trains, name, x, "text", model.lm.hidden, 1 if root_mean_square else 2, composed)


def keep_layer(
    kept: Kept, model: ModelConfig, trains: Trains, layer: int, x: bool, audio: bool, how: How, blocks: bool = True
) -> bool:
    """One decoder layer with the gated block in front; returns whether a gradient flows out.

    Args:
        x, audio: a gradient flows in from the text, from the audio tokens.
        blocks: gated blocks run.
    """
    at, lm = f"lm.decoder.layers.{layer}", model.lm
    inside = Kept(kept.element, kept.tensor, kept._whole > 1) if how.recompute == "full" else kept
    if how.recompute == "full":
        kept.whole("text", lm.hidden)  # the layer's input is all that stays
    if blocks and has_block(model, layer):
        x = _block(inside, model, trains, f"{at}.xattn", x, audio, how)
    return _language_layer(inside, model, trains, at, x, how)


def _block(kept: Kept, model: ModelConfig, trains: Trains, at: str, x: bool, audio: bool, how: How) -> bool:
    hidden, cross = model.lm.hidden, model.cross_attention
    inner = cross.heads * cross.head_dim

    y = _norm(kept, trains, f"{at}.attention_norm", x, "text", hidden)
    if trains(f"{at}.attention.linear_q.weight"):
        kept.whole("text", hidden)
    query = y or trains(f"{at}.attention.linear_q.weight")
    key = audio or trains(f"{at}.attention.linear_kv.weight")
    if query or key:
        kept.cut("text", 2 * inner)  # queries, output
        kept.cut("keys", 2 * inner)  # keys, values
        kept.statistics("text", cross.heads, cut=True)
    elif trains(f"{at}.attention.linear_proj.weight"):
        kept.cut("text", inner)
    y = query or key or trains(f"{at}.attention.linear_proj.weight")
    if y and how.copies(how.audio_stretches) and trains(f"{at}.attention.linear_proj.weight"):
        kept.cut("text", inner)
    if trains(f"{at}.gate_attn"):
        kept.whole("text", hidden)
    x = x or y or trains(f"{at}.gate_attn")
    y = _norm(kept, trains, f"{at}.ffn_norm", x, "text", hidden)
    if trains(f"{at}.ffn.linear_fc1.weight"):
        kept.whole("text", hidden)
    y = y or trains(f"{at}.ffn.linear_fc1.weight")
    if y:
        kept.cut("text", cross.ffn_multiplier * hidden)  # what GELU takes
    if trains(f"{at}.ffn.linear_fc2.weight"):
        kept.cut("text", cross.ffn_multiplier * hidden)  # what it gives
    y = y or trains(f"{at}.ffn.linear_fc2.weight")
    if trains(f"{at}.gate_ffn"):
        kept.whole("text", hidden)
    return x or y or trains(f"{at}.gate_ffn")


def _language_layer(kept: Kept, model: ModelConfig, trains: Trains, at: str, x: bool, how: How) -> bool:
    lm, family = model.lm, family_of(model.lm)
    settings, rotary = family.core_settings(), not family.position_rows
    gated = bool(settings["gated_linear_unit"])

    def takes(target: str, width: float, *, held: bool = False) -> bool:
        """A linear and its adapter: its input, where a weight that it is multiplied with trains.

        Args:
            held: somebody else keeps it.
        """
        name, cut_by_output = f"{OWNER[target]}.{target}", target in CUT_BY_OUTPUT
        keep = kept.whole if cut_by_output else kept.cut
        y = trains(f"{at}.{name}.weight") or trains(f"{at}.{name}.bias")
        if by_itself(target) and not held:
            keep("text", width)
        if how.lora and target in how.lora.targets:
            a, b = (trains(f"{at}.lora.{target}.{matrix}.weight") for matrix in "ab")
            if a and how.lora.dropout:  # what is left of the input, and a byte or a factor for each number
                keep("text", width * (1 + (1 / kept.element if how.kernels else 1)))
            if b:
                (kept.everywhere if cut_by_output else kept.whole)("text", how.lora.rank)
            y = y or a or b
        return y

    def by_itself(target: str) -> bool:
        """The input as it comes is multiplied with a weight that trains, an adapter's where it drops nothing."""
        if trains(f"{at}.{OWNER[target]}.{target}.weight"):
            return True
        adapts = how.lora is not None and target in how.lora.targets and not how.lora.dropout
        return adapts and trains(f"{at}.lora.{target}.a.weight")

    y = _language_norm(kept, model, trains, f"{at}.input_layernorm", x, how)
    y = takes("linear_qkv", lm.hidden) or y
    head_dim = lm.hidden // lm.heads
    groups = head_dim * lm.kv_heads
    learns = by_itself("linear_proj")
    if y and rotary and (how.rows == 1 or not how.text_stretches):
        kept.cut("text", lm.hidden + groups)  # values are a part of the projection's output, which stays whole
    if y and rotary and not how.fused:
        kept.everywhere("text", 4 * head_dim / how.rows)  # cosines and sines, of queries and of keys
    if y and how.recompute == "selective":
        kept.cut("text", lm.hidden + 2 * groups)  # attention is computed again from these
        kept.cut("text", lm.hidden * learns)
    elif y:
        kept.cut("text", 2 * lm.hidden + 2 * groups + lm.hidden * (learns and how.copies(how.text_stretches)))
        kept.statistics("text", lm.heads, cut=True)
    elif learns:
        kept.cut("text", lm.hidden)
    y = takes("linear_proj", lm.hidden, held=True) or y
    x = x or y
    y = _language_norm(kept, model, trains, f"{at}.pre_mlp_layernorm", x, how)
    y = takes("linear_fc1", lm.hidden) or y
    if y and gated:
        kept.cut("text", 2 * lm.ffn if how.fused else 4 * lm.ffn)  # gate and up; torch: both halves of the product
    elif y:
        kept.cut("text", lm.ffn)  # ReLU keeps what it gives, which the next linear takes
    y = takes("linear_fc2", lm.ffn, held=y and not gated) or y
    return x or y


def keep_head(kept: Kept, model: ModelConfig, trains: Trains, rows: int, x: bool, how: How) -> None:
    """The final norm, and the losses of the supervised positions.

    Args:
        rows: of the table, padded, over all tensor-parallel ranks.
    """
    lm = model.lm
    _language_norm(kept, model, trains, "lm.decoder.final_layernorm", x, how)
    kept.everywhere("supervised", lm.hidden)  # gathered over the positions
    kept.statistics("supervised", rows, cut=True)  # softmax, in float32


def keep_transform(kept: Kept, config: TransformConfig, trains: Trains, width: int, x: bool) -> bool:
    """The transformation layers, whose ranks share no clip; returns whether a gradient flows into the audio tokens."""
    x = _norm(kept, trains, "transform.layer_norm", x, "clip_tokens", width)
    for layer in range(config.layers):
        at = f"transform.layers.{layer}"
        learns = {name: trains(f"{at}.{name}.weight") for name in ("query", "key", "value", "output")}
        learns |= {name: trains(f"{at}.{name}.weight") for name in ("ffn_in", "ffn_out")}
        if learns["query"] or learns["key"] or learns["value"]:
            kept.everywhere("clip_tokens", width)
        y = x or learns["query"] or learns["key"] or learns["value"]
        if y:
            kept.everywhere("clip_tokens", 4 * width)  # queries, keys, values, output
            kept.statistics("clip_tokens", config.heads)
        if learns["output"]:
            kept.everywhere("clip_tokens", width)  # the output again, its heads side by side
        x = _norm(kept, trains, f"{at}.attention_norm", x or y or learns["output"], "clip_tokens", width)
        if learns["ffn_in"]:
            kept.everywhere("clip_tokens", width)
        y = x or learns["ffn_in"] or trains(f"{at}.ffn_in.bias")
        if y or learns["ffn_out"]:
            kept.everywhere("clip_tokens", config.ffn)  # what ReLU gives
        x = _norm(kept, trains, f"{at}.ffn_norm", x or y or learns["ffn_out"], "clip_tokens", width)
    return x


def keep_encoder(kept: Kept, config: EncoderConfig, trains: Trains, mel: int, how: How) -> bool:
    """HTS-AT for a window; of another encoder nothing is known but what it gives. Returns whether a gradient flows.

    Args:
        mel: numbers of a mel window.
    """
    if config.kind != "htsat":
        return trains("encoder.weight")
    x = trains("encoder.bn0.weight") or trains("encoder.bn0.bias")
    if x:
        kept.statistics("windows", mel)
    if trains("encoder.patch_embed.proj.weight"):
        kept.everywhere("windows", IMAGE_SIDE**2)
    width, rows = config.embed_dim, IMAGE_SIDE // config.patch_size
    x = x or trains("encoder.patch_embed.proj.weight") or trains("encoder.patch_embed.proj.bias")
    x = _norm(kept, trains, "encoder.patch_embed.norm", x, "windows", rows**2 * width, 2 * rows**2)
    x = x or (config.absolute_positions and trains("encoder.absolute_pos_embed"))
    for i, depth in enumerate(config.depths):
        for j in range(depth):
            inside = Kept(kept.element) if config.recompute else kept
            if config.recompute:
                kept.everywhere("windows", rows**2 * width)
            at = f"encoder.layers.{i}.blocks.{j}"
            x = keep_encoder_block(inside, config, trains, at, x, rows, width, config.heads[i], how)
        if i + 1 < len(config.depths):
            at = f"encoder.layers.{i}.downsample"
            x = _norm(kept, trains, f"{at}.norm", x, "windows", rows**2 * width, rows**2 // 2)
            if trains(f"{at}.reduction.weight"):
                kept.everywhere("windows", rows**2 * width)
            x = x or trains(f"{at}.reduction.weight")
            width, rows = 2 * width, rows // 2
    return _norm(kept, trains, "encoder.norm", x, "windows", rows**2 * width, 2 * rows**2)


def keep_encoder_block(
    kept: Kept, config: EncoderConfig, trains: Trains, at: str, x: bool, rows: int, width: int, heads: int, how: How
) -> bool:
    patches, side = rows**2, min(config.window_size, rows)
    size = patches * width

    def linear(name: str, wide: float) -> bool:
        if trains(f"{at}.{name}.weight"):
            kept.everywhere("windows", wide)
        return trains(f"{at}.{name}.weight") or trains(f"{at}.{name}.bias")

    y = _norm(kept, trains, f"{at}.norm1", x, "windows", size, 2 * patches)
    y = linear("attn.qkv", size) or y
    bias = trains(f"{at}.attn.relative_position_bias_table")
    if bias and not how.kernels:
        kept.everywhere("windows", 5 * size + heads * patches * side**2)  # without a kernel: the scores themselves
    elif y or bias:
        kept.everywhere("windows", 4 * size)
        kept.statistics("windows", heads * patches)
    y = linear("attn.proj", size) or y or bias
    x = x or y
    y = _norm(kept, trains, f"{at}.norm2", x, "windows", size, 2 * patches)
    y = linear("mlp.fc1", size) or y
    if y:
        kept.everywhere("windows", config.mlp_ratio * size)
    return linear("mlp.fc2", config.mlp_ratio * size) or y or x
