"""The same blend with rows of like length side by side, so that little of a batch is padding; as stateless as before.

    sampler = BucketedSampler({"clotho": windows_R}, {"clotho": 3.5}, seed=0, ends=[1, 3, 9], batch=64)
    draw = sampler.draw(step * 64 + slot)

Audio Flamingo 2 weighs by data set and by length bucket (appendix H.2). Here each pair of both is a source of its own
with its data set's weight: over e epochs it gives exactly floor(e*n*w) of its n rows, and every row comes once a pass.

An epoch's samples, bucket after bucket, form whole global batches of one bucket, and the rests of all buckets, short
ones first, fill what is left; batches then stand in a random order of their own, and so do the samples of a bucket.
Where an epoch begins or ends inside a global batch, rests go there. So at most one batch for each bucket and two for
the epoch's ends mix lengths.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from megatron_af.data.sampler import BlendSampler, Draw, Epochs, keyed_hash, permute


class BucketedSampler(BlendSampler):
    """The endless stream of samples of a stage, each global batch of one length as far as an epoch allows.

    Args:
        lengths: of every row of each data set, int [rows], in the unit of ``ends``.
        weights: passes over each data set per epoch; only these data sets take part.
        seed: everything random follows from it.
        ends: the longest row of each bucket, ascending; longer rows form one bucket more.
        batch: samples of a global batch.

    Raises:
        ValueError: as `BlendSampler`.
    """

    def __init__(
        self,
        lengths: Mapping[str, NDArray[np.integer]],
        weights: Mapping[str, float],
        seed: int | str,
        *,
        ends: Sequence[int],
        batch: int,
    ) -> None:
        super().__init__({name: len(rows) for name, rows in lengths.items()}, weights, seed)
        self._batch, self._num_buckets = batch, len(ends) + 1
        self._sources: list[tuple[int, str, NDArray[np.intp]]] = []
        """Bucket, data set and rows of each source, by bucket."""
        bucket_R = {name: np.searchsorted(np.asarray(ends), lengths[name], side="left") for name in self.names}
        for bucket in range(self._num_buckets):
            for name in self.names:
                if len(rows := np.flatnonzero(bucket_R[name] == bucket)):
                    self._sources.append((bucket, name, rows))
        sizes, shares = zip(*((len(rows), weights[name]) for _, name, rows in self._sources), strict=True)
        self._epochs = Epochs(sizes, shares)

    def draw(self, index: int) -> Draw:
        """The sample at place ``index`` (from 0) of the stream."""
        epoch = self._epochs.of(index)
        begins, ends = self._epochs.bounds(epoch)
        counts = [end - begin for begin, end in zip(begins, ends, strict=True)]
        sizes = [0] * self._num_buckets
        for (bucket, *_), count in zip(self._sources, counts, strict=True):
            sizes[bucket] += count
        bucket, place = self._in_bucket(self._in_line(index, epoch), sizes)
        place = permute(place, sizes[bucket], self._key(f"bucket {bucket}", epoch))
        totals = list(accumulate(counts, initial=0))
        which = bisect_right(totals, sum(sizes[:bucket]) + place) - 1
        _, name, rows = self._sources[which]
        count = begins[which] + sum(sizes[:bucket]) + place - totals[which]
        source_pass, position = divmod(count, len(rows))
        row = int(rows[permute(position, len(rows), self._key(f"{name}, bucket {bucket}", source_pass))])
        random = keyed_hash(self._key("sample", 0), index)
        return Draw(index=index, dataset=name, row=row, dataset_pass=source_pass, random=random)

    def _in_line(self, index: int, epoch: int) -> int:
        """Where a place of the stream lies in its epoch's line: whole batches, in an order of their own, then the
        places at both ends of the epoch."""
        begin, size = self._epochs.end(epoch), self.epoch_samples(epoch)
        head = min(-begin % self._batch, size)
        batches = (size - head) // self._batch
        place = index - begin
        number, slot = divmod(place - head, self._batch)
        if 0 <= number < batches:
            return permute(number, batches, self._key("batches", epoch)) * self._batch + slot
        return place + batches * self._batch if place < head else place

    def _in_bucket(self, line: int, sizes: Sequence[int]) -> tuple[int, int]:
        """Bucket of a place in the line, and its place among the bucket's samples of the epoch."""
        whole = [size - size % self._batch for size in sizes]
        first = list(accumulate(whole, initial=0))
        if line < first[-1]:
            bucket = bisect_right(first, line) - 1
            return bucket, line - first[bucket]
        rests = list(accumulate((size % self._batch for size in sizes), initial=first[-1]))
        bucket = bisect_right(rests, line) - 1
        return bucket, whole[bucket] + line - rests[bucket]
