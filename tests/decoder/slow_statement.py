"""What a row says, what each of its tokens hears and what it costs, stated slowly and obviously in float64.

    for tokens in said(row, tokenizer, style, immediate=False):          # one list for each segment
        losses = losses_of(tokens, audio, weights, model, first_added)

Nothing here is taken from the product but tensors by their canonical names: templates are written out again (AF1
data/data.py, AF2 data/data.py), every token is looked at by itself, and a segment never learns that there are others.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megatron_af.config import ModelConfig
from megatron_af.data.rows import Row
from megatron_af.data.templates import TextStyle
from megatron_af.text.tokenizer import Tokenizer

type Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Token:
    id: int
    learnt: bool
    hears: tuple[int, ...]
    """Of the row's audios."""


def said(row: Row, tokenizer: Tokenizer, style: TextStyle, *, immediate: bool) -> list[list[Token]]:
    """The row's segments."""
    if row.template == "single":
        texts = [_single(row, number, tokenizer, style) for number in range(len(row.questions))]
    else:
        texts = [(_dialogue if row.template == "dialogue" else _examples)(row, tokenizer, style)]
    return [_tokens(pieces, row, tokenizer, immediate) for pieces in texts]


type _Said = list[tuple[str | int, bool]]
"""Texts and special tokens, each with whether it is learnt."""


def _begin(tokenizer: Tokenizer, style: TextStyle) -> _Said:
    return [] if tokenizer.bos_id is None else [(tokenizer.bos_id, False)] * style.begin_tokens


def _answered(prompt: str, output: str, tokenizer: Tokenizer) -> _Said:
    return [(prompt, False), (tokenizer.separator_id, False), (output, True), (tokenizer.end_of_chunk_id, True)]


def _single(row: Row, number: int, tokenizer: Tokenizer, style: TextStyle) -> _Said:
    question = row.questions[number]
    return [
        *_begin(tokenizer, style),
        *[(tokenizer.audio_id, False)] * len(row.clips),
        *_answered(question.prompt + style.suffix, question.output, tokenizer),
        (tokenizer.eos_id, True),
    ]


def _examples(row: Row, tokenizer: Tokenizer, style: TextStyle) -> _Said:
    pieces = _begin(tokenizer, style)
    pieces.append(("Here are random examples. " if "random" in row.template else "Here are similar examples. ", False))
    for question in row.questions:
        pieces.append((tokenizer.audio_id, False))
        pieces += _answered(question.prompt + style.suffix, question.output, tokenizer)
    return [*pieces, (tokenizer.eos_id, True)]


def _dialogue(row: Row, tokenizer: Tokenizer, style: TextStyle) -> _Said:
    pieces = [*_begin(tokenizer, style), ("The task is dialog. ", False)]
    pieces += [(tokenizer.audio_id, False)] * len(row.clips)
    for turn in row.questions:
        pieces += _answered(f"user: {turn.prompt} \nassistant: ", turn.output, tokenizer)
        pieces += [(tokenizer.eos_id, True), ("\n", False)]
    return pieces


def _tokens(pieces: _Said, row: Row, tokenizer: Tokenizer, immediate: bool) -> list[Token]:
    tokens: list[Token] = []
    heard = 0
    for piece, learnt in pieces:
        for token in tokenizer.encode(piece) if isinstance(piece, str) else [piece]:
            heard += token == tokenizer.audio_id
            latest = max(heard - 1, 0)
            hears = () if not row.clips else (latest,) if immediate else tuple(range(latest + 1))
            tokens.append(Token(token, learnt, hears))
    return tokens


def losses_of(
    tokens: Sequence[Token],
    audio: Sequence[Floats],
    weights: Mapping[str, Floats],
    rows: Floats,
    model: ModelConfig,
) -> list[float]:
    """Of an OPT with gated blocks: what each learnt token costs, in order.

    Args:
        audio: tokens (L, D) of each of the row's audios.
        rows: of the added tokens, which begin behind the table.
    """
    lm, cross, table = model.lm, model.cross_attention, weights["lm.embedding.word_embeddings.weight"]
    table = np.concatenate([table, rows])
    x = [table[token.id] + weights["lm.position_embeddings.weight"][2 + place] for place, token in enumerate(tokens)]
    for layer in range(lm.layers):
        at = f"lm.decoder.layers.{layer}."
        own = {name.removeprefix(at): value for name, value in weights.items() if name.startswith(at)}
        if (layer + 1) % cross.interval == 0:
            heard = [[audio[place] for place in token.hears] for token in tokens]
            x = [_block(x_t, heard_t, own, cross.heads) for x_t, heard_t in zip(x, heard, strict=True)]
        x = _layer(x, own, lm.heads, lm.norm_eps)
    costs = []
    for x_t, following in zip(x[:-1], tokens[1:], strict=True):
        if following.learnt:
            last = _norm(x_t, weights, "lm.decoder.final_layernorm", lm.norm_eps)
            scores = table @ last
            costs.append(float(np.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores[following.id]))
    return costs


def _norm(x: Floats, own: Mapping[str, Floats], name: str, eps: float) -> Floats:
    return (x - x.mean()) / np.sqrt(x.var() + eps) * own[f"{name}.weight"] + own[f"{name}.bias"]


def _attend(query: Floats, keys: Sequence[Floats], values: Sequence[Floats]) -> Floats:
    scores = np.array([query @ key for key in keys]) / math.sqrt(len(query))
    shares = np.exp(scores - scores.max())
    return (shares / shares.sum()) @ np.array(values)


def _block(x: Floats, audio: Sequence[Floats], own: Mapping[str, Floats], heads: int) -> Floats:
    if audio:
        query = own["xattn.attention.linear_q.weight"] @ _norm(x, own, "xattn.attention_norm", 1e-5)
        # Of each head its keys, then its values.
        projection = own["xattn.attention.linear_kv.weight"]
        both = [(projection @ token).reshape(heads, 2, -1) for token in np.concatenate(audio)]
        query = query.reshape(heads, -1)
        attended = [_attend(query[h], [kv[h, 0] for kv in both], [kv[h, 1] for kv in both]) for h in range(heads)]
        written = own["xattn.attention.linear_proj.weight"] @ np.concatenate(attended)
        x = x + np.tanh(own["xattn.gate_attn"]) * written
    inner = own["xattn.ffn.linear_fc1.weight"] @ _norm(x, own, "xattn.ffn_norm", 1e-5)
    inner = np.array([0.5 * value * (1 + math.erf(value / math.sqrt(2))) for value in inner])
    result: Floats = x + np.tanh(own["xattn.gate_ffn"]) * (own["xattn.ffn.linear_fc2.weight"] @ inner)
    return result


def _layer(x: list[Floats], own: Mapping[str, Floats], heads: int, eps: float) -> list[Floats]:
    def linear(name: str, value: Floats) -> Floats:
        result: Floats = own[f"{name}.weight"] @ value + own[f"{name}.bias"]
        return result

    # Of each head its query, its key, its value.
    fused = [linear("self_attention.linear_qkv", _norm(x_t, own, "input_layernorm", eps)) for x_t in x]
    fused = [value.reshape(heads, 3, -1) for value in fused]
    after = []
    for place, x_t in enumerate(x):
        before = fused[: place + 1]
        attended = [
            _attend(fused[place][head, 0], [f[head, 1] for f in before], [f[head, 2] for f in before])
            for head in range(heads)
        ]
        x_t = x_t + linear("self_attention.linear_proj", np.concatenate(attended))
        inner = np.maximum(linear("mlp.linear_fc1", _norm(x_t, own, "pre_mlp_layernorm", eps)), 0)
        after.append(x_t + linear("mlp.linear_fc2", inner))
    return after
