"""The decoder's matrix products and attention, as ``megatron_af.flops`` counts them.

features = encoder_of(model.encoder).tally(tally)
audio = tally_transform(tally, features, model.encoder.feature_dim, model.transform)
tally_decoder(tally, model, audio)
"""

import re
from collections.abc import Callable

from megatron_af.config import LoRAConfig, ModelConfig
from megatron_af.decoder.family import family_of
from megatron_af.decoder.layer_spec import has_block
from megatron_af.flops import Per, Tally

ADAPTED = re.compile(r"(lm\.decoder\.layers\.\d+)\.(?:self_attention|mlp)\.(\w+)")
"""A linear that an adapter may stand beside: its layer and its name."""


class TallyWithAdapters(Tally):
    """Tells with each linear that has one its adapter (``decoder/lora.py``), too."""

    def __init__(self, trains: Callable[[str], bool], lora: LoRAConfig, hidden: int) -> None:
        super().__init__(trains)
        self._lora, self._hidden = lora, hidden

    def linear(
        self, x: bool, name: str, size: float, per: Per, *, bias: bool = False, input_always: bool = False
    ) -> bool:
        y = super().linear(x, name, size, per, bias=bias, input_always=input_always)
        found = ADAPTED.fullmatch(name)
        if found is None or found[2] not in self._lora.targets:
            return y
        # Each of them takes or gives the hidden size.
        taken, given = float(self._hidden), size / self._hidden
        if found[2] == "linear_fc2":
            taken, given = given, taken
        at = f"{found[1]}.lora.{found[2]}"
        h = super().linear(x, f"{at}.a", taken * self._lora.rank, per)
        return super().linear(h, f"{at}.b", self._lora.rank * given, per) or y


def tally_decoder(tally: Tally, model: ModelConfig, audio: bool, *, blocks: bool = True) -> None:
    """The products of layers, gated blocks and output layer.

    Args:
        audio: a gradient flows into the audio tokens.
        blocks: the gated blocks run (False: they are left out, frozen with closed gates).
    """
    x = tally_tables(tally, model)
    for layer in range(model.lm.layers):
        x = tally_layer(tally, model, layer, x, audio, blocks=blocks)
    tally_head(tally, model, tally.passes(x, *_last_norm(model)))


def tally_tables(tally: Tally, model: ModelConfig) -> bool:
    """Whether a gradient flows into what the first layer is given: tables and added rows multiply nothing there."""
    beside = (*_last_norm(model), "lm.output_layer.weight")
    tables = [f"lm.{name}" for name in family_of(model.lm).outside_layers if f"lm.{name}" not in beside]
    return tally.passes(False, *tables, "added_rows")


def _last_norm(model: ModelConfig) -> list[str]:
    outside = [f"lm.{name}" for name in family_of(model.lm).outside_layers]
    return [name for name in outside if name.startswith("lm.decoder.final_layernorm.")]


def tally_layer(tally: Tally, model: ModelConfig, layer: int, x: bool, audio: bool, *, blocks: bool = True) -> bool:
    """The products of one layer with the gated block in front of it; returns whether a gradient flows out.

    Args:
        x: one flows in from the text.
        audio, blocks: as in :func:`tally_decoder`.
    """
    at = f"lm.decoder.layers.{layer}"
    if blocks and has_block(model, layer):
        x = _gated_block(tally, x, audio, f"{at}.xattn", model)
    return family_of(model.lm).tally(tally, x, at)


def tally_head(tally: Tally, model: ModelConfig, x: bool) -> None:
    """The output layer's product."""
    lm = model.lm
    table = "lm.embedding.word_embeddings" if lm.tied else "lm.output_layer"
    tally.linear(x, table, lm.hidden * lm.vocab, "supervised")


def _gated_block(tally: Tally, x: bool, audio: bool, at: str, model: ModelConfig) -> bool:
    lm, cross = model.lm, model.cross_attention
    inner, ffn = cross.heads * cross.head_dim, cross.ffn_multiplier * lm.hidden
    y = tally.passes(x, f"{at}.attention_norm.weight", f"{at}.attention_norm.bias")
    query = tally.linear(y, f"{at}.attention.linear_q", lm.hidden * inner, "text")
    # megatron-core's linear computes its input's gradient even where the audio side is frozen and nobody wants it.
    size = 2 * model.encoder.feature_dim * inner
    key_value = tally.linear(audio, f"{at}.attention.linear_kv", size, "keys", input_always=True)
    y = tally.attention(query, key_value, key_value, inner, "audio_scores")
    y = tally.linear(y, f"{at}.attention.linear_proj", inner * lm.hidden, "text")
    x = tally.passes(x or y, f"{at}.gate_attn")
    y = tally.passes(x, f"{at}.ffn_norm.weight", f"{at}.ffn_norm.bias")
    for part in ("linear_fc1", "linear_fc2"):
        y = tally.linear(y, f"{at}.ffn.{part}", lm.hidden * ffn, "text")
    return tally.passes(x or y, f"{at}.gate_ffn")
