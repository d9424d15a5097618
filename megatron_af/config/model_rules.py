"""Can a model of these sizes be built? What holds between them; each one's own range stands in its own section.

problems = list(model_problems(config.model))       # numbers must lie in their ranges
"""

from collections.abc import Iterator, Sequence

from megatron_af.config import ModelConfig

MEL_FRAMES, MEL_BINS, IMAGE_SIDE = 1024, 64, 256
"""HTS-AT folds this many frames by bins into its square image."""
FOLDS = IMAGE_SIDE // MEL_BINS


def model_problems(model: ModelConfig) -> Iterator[str]:
    yield from _language_model(model)
    yield from _encoder(model)
    yield from _front_end(model)


def _language_model(model: ModelConfig) -> Iterator[str]:
    lm, interval = model.lm, model.cross_attention.interval
    yield from divides("model.lm.heads", lm.heads, "model.lm.hidden", lm.hidden)
    yield from divides("model.lm.kv_heads", lm.kv_heads, "model.lm.heads", lm.heads)
    if lm.hidden % lm.heads == 0 and lm.hidden // lm.heads % 2:
        yield (
            f"model.lm.heads = {lm.heads} gives model.lm.hidden = {lm.hidden} heads of {lm.hidden // lm.heads}: "
            "rotary positions turn pairs, make it an even number"
        )
    if not 1 <= interval <= lm.layers:
        yield (
            f"model.cross_attention.interval = {interval}: a gated block stands before every n-th of the "
            f"{lm.layers} layers (model.lm.layers); set it to 1 … {lm.layers}"
        )


def _encoder(model: ModelConfig) -> Iterator[str]:
    encoder, transform = model.encoder, model.transform
    width = encoder.feature_dim if encoder.depths else 0
    if not encoder.depths:
        yield "model.encoder.depths is empty: give each stage of the encoder its number of blocks"
    elif len(encoder.depths) != len(encoder.heads):
        yield (
            f"model.encoder.heads has {len(encoder.heads)} stages and model.encoder.depths has "
            f"{len(encoder.depths)}: give both the same length"
        )

    def times(stage: int) -> str:
        return f"model.encoder.embed_dim x {2**stage}"

    for stage, heads in enumerate(encoder.heads):
        dim = encoder.embed_dim * 2**stage
        yield from divides(
            f"model.encoder.heads[{stage}]", heads, f"the width of encoder stage {stage}, {times(stage)}", dim
        )
    if encoder.fusion and encoder.embed_dim < 4:
        yield f"model.encoder.embed_dim = {encoder.embed_dim}: feature fusion needs 4; raise it or set fusion to false"
    if IMAGE_SIDE % encoder.patch_size:
        yield from divides("model.encoder.patch_size", encoder.patch_size, "the side of HTS-AT's image", IMAGE_SIDE)
    else:
        yield from _grid(model)
    if not width:
        return
    source = "model.encoder.vector_dim" if encoder.vector else times(len(encoder.depths) - 1)
    yield from divides("model.transform.heads", transform.heads, f"the encoder's width, {source}", width)
    turned = transform.heads if transform.positions == "rope" else 1
    if transform.layers and width % turned == 0 and width // turned % 2:
        yield (
            f"model.transform.positions = {transform.positions} needs an even width, got {width // turned}: "
            f"{source} / {turned}{' (model.transform.heads)' if turned > 1 else ''}"
        )


def _grid(model: ModelConfig) -> Iterator[str]:
    encoder = model.encoder
    rows = [IMAGE_SIDE // encoder.patch_size // 2**stage for stage in range(len(encoder.depths))]
    if rows and rows[-1] < FOLDS:
        yield (
            f"model.encoder.patch_size = {encoder.patch_size} with {len(rows)} stages leaves a grid of {rows[-1]} "
            f"rows for the {FOLDS} folds of a window: use smaller patches or fewer model.encoder.depths"
        )
    side = encoder.window_size
    if split := [stage for stage, number in enumerate(rows) if number > side and number % side]:
        yield (
            f"model.encoder.window_size = {side} does not divide the {rows[split[0]]} rows of encoder stage "
            f"{split[0]}: set it to a power of 2"
        )


def _front_end(model: ModelConfig) -> Iterator[str]:
    front = model.front_end
    if front.mel_bins != MEL_BINS:
        yield f"model.front_end.mel_bins = {front.mel_bins}: HTS-AT's image holds {MEL_BINS}; set it to {MEL_BINS}"
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
    elif front.window_frames > MEL_FRAMES:
        yield (
            f"model.front_end.window_seconds = {front.window_seconds} makes {front.window_frames} mel frames; "
            f"HTS-AT takes {MEL_FRAMES}: shorten the window or raise model.front_end.hop_samples = {front.hop_samples}"
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
