"""Bytes that a rank needs for a step, by kind, and the moment of the step at which it needs the most.

    needs = memory(case, stage, load)
    needs.total, needs.kinds["activations"], needs.moment

Weights, gradients and the optimizer's state are there all the time. The rest comes and goes: a step is a row of
moments, each with what is alive then; the plan is the largest of them (docs/plan.md derives every line).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from megatron_af.audio.htsat_encoder import IMAGE_SIDE
from megatron_af.audio.recompute import WINDOWS_AT_ONCE
from megatron_af.decoder.added_tokens import TokenTable
from megatron_af.flops import Amounts
from megatron_af.plan import weights
from megatron_af.plan.activations import (
    STATISTIC,
    How,
    Kept,
    keep_encoder,
    keep_encoder_block,
    keep_head,
    keep_layer,
    keep_transform,
)
from megatron_af.plan.case import Case
from megatron_af.plan.load import Load

MASTER = {"bf16": 4, "fp32": 0}
"""Bytes of the optimizer's own copy of a weight: in float32 it updates the weight itself."""
MOMENTS = 8
"""Bytes of Adam's two moments."""
SUMS = 2
"""Tensors of float32 that torch's Adam makes of a weight beside its moments, where no kernel does all at once."""
GRADIENT = 4
"""Gradients are summed in float32 (``grad_reduce_in_fp32``)."""
AHEAD = 2
"""Batches that wait while one is computed (``data/stream.py``)."""
KINDS = (
    "weights", "gradients", "optimizer", "activations", "encoder", "features", "audio tokens", "mel", "DALI",
    "communication", "working",
)  # fmt: skip
"""``features``: what the transformation layers keep, and features read from the cache; ``working``: what lives within
one operation or one block that is computed again."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Of one rank, in bytes."""

    kinds: Mapping[str, float]
    """At ``moment``."""
    moment: str
    """At which it needs the most."""
    by_moment: Mapping[str, float]

    @property
    def total(self) -> float:
        return sum(self.kinds.values())


@lru_cache(maxsize=1024)
def static(case: Case, stage: int) -> dict[str, float]:
    """What is there all the time: weights in the run's precision, float32 gradients of what trains, Adam's state.

    With ZeRO-1 a rank keeps the state of its share alone: the decoder's is cut over the ranks that hold the same
    layers, the audio side's over all (Rajbhandari et al. 2020, section 5.1).
    """
    learns_front, learns_decoder = case.learns_front, case.learns_decoder(stage)
    zero = case.parallel.distributed_optimizer
    shares = learns_front / (case.world if zero else 1) + learns_decoder / (case.copies if zero else 1)
    return {
        "weights": case.element * (sum(case.front.values()) + sum(case.decoder(stage).values())),
        "gradients": GRADIENT * (learns_front + learns_decoder),
        "optimizer": (MASTER[case.config.precision] + MOMENTS) * shares,
    }


def memory(case: Case, stage: int, load: Load, *, ahead: int = AHEAD) -> Memory:
    """Of a rank of a pipeline stage.

    Args:
        ahead: batches that wait on the device.
    """
    always = static(case, stage)
    moments = _answer(case, stage, load) if case.answers else _contrastive(case, load)
    front = case.config.model.front_end
    mel = load.own_windows * load.encoded * STATISTIC * front.window_frames * front.mel_bins
    cached = load.own_windows * (1 - load.encoded) * _features(case, 1)
    waiting = {"mel": mel, "DALI": ahead * mel, "features": cached}
    if case.answers and not case.gpu.fused:
        moments["update"] = {"working": SUMS * GRADIENT * _widest_update(case, stage)}
    if case.gpu.copies_to_reduce and case.parallel.distributed_optimizer and case.world > 1:
        summed = max(case.learns_front, case.learns_decoder(stage) * (case.copies > 1))
        moments["reduce"] = {"communication": GRADIENT * summed}
    there = {kind: always.get(kind, 0.0) + waiting.get(kind, 0.0) for kind in KINDS}
    least = sum(there.values())
    by_moment = {name: least + sum(kinds.values()) for name, kinds in moments.items()}
    moment = max(by_moment, key=by_moment.__getitem__)
    kinds = {kind: there[kind] + moments[moment].get(kind, 0.0) for kind in KINDS}
    return Memory(kinds=kinds, moment=moment, by_moment=by_moment)


def _answer(case: Case, stage: int, load: Load) -> dict[str, dict[str, float]]:
    """What is alive at each moment of a step, besides what always is."""
    side = _side(case)
    transform, features_flow, tokens_flow = side.transform, side.features_flow, side.tokens_flow
    own = load.own_windows * load.encoded
    learnt, block, several = _learning(side, own)
    tokens = _features(case, load.own_windows)
    clips_together = load.own_windows <= WINDOWS_AT_ONCE
    # More windows than that keep their inputs alone, and are computed again part by part (``audio/recompute.py``).
    kept = {
        "encoder": 0.0 if several else learnt,
        "features": transform.of(Amounts(clip_tokens=load.clip_tokens))
        if clips_together
        else (2 * tokens if tokens_flow else tokens),
    }
    gathered = case.model_ranks * tokens
    travelling = {
        "audio tokens": (tokens if case.model_ranks > 1 else 0.0)
        + gathered
        + (gathered * GRADIENT / case.element if tokens_flow else 0.0)
    }
    running = side.front_end * min(own, WINDOWS_AT_ONCE)
    again = (learnt if several else 0.0) + block if features_flow else 0.0
    if not clips_together and tokens_flow:
        again = max(again, transform.of(Amounts(clip_tokens=load.largest_call)))
    return {
        "encode": kept | {"working": block if features_flow and not several else running},
        "schedule": kept | travelling | _schedule(case, stage, load, tokens_flow),
        "table's gradient": kept | travelling | {"working": _tied_gradients(case)},
        "encoder backward": kept | travelling | {"working": again},
        "update": {},
    }


@dataclass(frozen=True, kw_only=True)
class _Side:
    """What the audio side keeps, whatever a step hears."""

    encoder: Kept
    unbroken: Kept
    """The encoder where none of its blocks is computed again by itself."""
    transform: Kept
    features_flow: bool
    """A gradient flows out of the encoder."""
    tokens_flow: bool
    """… out of the transformation layers."""
    block: float
    front_end: float


@lru_cache(maxsize=1024)
def _side(case: Case) -> _Side:
    model, how = case.config.model, How(kernels=case.gpu.fused)
    mel = model.front_end.window_frames * model.front_end.mel_bins
    encoder, unbroken, transform = Kept(case.element), Kept(case.element), Kept(case.element)
    features_flow = keep_encoder(encoder, model.encoder, case.trains, mel, how)
    keep_encoder(unbroken, replace(model.encoder, recompute=False), case.trains, mel, how)
    tokens_flow = case.answers and keep_transform(
        transform, model.transform, case.trains, model.encoder.feature_dim, features_flow
    )
    return _Side(
        encoder=encoder,
        unbroken=unbroken,
        transform=transform,
        features_flow=features_flow,
        tokens_flow=tokens_flow,
        block=_block(case, how),
        front_end=_front_end(case),
    )


def _learning(side: _Side, windows: float) -> tuple[float, float, bool]:
    """Bytes that the encoder keeps of a part of the windows, those of one block beside that, and whether there are
    several parts. All blocks of one of several are computed again together, so each of them keeps everything."""
    several = windows > WINDOWS_AT_ONCE
    part = Amounts(windows=min(windows, WINDOWS_AT_ONCE))
    if not side.features_flow:
        return 0.0, 0.0, several
    return (side.unbroken if several else side.encoder).of(part), 0.0 if several else side.block * part.windows, several


def _features(case: Case, windows: float) -> float:
    encoder = case.config.model.encoder
    return windows * encoder.tokens_per_window * encoder.feature_dim * case.element


def _block(case: Case, how: How) -> float:
    """Bytes of a window that one block of the encoder keeps while it is computed again."""
    encoder = case.config.model.encoder
    if encoder.kind != "htsat" or not encoder.recompute:
        return 0.0
    kept, rows = Kept(case.element), IMAGE_SIDE // encoder.patch_size
    at, heads = "encoder.layers.0.blocks.0", encoder.heads[0]
    keep_encoder_block(kept, encoder, case.trains, at, True, rows, encoder.embed_dim, heads, how)
    return kept.of(Amounts(windows=1))


def _front_end(case: Case) -> float:
    """Bytes of a window that are alive at once while the encoder runs and nothing is kept: at its front end the normed
    mel and two images in float32; in its first blocks the unit's two widest tensors, its input and its output."""
    encoder, front = case.config.model.encoder, case.config.model.front_end
    if encoder.kind != "htsat":
        return 0.0
    image = STATISTIC * (front.window_frames * front.mel_bins + 2 * IMAGE_SIDE**2)
    patches = (IMAGE_SIDE // encoder.patch_size) ** 2
    return max(image, (2 * encoder.mlp_ratio + 2) * patches * encoder.embed_dim * case.element)


def _schedule(case: Case, stage: int, load: Load, audio: bool) -> dict[str, float]:
    model, parallel, element = case.config.model, case.parallel, case.element
    held, how = case.stages[stage], case.how(load)
    text = load.rows * load.length
    amounts = Amounts(text=text, keys=load.rows * load.keys, supervised=load.supervised)

    layers, alone = _layers(case, stage, how, audio)
    again = max((layer.of(amounts) for layer in alone), default=0.0) if how.recompute == "full" else 0.0
    flying = in_flight(parallel.pipeline, len(held), stage, load.micro_batches)
    # Every micro-batch under way has its audio tokens, in float32 where they get a gradient.
    micro = min(load.micro_batches, flying)
    heard = load.rows * load.keys * model.encoder.feature_dim
    tokens = heard * (GRADIENT + element * (element < GRADIENT)) if audio else heard * element
    head = 0.0
    if held[-1].last:
        kept = Kept(element, parallel.tensor, parallel.sequence)
        table = TokenTable.of(
            model.lm, model.lm.vocab, weights.ADDED_TOKENS, tensor_size=parallel.tensor, tensor_rank=0
        )
        keep_head(kept, model, case.trains, table.padded_rows, True, how)
        logits = load.supervised * table.local_rows * element * (element < STATISTIC)  # beside their float32 form
        head = kept.of(amounts) + logits
    # A weight's gradient is whole before it is summed into the float32 one.
    again += element * max(weights.learning(case.decoder(stage), case.trains), default=0)
    hidden = text * model.lm.hidden * element / (parallel.tensor if parallel.sequence else 1)
    return {
        "activations": flying * layers.of(amounts) / len(held) + micro * tokens + head,
        "communication": hidden * (2 if parallel.pipeline > 1 else 0) * (2 if len(held) > 1 else 1),
        "working": again,
    }


def _tied_gradients(case: Case) -> float:
    """Behind all layers: that of the table as output layer, that as embedding, and their sum. Where each has a pipeline
    stage to itself, none waits for another."""
    if not case.config.model.lm.tied or case.parallel.pipeline > 1 or not case.trains(weights.TABLE):
        return 0.0
    return 3 * case.element * case.decoder(0)[weights.TABLE]


def _widest_update(case: Case, stage: int) -> float:
    """Numbers of the tensor, or of the share of it, that is the largest to be updated at a time."""
    zero = case.parallel.distributed_optimizer
    held = [
        (case.front, case.learns_front / (case.world if zero else 1)),
        (case.decoder(stage), case.learns_decoder(stage) / (case.copies if zero else 1)),
    ]
    return max(min(share, max(weights.learning(sizes, case.trains), default=0)) for sizes, share in held)


@lru_cache(maxsize=256)
def _layers(case: Case, stage: int, how: How, audio: bool) -> tuple[Kept, list[Kept]]:
    """What the layers of a pipeline stage keep together, and each of them where none is computed again."""
    together, alone = Kept(case.element, case.parallel.tensor, case.parallel.sequence), []
    for layer in (layer for chunk in case.stages[stage] for layer in chunk.layers):
        keep_layer(together, case.config.model, case.trains, layer, True, audio, how)
        if how.recompute == "full":
            one = Kept(case.element, case.parallel.tensor, case.parallel.sequence)
            keep_layer(one, case.config.model, case.trains, layer, True, audio, replace(how, recompute="none"))
            alone.append(one)
    return together, alone


def in_flight(pipeline: int, chunks: int, stage: int, micro_batches: float) -> float:
    """Forward passes of a chunk that wait for their backward pass on a pipeline stage, at most.

    1F1B (Narayanan et al. 2021, section 2.2): as many micro-batches as there are stages from here on. Interleaved
    (their figure 4, and ``get_pp_rank_microbatches`` of megatron-core): chunks of the warm-up, and one.
    """
    if pipeline == 1:
        return 1
    if chunks == 1:
        return min(micro_batches, pipeline - stage)
    return min(micro_batches * chunks, 2 * (pipeline - stage - 1) + (chunks - 1) * pipeline + 1)


TEXTS = 6
"""That a sample of a contrastive stage brings: three captions and three hard negatives, as the paper has them (M = N =
3)."""
TEXT_LAYER = 34
"""Bytes per position, layer and number of the width that a transformer layer keeps in bf16, attention's scores aside
(Korthikanti et al. 2022, equation 2)."""


def _contrastive(case: Case, load: Load) -> dict[str, dict[str, float]]:
    """All texts of a rank go through their tower at once, but for ``text_micro_batch``; of windows, some at a time."""
    clap, side = case.config.model.clap, _side(case)
    learnt, block, several = _learning(side, load.own_windows)
    texts = texts_of(case, load)
    at_once = min(texts, clap.text_micro_batch or texts)
    width, layers, heads = text_tower(case)
    kept_layers = 1 if clap.text_recompute else layers
    position = TEXT_LAYER * width * case.element / 2 * kept_layers + case.element * width * layers
    scores = 2.5 * heads * clap.text_max_tokens * case.element * kept_layers
    tower = at_once * clap.text_max_tokens * (position + scores)
    running = {"working": side.front_end * min(load.own_windows, WINDOWS_AT_ONCE)}
    # Of several only the vectors are kept, and they are computed again part by part (``audio/clap.py``).
    kept = 0.0 if several else learnt
    whole = {"encoder": learnt, "working": block}
    audio, again = (running, {"working": learnt}) if several else (whole, whole)
    # The way back goes through the texts' tower first, which keeps nothing when the encoder's turn comes.
    return {
        "embed audio": audio if side.features_flow else running,
        "embed texts": {"encoder": kept, "activations": tower},
        "encoder backward": again if side.features_flow else {},
        "update": {},
    }


def texts_of(case: Case, load: Load) -> float:
    """Of the samples that a rank embeds."""
    return TEXTS * load.micro_batches * load.rows / case.model_ranks


def text_tower(case: Case) -> tuple[int, int, int]:
    """Width, layers and heads of CLAP's text encoder; of one that is not listed, BERT base's."""
    clap = case.config.model.clap
    if not clap.text_tower:
        return clap.text_hidden, clap.text_layers, clap.text_heads
    return weights.TEXT_TOWERS.get(clap.text_tower, weights.GUESSED_TOWER).shape
