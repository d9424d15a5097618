"""Seconds of a step, by what they go into, from operations, bytes and links.

    seconds = step_time(case, load)
    seconds.total, seconds.parts["bubble"], seconds.tokens_per_second

The phases stand one behind another, as in ``audio/encode_ahead.py``: every rank encodes its share of the clips, tokens
are gathered, the pipeline's schedule runs, gradients of tokens are scattered, the encoder's backward pass ends, and
gradients are reduced before the update. Decoding of audio goes on beside it and is not counted.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from megatron_af.audio.encoder import encoder_of
from megatron_af.audio.recompute import WINDOWS_AT_ONCE
from megatron_af.audio.transform import tally_transform
from megatron_af.decoder.layer_spec import has_block
from megatron_af.decoder.operations import TallyWithAdapters, tally_head, tally_layer
from megatron_af.flops import Amounts, Tally
from megatron_af.plan.activations import Kept, keep_encoder, keep_head, keep_layer, keep_transform
from megatron_af.plan.case import Case
from megatron_af.plan.load import Load
from megatron_af.plan.memory import GRADIENT, MASTER, MOMENTS, text_tower, texts_of
from megatron_af.plan.traffic import (
    Traffic,
    audio_flows,
    audio_tokens,
    gradients,
    inside_a_copy,
    pipeline_messages,
    tensor_parallel,
)

PARTS = (
    "encode", "gather tokens", "decoder", "bubble", "tensor parallel", "pipeline messages", "scatter gradients",
    "encoder backward", "reduce", "update",
)  # fmt: skip
COMMUNICATION = ("gather tokens", "tensor parallel", "pipeline messages", "scatter gradients", "reduce")
ENCODER = ("encode", "encoder backward")
KERNELS = {"encoder block": 25, "transform layer": 20, "layer": 22, "block": 16, "head": 15}
"""Operations that a forward pass of each launches, about; a backward pass launches twice as many."""
TOUCHES = 2
"""Times that a kept tensor is read or written while the forward pass makes it; twice as often on the way back."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a device has to do for a part of the model: forward, and on the way back."""

    forward: float
    backward: float

    def __add__(self, other: "Work") -> "Work":
        return Work(forward=self.forward + other.forward, backward=self.backward + other.backward)

    def times(self, number: float) -> "Work":
        return Work(forward=number * self.forward, backward=number * self.backward)

    @property
    def both(self) -> float:
        return self.forward + self.backward


NOTHING = Work(forward=0.0, backward=0.0)


@dataclass(frozen=True, kw_only=True)
class StepTime:
    parts: Mapping[str, float]
    """Seconds by part, one behind another."""
    stages: tuple[Work, ...]
    """Of each pipeline stage, for a micro-batch."""
    micro_batches: float
    operations: float
    """Of the world in a step, nothing counted twice."""
    tokens: float
    """Text positions of the world's step."""
    audio_seconds: float

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    def share(self, *parts: str) -> float:
        return sum(self.parts[part] for part in parts) / self.total


def step_time(case: Case, load: Load) -> StepTime:
    """
    Args:
        load: of a step of middling lengths.
    """
    encoder = _encoder(case, load)
    front = case.config.model.front_end
    stride = front.window_seconds - front.overlap_seconds
    parts = dict.fromkeys(PARTS, 0.0)
    parts["encode"], parts["encoder backward"] = encoder.forward, encoder.backward
    stages: list[Work] = []
    if case.answers:
        stages = [_stage(case, load, stage) for stage in range(case.parallel.pipeline)]
        parts |= _pipeline(case, load, stages) | _exchange(case, load)
    else:
        parts["decoder"] = _texts(case, load)
    slowest = max((stage.backward for stage in stages), default=0.0)
    parts["reduce"] = _reduction(case, slowest)
    parts["update"] = _update(case)
    return StepTime(
        parts=parts,
        stages=tuple(stages),
        micro_batches=load.micro_batches,
        operations=case.copies * operations(case, load),
        tokens=load.tokens * case.copies,
        audio_seconds=load.windows * stride * case.copies,
    )


def operations(case: Case, load: Load) -> float:
    """Of one data-parallel rank's step, as the training run counts them (``train/flops.py``)."""
    parts = [_side_tally(case)]
    if case.answers:
        parts += [_layer_tally(case, layer) for layer in range(case.config.model.lm.layers)]
        parts.append(_head_tally(case))
    return sum(part.of(_amounts(case, load)) for part in parts)


def _amounts(case: Case, load: Load) -> Amounts:
    """Of a step of one data-parallel rank; clips as if every rank had as much as the busiest."""
    text = load.micro_batches * load.rows * load.length
    keys = load.micro_batches * load.rows * load.mean_keys
    share = load.windows / load.own_windows if load.own_windows else 0.0
    return Amounts(
        windows=load.windows * load.encoded,
        clip_tokens=load.clip_tokens * share,
        clip_scores=load.clip_scores * share,
        text=text,
        text_scores=load.micro_batches * load.text_scores,
        keys=keys,
        audio_scores=load.micro_batches * load.audio_scores,
        supervised=load.micro_batches * load.mean_supervised,
    )


def _new_tally(case: Case) -> Tally:
    if case.stage.lora:
        return TallyWithAdapters(case.trains, case.stage.lora, case.config.model.lm.hidden)
    return Tally(case.trains)


@lru_cache(maxsize=1024)
def _side_tally(case: Case) -> Tally:
    tally = _new_tally(case)
    features = encoder_of(case.config.model.encoder).tally(tally)
    if case.answers:
        tally_transform(tally, features, case.config.model.encoder.feature_dim, case.config.model.transform)
    return tally


@lru_cache(maxsize=1024)
def _layer_tally(case: Case, layer: int) -> Tally:
    tally = _new_tally(case)
    tally_layer(tally, case.config.model, layer, True, audio_flows(case))
    return tally


@lru_cache(maxsize=1024)
def _head_tally(case: Case) -> Tally:
    tally = _new_tally(case)
    tally_head(tally, case.config.model, True)
    return tally


def seconds_of(
    case: Case, told: Tally, alone: Tally, kept: float, amounts: Amounts, kernels: float, parallel: int
) -> Work:
    """Seconds of a part of the model on one rank: matrix products and attention at their rates, single elements at the
    rate of copies, and a moment for every kernel. Attention that reaches half its rate at n keys takes as long as if
    each position saw n more.

    Args:
        told: its products, where what is frozen costs what it costs; ``alone``: the same with everything frozen.
        kept: bytes that its forward pass would keep if everything trained.
        parallel: ranks that share the products.
    """
    rates = case.gpu.rates[case.config.precision]

    def products(tally: Tally) -> float:
        linear = tally.of(replace(amounts, clip_scores=0.0, text_scores=0.0, audio_scores=0.0))
        attention = tally.of(_with_empty_tiles(amounts, rates.half_rate_keys)) - linear
        return (linear / rates.matmul + attention / rates.attention) / parallel

    forward = products(alone)
    backward = products(told) - forward
    touched, launched = TOUCHES * kept / case.gpu.copy, kernels * case.gpu.launch_seconds
    flows = 2 if backward > 0 else 0
    return Work(forward=forward + touched + launched, backward=backward + flows * (touched + launched))


def _with_empty_tiles(amounts: Amounts, keys: float) -> Amounts:
    """As if each position saw ``keys`` more, where it sees any."""
    return replace(
        amounts,
        clip_scores=amounts.clip_scores + keys * amounts.clip_tokens,
        text_scores=amounts.text_scores + keys * amounts.text,
        audio_scores=amounts.audio_scores + keys * amounts.text if amounts.audio_scores else 0.0,
    )


def _always(name: str) -> bool:
    return True


def _never(name: str) -> bool:
    return False


def _encoder(case: Case, load: Load) -> Work:
    """The busiest rank's clips through encoder and transformation layers."""
    model, how = case.config.model, case.how(load)
    own = Amounts(
        windows=load.own_windows * load.encoded, clip_tokens=load.clip_tokens, clip_scores=load.clip_scores
    )
    alone = Tally(_never)
    encoder_of(model.encoder).tally(alone)
    whole = Kept(case.element)
    mel = model.front_end.window_frames * model.front_end.mel_bins
    keep_encoder(whole, replace(model.encoder, recompute=False), _always, mel, replace(how, kernels=True))
    kernels = KERNELS["encoder block"] * sum(model.encoder.depths)
    if case.answers:
        tally_transform(alone, False, model.encoder.feature_dim, model.transform)
        keep_transform(whole, model.transform, _always, model.encoder.feature_dim, True)
        kernels += KERNELS["transform layer"] * model.transform.layers
    again = model.encoder.recompute or load.own_windows > WINDOWS_AT_ONCE
    work = seconds_of(case, _side_tally(case), alone, whole.of(own), own, kernels, 1)
    if again and any(case.trains(name) for name in case.front if name.startswith("encoder.")):
        work += Work(forward=0.0, backward=work.forward)
    return work


def _stage(case: Case, load: Load, stage: int) -> Work:
    """A micro-batch on a rank of a pipeline stage."""
    model, how = case.config.model, case.how(load)
    tensor = case.parallel.tensor
    text = load.rows * load.length
    micro = Amounts(
        text=text,
        text_scores=load.text_scores,
        keys=load.rows * load.mean_keys,
        audio_scores=load.audio_scores,
        supervised=load.mean_supervised,
    )
    work = NOTHING
    plain = replace(how, recompute="none")
    seen: dict[bool, Work] = {}
    for chunk in case.stages[stage]:
        for layer in chunk.layers:
            block = has_block(model, layer)
            if block not in seen:
                whole = Kept(case.element, tensor, case.parallel.sequence)
                keep_layer(whole, model, _always, layer, True, True, plain)
                alone = Tally(_never)
                tally_layer(alone, model, layer, False, False)
                kernels = KERNELS["layer"] + KERNELS["block"] * block
                one = seconds_of(case, _layer_tally(case, layer), alone, whole.of(micro), micro, kernels, tensor)
                if how.recompute == "full":
                    one += Work(forward=0.0, backward=one.forward)
                elif how.recompute == "selective":
                    rates = case.gpu.rates[case.config.precision]
                    scores = _with_empty_tiles(micro, rates.half_rate_keys).text_scores
                    one += Work(forward=0.0, backward=4 * scores * model.lm.hidden / tensor / rates.attention)
                seen[block] = one
            work += seen[block]
        if chunk.last:
            whole = Kept(case.element, tensor)
            rows = model.lm.vocab
            keep_head(whole, model, _always, rows, True, plain)
            alone = Tally(_never)
            tally_head(alone, model, False)
            work += seconds_of(case, _head_tally(case), alone, whole.of(micro), micro, KERNELS["head"], tensor)
    return work


def _pipeline(case: Case, load: Load, stages: list[Work]) -> dict[str, float]:
    """1F1B: the slowest stage computes all micro-batches, and waits while the first one comes and the last one goes
    through the others (Narayanan et al. 2021, sections 2.1 and 2.2: divided by the number of chunks a stage has)."""
    parallel = case.parallel
    times = [stage.both for stage in stages]
    slowest = max(times)
    messages = max(_seconds(case, pipeline_messages(case, at, load), case.world) for at in range(parallel.pipeline))
    # The busiest stage's; inside a layer nothing else goes on meanwhile.
    tensor = max(_seconds(case, tensor_parallel(case, at, load), parallel.tensor) for at in range(parallel.pipeline))
    return {
        "decoder": load.micro_batches * slowest,
        "bubble": (sum(times) - slowest) / parallel.virtual_pipeline,
        "tensor parallel": tensor * (load.micro_batches + (parallel.pipeline - 1) / parallel.virtual_pipeline),
        # Interleaved, half of them go on beside the computation.
        "pipeline messages": load.micro_batches * messages * (1 if parallel.virtual_pipeline == 1 else 0.5),
    }


def _seconds(case: Case, told: Iterable[Traffic], span: int) -> float:
    """Of collectives one behind another, among ranks of which the first and the last are ``span`` apart."""
    bandwidth, latency = case.gpu.bandwidth(span), case.gpu.latency_seconds
    return sum(one.sent / bandwidth + one.calls * latency for one in told if one.happens)


def _exchange(case: Case, load: Load) -> dict[str, float]:
    """Audio tokens to all ranks of a copy, and their float32 gradients back."""
    span = case.parallel.tensor if case.parallel.pipeline == 1 else case.world
    names = {"all-gather": "gather tokens", "reduce-scatter": "scatter gradients"}
    return {names[one.kind]: _seconds(case, [one], span) for one in audio_tokens(case, load)}


def _reduction(case: Case, backward: float) -> float:
    """The gradients' sums. With overlap the decoder's goes on while the last micro-batch is on its way back; the audio
    side's never does."""
    spans = {"decoder": case.copies * case.parallel.tensor, "audio side": case.world}
    own = dict.fromkeys(spans, 0.0)
    for one in gradients(case, 0):
        own[one.why] += _seconds(case, [one], spans[one.why])
    hidden = min(own["decoder"], backward) if case.parallel.overlap else 0.0
    inside = _seconds(case, inside_a_copy(case, 0), case.world) if case.answers else 0.0
    return sum(own.values()) - hidden + inside


def _update(case: Case) -> float:
    """Norm, update and zeroing of gradients: the bytes of each number's gradient, moments, copy and weight."""
    decoder, front = case.learns_decoder(0), case.learns_front
    zero = case.parallel.distributed_optimizer
    shares = front / (case.world if zero else 1) + decoder / (case.copies if zero else 1)
    master = MASTER[case.config.precision]
    update = 2 * MOMENTS + 2 * master + GRADIENT + (case.element if master else 2 * case.element)
    bytes_ = shares * update + (front + decoder) * 3 * GRADIENT  # scaled and summed for the norm, and zeroed
    tensors = sum(map(case.trains, [*case.front, *case.decoder(0)]))
    return bytes_ / case.gpu.copy + 5 * tensors * case.gpu.launch_seconds


def _texts(case: Case, load: Load) -> float:
    """CLAP's text tower, forward and back: six operations a parameter of its layers and position."""
    width, layers, _ = text_tower(case)
    positions = texts_of(case, load) * case.config.model.clap.text_max_tokens
    learns = 3 if case.trains("clap.text.model") else 1
    again = 1 if case.config.model.clap.text_recompute or case.config.model.clap.text_micro_batch else 0
    products = 2 * 12 * width**2 * layers * positions * (learns + again)
    return products / case.gpu.rates[case.config.precision].matmul
