"""Which layers stand on which pipeline stage: by what they cost, so that no stage waits for another.

    chunks = placement(config)                  # one Held per chunk, in the order in which text passes them
    chunks[stage :: config.parallel.pipeline]   # the chunks of one pipeline stage

A pipeline is as fast as its slowest chunk. The last one also has the output layer, and gated blocks need not stand in
front of every layer; so layers are cut where the dearest chunk is cheapest. Costs are matrix products
(``megatron_af/flops.py``) of a row at a nominal length; what is frozen costs what it costs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import accumulate, pairwise

from megatron_af.config import Config
from megatron_af.decoder.operations import TallyWithAdapters, tally_head, tally_layer
from megatron_af.flops import Amounts, Tally

SUPERVISED = 0.25
"""Part of a text's positions that have a label, where nobody has counted."""
LEAST_GAIN = 0.01
"""Below this part of the dearest chunk an uneven cut is not worth being different."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """What one chunk holds of the decoder."""

    layers: range
    first: bool
    """It embeds the text."""
    last: bool
    """It computes the losses."""


def placement(config: Config) -> list[Held]:
    """The chunks of the run's layout, for ``config.stage``; where none is named, evenly cut."""
    chunks, layers = config.parallel.pipeline * config.parallel.virtual_pipeline, config.model.lm.layers
    if chunks == 1 or config.stage not in config.curriculum:
        return held(even(layers, chunks))
    return held(cut(*costs(config), chunks))


def even(layers: int, chunks: int) -> list[int]:
    """Layers of each chunk, as alike as can be; longer ones first."""
    return [layers // chunks + (chunk < layers % chunks) for chunk in range(chunks)]


def held(counts: Sequence[int]) -> list[Held]:
    ends = list(accumulate(counts, initial=0))
    last = len(counts) - 1
    return [
        Held(layers=range(ends[chunk], ends[chunk + 1]), first=chunk == 0, last=chunk == last)
        for chunk in range(len(counts))
    ]


def costs(config: Config) -> tuple[list[float], float]:
    """Operations of each layer and of the output layer, for a nominal row of the stage."""
    model, stage = config.model, config.curriculum[config.stage]
    text, keys = stage.max_text_tokens, stage.max_windows * model.encoder.tokens_per_window
    row = Amounts(
        text=text,
        text_scores=text**2,
        keys=keys,
        audio_scores=text * keys,
        supervised=SUPERVISED * text,
    )

    trains = cache(stage.trains)

    def tally() -> Tally:
        return TallyWithAdapters(trains, stage.lora, model.lm.hidden) if stage.lora else Tally(trains)

    found = []
    for layer in range(model.lm.layers):
        own = tally()
        tally_layer(own, model, layer, True, trains("transform.layer_norm.weight"))
        found.append(own.of(row))
    head = tally()
    tally_head(head, model, True)
    return found, head.of(row)


def cut(layers: Sequence[float], head: float, chunks: int) -> list[int]:
    """Layers of each chunk, so that the dearest chunk is cheapest; even where that gains too little.

    Args:
        layers: cost of each.
        head: cost of what the last chunk has besides.
    """
    return list(_cut_once(tuple(layers), head, chunks))


@lru_cache(maxsize=256)  # a plan asks for the same ones again and again
def _cut_once(layers: Sequence[float], head: float, chunks: int) -> Sequence[int]:
    ends = list(accumulate(layers, initial=0.0))

    def dearest(counts: Sequence[int]) -> float:
        at = list(accumulate(counts, initial=0))
        sums = [ends[stop] - ends[start] for start, stop in pairwise(at)]
        return max([*sums[:-1], sums[-1] + head])

    alike = even(len(layers), chunks)
    best = _cut(ends, head, chunks)
    return best if dearest(best) < (1 - LEAST_GAIN) * dearest(alike) else alike


def _cut(ends: Sequence[float], head: float, chunks: int) -> list[int]:
    """Linear partition by dynamic programming; every chunk has a layer. Of cuts whose dearest chunk is the same, the
    one with the least sum of squares."""
    bound, _ = _least(ends, head, chunks, max)
    return _least(ends, head, chunks, lambda before, cost: before + cost**2 if cost <= bound else float("inf"))[1]


def _least(
    ends: Sequence[float], head: float, chunks: int, join: Callable[[float, float], float]
) -> tuple[float, list[int]]:
    """The least value of chunks' costs joined one after another, and the layers of each chunk."""
    count = len(ends) - 1
    best: list[tuple[float, list[int]]] = [(0.0, []), *[(float("inf"), list[int]())] * count]
    for chunk in range(1, chunks + 1):
        more = head if chunk == chunks else 0.0
        after: list[tuple[float, list[int]]] = [(float("inf"), [])] * (count + 1)
        for stop in range(chunk, count + 1):
            for begin in range(chunk - 1, stop):
                value = join(best[begin][0], ends[stop] - ends[begin] + more)
                if value < after[stop][0]:
                    after[stop] = value, [*best[begin][1], stop - begin]
        best = after
    return best[count]
