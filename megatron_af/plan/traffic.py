"""What a rank sends in a step: every collective by why, kind, ranks, calls and bytes.

    for each in traffic(case, stage, load):
        each.why, each.kind, each.ranks, each.calls, each.bytes, each.sent

Collectives of one rank and sums of a few numbers (tokens, losses, the norm) are left out. docs/parallelism.md derives
the lines, and ``tests/plan/test_traffic.py`` counts them in training steps.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from megatron_af.audio.encoder import encoder_of
from megatron_af.audio.transform import tally_transform
from megatron_af.decoder.added_tokens import TokenTable
from megatron_af.decoder.layer_spec import has_block
from megatron_af.decoder.operations import tally_tables
from megatron_af.flops import Tally
from megatron_af.plan.case import Case
from megatron_af.plan.load import Load
from megatron_af.plan.memory import GRADIENT
from megatron_af.plan.weights import ADDED_TOKENS, TABLE

type Kind = Literal["all-reduce", "all-gather", "reduce-scatter", "send"]

LOSS_SUMS, LOSS_NUMBER = 3, 4
"""A loss over a table that is cut: largest logit, logit of the label, sum of exponentials, in float32 each."""


@dataclass(frozen=True, kw_only=True)
class Traffic:
    why: str
    kind: Kind
    ranks: int
    """That take part."""
    calls: float
    bytes: float
    """Of all calls, of the tensor that is whole: what is summed, what is put together, what is cut up."""

    @property
    def happens(self) -> bool:
        return self.ranks > 1 and self.bytes > 0

    @property
    def sent(self) -> float:
        """Bytes that one rank sends: a ring sends every part of a tensor to all ranks but one, and to sum and to hand
        round takes it twice (Patarasuk and Yuan 2009)."""
        if self.kind == "send":
            return self.bytes
        return (2 if self.kind == "all-reduce" else 1) * (self.ranks - 1) / self.ranks * self.bytes

    def times(self, number: float) -> "Traffic":
        return replace(self, calls=number * self.calls, bytes=number * self.bytes)


def traffic(case: Case, stage: int, load: Load) -> tuple[Traffic, ...]:
    """Of a step, on a rank of a pipeline stage."""
    each = [*tensor_parallel(case, stage, load), *pipeline_messages(case, stage, load)] if case.answers else []
    found = [one.times(load.micro_batches) for one in each]
    if case.answers:
        found += [*audio_tokens(case, load), *inside_a_copy(case, stage)]
    return tuple(one for one in [*found, *gradients(case, stage)] if one.happens)


def tensor_parallel(case: Case, stage: int, load: Load) -> Iterator[Traffic]:
    """Of a micro-batch. Each half of a layer or of a gated block, attention and unit, sums its output forward and its
    input's gradient on the way back (Shoeybi et al. 2019, figure 4). Sequence parallelism cuts each sum into a scatter
    and a gather, and gathers a linear's input once more for its weight's gradient (Korthikanti et al. 2022, 4.2)."""
    ranks, sequence = case.parallel.tensor, case.parallel.sequence
    if ranks == 1:
        return
    whole = load.rows * load.length * case.config.model.lm.hidden * case.element
    labelled = load.mean_supervised * case.config.model.lm.hidden * case.element

    def told(why: str, kind: Kind, calls: float, size: float = whole) -> Traffic:
        return Traffic(why=why, kind=kind, ranks=ranks, calls=calls, bytes=calls * size)

    halves = [half for chunk in case.stages[stage] for layer in chunk.layers for half in _halves(case)[layer]]
    again = sum(half.given for half in halves) if case.parallel.recompute == "full" else 0
    wanted, given = sum(half.wanted for half in halves), sum(half.given for half in halves)
    if sequence:
        inputs = sum(half.learns for half in halves)
        yield told("layers", "all-gather", len(halves) + again + given + inputs)
        yield told("layers", "reduce-scatter", len(halves) + again + wanted)
    else:
        yield told("layers", "all-reduce", len(halves) + again + wanted)
    if any(chunk.first for chunk in case.stages[stage]):
        yield told("embedding", "reduce-scatter" if sequence else "all-reduce", 1)
        if sequence and case.trains(TABLE):
            yield told("embedding", "all-gather", 1)
    if any(chunk.last for chunk in case.stages[stage]):
        if sequence:
            yield told("head", "all-gather", 1)
            yield told("head", "reduce-scatter", 1)
        else:
            yield told("head", "all-reduce", 1, labelled)
        yield told("loss", "all-reduce", LOSS_SUMS, load.mean_supervised * LOSS_NUMBER)


def pipeline_messages(case: Case, stage: int, load: Load) -> Iterator[Traffic]:
    """Of a micro-batch: each chunk but the last one sends its output, each but the first its input's gradient."""
    parallel = case.parallel
    if parallel.pipeline == 1:
        return
    size = load.rows * load.length * case.config.model.lm.hidden * case.element
    calls = 2 * parallel.virtual_pipeline - (stage in (0, parallel.pipeline - 1))
    bytes_ = calls * size / (parallel.tensor if parallel.sequence else 1)
    yield Traffic(why="pipeline", kind="send", ranks=2, calls=calls, bytes=bytes_)


def audio_tokens(case: Case, load: Load) -> Iterator[Traffic]:
    """Of a step: the clips' tokens to all ranks of a copy, and their gradients, partial on each, back in float32."""
    encoder, ranks = case.config.model.encoder, case.model_ranks
    numbers = ranks * load.own_windows * encoder.tokens_per_window * encoder.feature_dim
    yield Traffic(why="audio tokens", kind="all-gather", ranks=ranks, calls=1, bytes=numbers * case.element)
    if audio_flows(case):
        yield Traffic(why="audio tokens", kind="reduce-scatter", ranks=ranks, calls=1, bytes=numbers * GRADIENT)


def inside_a_copy(case: Case, stage: int) -> Iterator[Traffic]:
    """Of a step: gradients of what several ranks of one copy hold. Norms and gates see a part of the sequence each
    under sequence parallelism; a tied table stands on the first stage and on the last."""
    parallel, lm = case.parallel, case.config.model.lm
    if parallel.sequence:
        held = case.decoder(stage).items()
        numbers = sum(size for name, size in held if case.trains(name) and HELD_ALIKE.fullmatch(name))
        yield Traffic(
            why="norms and gates", kind="all-reduce", ranks=parallel.tensor, calls=1, bytes=GRADIENT * numbers
        )
    ends = stage in (0, parallel.pipeline - 1)
    if parallel.pipeline > 1 and lm.tied and ends and case.trains(TABLE):
        table = TokenTable.of(lm, lm.vocab, ADDED_TOKENS, tensor_size=parallel.tensor, tensor_rank=0)
        numbers = table.local_rows * lm.hidden
        yield Traffic(why="tied table", kind="all-reduce", ranks=2, calls=1, bytes=GRADIENT * numbers)


def gradients(case: Case, stage: int) -> Iterator[Traffic]:
    """Of a step: of the decoder over the copies, of the audio side over all ranks; with ZeRO-1 each rank sums its share
    and hands its new weights round (Rajbhandari et al. 2020, section 7.2)."""
    for why, numbers, ranks, calls in (
        ("decoder", case.learns_decoder(stage), case.copies, len(case.stages[stage])),
        ("audio side", case.learns_front, case.world, 1),
    ):
        if case.parallel.distributed_optimizer:
            bytes_ = numbers * GRADIENT
            yield Traffic(why=why, kind="reduce-scatter", ranks=ranks, calls=calls, bytes=bytes_)
            yield Traffic(why=why, kind="all-gather", ranks=ranks, calls=calls, bytes=numbers * case.element)
        else:
            yield Traffic(why=why, kind="all-reduce", ranks=ranks, calls=calls, bytes=numbers * GRADIENT)


@lru_cache(maxsize=1024)
def audio_flows(case: Case) -> bool:
    """A gradient flows into the audio tokens."""
    tally, model = Tally(case.trains), case.config.model
    features = encoder_of(model.encoder).tally(tally)
    return tally_transform(tally, features, model.encoder.feature_dim, model.transform)


@dataclass(frozen=True)
class _Half:
    """Attention or unit, of a layer or of a gated block."""

    wanted: bool
    """A gradient flows into it from what stands in front."""
    learns: bool
    """The weight that its input is multiplied with."""
    given: bool
    """A gradient flows back into its output."""


@dataclass(frozen=True)
class _Names:
    """Beginnings of names below a layer's."""

    norm: str
    first: str
    """The weight that the half's input meets first."""
    all: tuple[str, ...]


HALVES = {
    "block's attention": _Names(
        "xattn.attention_norm.", "xattn.attention.linear_q.", ("xattn.attention", "xattn.gate_attn")
    ),
    "block's unit": _Names("xattn.ffn_norm.", "xattn.ffn.linear_fc1.", ("xattn.ffn", "xattn.gate_ffn")),
    "attention": _Names(
        "input_layernorm.",
        "self_attention.linear_qkv.weight",
        ("input_layernorm.", "self_attention.", "lora.linear_qkv.", "lora.linear_proj."),
    ),
    "unit": _Names(
        "pre_mlp_layernorm.",
        "mlp.linear_fc1.weight",
        ("pre_mlp_layernorm.", "mlp.", "lora.linear_fc1.", "lora.linear_fc2."),
    ),
}
HELD_ALIKE = re.compile(
    r".*(norm\.(weight|bias)|gate_attn|gate_ffn|linear_(proj|fc2)\.bias|position_embeddings\.weight)"
)
"""What every tensor rank has whole, and sees a part of the sequence under sequence parallelism."""


@lru_cache(maxsize=64)
def _halves(case: Case) -> list[list[_Half]]:
    """Of every layer of the model."""
    names: dict[int, list[str]] = {}
    for stage in range(case.parallel.pipeline):
        for name in case.decoder(stage):
            if name.startswith("lm.decoder.layers."):
                number, rest = name.removeprefix("lm.decoder.layers.").split(".", 1)
                names.setdefault(int(number), []).append(rest)
    flows, found = tally_tables(Tally(case.trains), case.config.model), []
    for layer in range(case.config.model.lm.layers):
        halves = []
        learning = [name for name in names[layer] if case.trains(f"lm.decoder.layers.{layer}.{name}")]
        for part, own in HALVES.items():
            if part.startswith("block") and not has_block(case.config.model, layer):
                continue
            wanted = flows or any(name.startswith(own.norm) for name in learning)
            audio = part == "block's attention" and audio_flows(case)
            given = wanted or audio or any(name.startswith(own.all) for name in learning)
            halves.append(_Half(wanted, any(name.startswith(own.first) for name in learning), given))
            flows = given
        found.append(halves)
    return found
