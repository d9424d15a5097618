"""Can a model of these sizes be built? What holds between them; each one's own range stands in its own section.

problems = list(model_problems(config.model))       # numbers must lie in their ranges
"""

from collections.abc import Iterator, Sequence

from megatron_af.config import ModelConfig
from megatron_af.config.components import UnknownComponent


def model_problems(model: ModelConfig) -> Iterator[str]:
    yield from _language_model(model)
    yield from _encoder(model)
    yield from _front_end(model)


def _language_model(model: ModelConfig) -> Iterator[str]:
    lm, interval = model.lm, model.cross_attention.interval
    yield from divides("model.lm.heads", lm.heads, "model.lm.hidden", lm.hidden)
    yield from divides("model.lm.kv_heads", lm.kv_heads, "model.lm.heads", lm.heads)
    try:
        yield from lm.component.problems()
    except UnknownComponent as error:
        yield f"model.lm.family = {error}"
    if not 1 <= interval <= lm.layers:
        yield (
            f"model.cross_attention.interval = {interval}: a gated block stands before every n-th of the "
            f"{lm.layers} layers (model.lm.layers); set it to 1 … {lm.layers}"
        )


def _encoder(model: ModelConfig) -> Iterator[str]:
    transform = model.transform
    try:
        encoder = model.encoder.component
    except UnknownComponent as error:
        yield f"model.encoder.kind = {error}"
        return
    yield from encoder.problems(model.front_end)
    width, source = encoder.feature_dim, encoder.feature_key
    if not width:
        return
    yield from divides("model.transform.heads", transform.heads, f"the encoder's width, {source}", width)
    turned = transform.heads if transform.positions == "rope" else 1
    if transform.layers and width % turned == 0 and width // turned % 2:
        yield (
            f"model.transform.positions = {transform.positions} needs an even width, got {width // turned}: "
            f"{source} / {turned}{' (model.transform.heads)' if turned > 1 else ''}"
        )


def _front_end(model: ModelConfig) -> Iterator[str]:
    front = model.front_end
    if front.overlap_seconds >= front.window_seconds:
        yield (
            f"model.front_end.overlap_seconds = {front.overlap_seconds}: must be below "
            f"window_seconds = {front.window_seconds}"
        )
    elif front.stride_samples < 1:
        yield (
            f"model.front_end.window_seconds = {front.window_seconds} less overlap_seconds = {front.overlap_seconds}"
            f" is no whole sample at sample_rate = {front.sample_rate}: lengthen the window"
        )
    which = "mel_sample_rate" if front.mel_sample_rate else "sample_rate"
    mel_rate = front.mel_sample_rate or front.sample_rate
    if not front.min_hz < front.max_hz <= mel_rate / 2:
        yield (
            f"model.front_end.min_hz = {front.min_hz}, max_hz = {front.max_hz}: need min_hz < max_hz <= "
            f"{mel_rate / 2} (half of {which}), with model.front_end.{which} = {mel_rate}"
        )


def divides(divisor_key: str, divisor: int, key: str, value: int) -> Iterator[str]:
    """The problem that ``divisor`` leaves a rest, with the divisors that do not."""
    if value % divisor:
        fits = listed(divisors(value))
        yield f"{divisor_key} = {divisor} does not divide {key} = {value}: set {divisor_key} to one of {fits}"


def divisors(value: int) -> list[int]:
    return [d for d in range(1, value + 1) if value % d == 0]


def listed(values: Sequence[object], most: int = 12) -> str:
    shown = ", ".join(map(str, values[:most])) or "(none)"
    return shown + (", …" if len(values) > most else "")
