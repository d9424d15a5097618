"""Which row stands at which place of which step: a pure function, no state.

    sampler = BlendSampler({"clotho": 3_839, "wavcaps": 400_000}, {"clotho": 3.5, "wavcaps": 1.0}, seed=0)
    draw = sampler.draw(step * global_batch_samples + slot)     # Draw(dataset="clotho", row=17, ...)

A blend weight is the number of passes over a data set per epoch. In epoch e a data set of n rows and weight w
gives its rows number floor(e*n*w) to floor((e+1)*n*w) - 1, counted through all its passes, so the totals are
exact over any number of epochs (AF2 data/data.py, ``blend_dataset``). Each pass is a fresh permutation, and
so is the order of an epoch over all data sets. Permutations are keyed bijections (`permute`): constant memory
for any number of rows. Nothing depends on the number of ranks, so a resume is a step number.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate

ROUNDS = 8
_MASK64 = (1 << 64) - 1


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One place in the stream of samples."""

    index: int
    """Position in the stream: step * global batch + slot."""
    dataset: str
    row: int
    dataset_pass: int
    """How many times the data set was gone through before."""
    random: int = 0
    """64 bits that follow from the stream's seed and ``index`` alone: the key of whatever is drawn for this sample."""


class BlendSampler:
    """The endless stream of samples of a stage.

    Args:
        sizes: rows of each data set.
        weights: passes over each data set per epoch; only these data sets take part.
        seed: everything random follows from it.

    Raises:
        ValueError: a data set is empty or unknown, a weight is not above 0, or an epoch would be empty.
    """

    def __init__(self, sizes: Mapping[str, int], weights: Mapping[str, float], seed: int | str) -> None:
        problems = [f"{name}: unknown; add it to data.datasets" for name in weights if name not in sizes]
        problems += [f"{name}: weight {weight} is not above 0" for name, weight in weights.items() if weight <= 0]
        problems += [f"{name}: its manifest holds no row" for name in weights if sizes.get(name) == 0]
        if problems or not weights:
            raise ValueError(f"stage.blend cannot be sampled: {'; '.join(problems) or 'it names no data set'}")
        self.names = sorted(weights)
        self.seed = seed
        self._sizes = [sizes[name] for name in self.names]
        self._epochs = Epochs(self._sizes, [weights[name] for name in self.names])
        if self._epochs.samples < 1:
            raise ValueError(f"stage.blend gives {float(self._epochs.samples)} samples an epoch; raise the weights")

    def draw(self, index: int) -> Draw:
        """The sample at place ``index`` (from 0) of the stream."""
        epoch = self._epochs.of(index)
        begins, ends = self._epochs.bounds(epoch)
        totals = list(accumulate((end - begin for begin, end in zip(begins, ends, strict=True)), initial=0))
        place = permute(index - self._epochs.end(epoch), totals[-1], self._key("epoch", epoch))
        which = bisect_right(totals, place) - 1
        count = begins[which] + place - totals[which]
        dataset_pass, position = divmod(count, self._sizes[which])
        name = self.names[which]
        row = permute(position, self._sizes[which], self._key(name, dataset_pass))
        random = keyed_hash(self._key("sample", 0), index)
        return Draw(index=index, dataset=name, row=row, dataset_pass=dataset_pass, random=random)

    def replacement(self, draw: Draw, attempt: int) -> int:
        """Another row of the same data set for a draw whose row cannot be used; attempts count from 1."""
        size = self._sizes[self.names.index(draw.dataset)]
        shift = keyed_hash(self._key("replacement", draw.index), attempt) % max(1, size - 1)
        return (draw.row + 1 + shift) % size

    def epoch_samples(self, epoch: int) -> int:
        """Samples of one epoch; the same for all epochs but for rounding."""
        return self._epochs.end(epoch + 1) - self._epochs.end(epoch)

    @lru_cache(maxsize=1024)  # noqa: B019 - one sampler lives as long as the run
    def _key(self, purpose: str, number: int) -> int:
        text = f"{self.seed}/{purpose}/{number}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


class Epochs:
    """How many rows of each source every epoch takes, counted through all its passes."""

    def __init__(self, sizes: Sequence[int], weights: Sequence[float]) -> None:
        shares = [size * Fraction(str(weight)) for size, weight in zip(sizes, weights, strict=True)]
        self.samples = sum(shares, Fraction(0))
        """Of an epoch, before rounding."""
        self._shares = [share.as_integer_ratio() for share in shares]

    def bounds(self, epoch: int) -> tuple[list[int], list[int]]:
        """Of each source, the first row of an epoch and that behind its last one."""
        begins = [epoch * share // unit for share, unit in self._shares]
        return begins, [(epoch + 1) * share // unit for share, unit in self._shares]

    def end(self, epoch: int) -> int:
        """Samples in all epochs before ``epoch``."""
        return sum(epoch * share // unit for share, unit in self._shares)

    def of(self, index: int) -> int:
        """The epoch in which place ``index`` of the stream lies."""
        epoch = int(index // self.samples)
        while self.end(epoch + 1) <= index:  # rounding down per source puts the true epoch a few later
            epoch += 1
        return epoch


def permute(index: int, size: int, key: int) -> int:
    """Where place ``index`` goes under the permutation of ``range(size)`` chosen by ``key``.

    A balanced Feistel network over the next even power of two, walked along its cycle until the result falls
    into the range (format-preserving encryption; Black and Rogaway 2002). Expected walks: below 4.
    """
    if not 0 <= index < size:
        raise IndexError(f"place {index} of {size}")
    half = max(4, -(-(size - 1).bit_length() // 2))  # small domains mix badly: never below 8 bits
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for round_ in range(ROUNDS):
            left, right = right, left ^ (keyed_hash(key + round_, right) & mask)
        index = left << half | right
        if index < size:
            return index


def keyed_hash(key: int, value: int) -> int:
    """64 well mixed bits of (key, value), by the finalizer of SplitMix64 (Steele et al. 2014)."""
    mixed = 0
    for word in (key, value):
        mixed = (mixed ^ word) * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019 & _MASK64
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & _MASK64
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & _MASK64
        mixed ^= mixed >> 31
    return mixed
