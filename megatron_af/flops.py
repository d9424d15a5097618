"""Floating-point operations of matrix products and attention, told by each module without building it.

    tally = Tally(stage.trains)
    features = encoder_of(config.model.encoder).tally(tally)     # walks its products as its forward pass does
    flops = tally.of(Amounts(windows=30))

A module says its products by the names of its weights and passes on whether a gradient flows; what is frozen then costs
what it costs. A weight that n vectors are multiplied with costs 2 n operations forward, 2 n for its own gradient where
it trains, and 2 n for the gradient of what it is multiplied with where that is wanted, that is above the first
parameter that trains. Everything but matrix products, convolutions and attention scores is left out, as is customary.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

type Per = Literal["windows", "clip_tokens", "clip_scores", "text", "text_scores", "keys", "audio_scores", "supervised"]
"""What a product is repeated with: a field of :class:`Amounts`."""


@dataclass(frozen=True, kw_only=True)
class Amounts:
    """How much a step has of what products are repeated with; padding counts, for it is multiplied too."""

    windows: float = 0
    """That the encoder runs on: those that no cache has."""
    clip_tokens: float = 0
    """Tokens that enter the transformation layers."""
    clip_scores: float = 0
    """Pairs of such tokens of one clip."""
    text: float = 0
    """Text positions."""
    text_scores: float = 0
    """Pairs of positions that attention looks at together: of a row, or of a packed row's segments. Causal ones count
    whole, as is customary."""
    keys: float = 0
    """Audio tokens that the micro-batches hear; a clip that two rows hear counts twice."""
    audio_scores: float = 0
    """Pairs of a text position and an audio token that it hears, or of its row where all are heard."""
    supervised: float = 0
    """Positions with a label."""


class Tally:
    """Coefficients of a step's operations, linear in its :class:`Amounts`.

    Args:
        trains: whether the parameter of a canonical name trains.
    """

    def __init__(self, trains: Callable[[str], bool]) -> None:
        self.trains = trains
        self.weights: set[str] = set()
        """Names of the weights whose products were told."""
        self._per: defaultdict[str, float] = defaultdict(float)

    def passes(self, x: bool, *names: str) -> bool:
        """``x`` through parameters that no matrix product belongs to (norms, biases, gates, tables).

        Args:
            x: a gradient flows into what comes in.

        Returns:
            whether one flows into what goes out.
        """
        return x or any(self.trains(name) for name in names)

    def linear(
        self, x: bool, name: str, size: float, per: Per, *, bias: bool = False, input_always: bool = False
    ) -> bool:
        """A product with the weight ``name``.

        Args:
            size: elements of the weight, times how often it is applied for one of ``per``.
            input_always: the gradient of the input is computed whenever the weight trains, wanted or not.
        """
        weight = f"{name}.weight"
        self.weights.add(weight)
        trains = self.trains(weight)
        self._per[per] += 2 * size * (1 + trains + (x or (input_always and trains)))
        return self.passes(x or trains, *([f"{name}.bias"] if bias else []))

    def attention(self, query: bool, key: bool, value: bool, size: float, per: Per, *, bias: bool = False) -> bool:
        """Scores and their product with the values.

        Args:
            size: multiplications of one of both products for one of ``per``: the width of all heads.
            bias: what is added to the scores wants a gradient.
        """
        scores = query or key or bias
        self._per[per] += 2 * size * (2 + scores + value + query + key)
        return scores or value

    def of(self, amounts: Amounts) -> float:
        return float(sum(each * getattr(amounts, per) for per, each in self._per.items()))
