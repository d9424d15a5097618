"""Packing samples into text rows of nearly equal length, in two lengths at once.

    rows = pack([(tokens, windows), ...], capacity=2048)    # lists of sample indices

Every text row of a step is padded to the longest, and the audio keys of a micro-batch to its row with the most
windows. So samples go, largest first, to the row that stays smallest in its larger share of the two (LPT for vectors);
windows count half, since text padding is paid by all rows of a step and in every layer's projections.
"""

from collections.abc import Sequence

WINDOW_WEIGHT = 0.5


def pack(sizes: Sequence[tuple[int, int]], capacity: int, multiple: int = 1) -> list[list[int]]:
    """Shares samples among rows of at most ``capacity`` tokens; a longer sample has a row of its own.

    Args:
        sizes: text tokens and audio windows of each sample.
        multiple: the number of rows is a multiple of it (rows of a micro-batch, times what a schedule needs);
            rows may stay empty.

    Returns:
        Sample indices per row, ascending in each row; rows by their first sample, empty rows last.
    """
    if not sizes:
        return []
    count = max(1, -(-sum(tokens for tokens, _ in sizes) // capacity))
    limit = max(capacity, max(tokens for tokens, _ in sizes))
    while True:
        rows = _share(sizes, -(-count // multiple) * multiple)
        if max(sum(sizes[i][0] for i in row) for row in rows) <= limit or count >= len(sizes):
            return sorted(rows, key=lambda row: row[0] if row else len(sizes))
        count += 1


def _share(sizes: Sequence[tuple[int, int]], count: int) -> list[list[int]]:
    tokens = max(1, sum(t for t, _ in sizes))
    windows = max(1, sum(w for _, w in sizes))
    shares = [(t / tokens, w / windows) for t, w in sizes]
    rows: list[list[int]] = [[] for _ in range(count)]
    load = [(0.0, 0.0)] * count
    for sample in sorted(range(len(sizes)), key=lambda i: (-sum(shares[i]), i)):
        t, w = shares[sample]
        row = min(range(count), key=lambda r: (max(load[r][0] + t, WINDOW_WEIGHT * (load[r][1] + w)), r))
        load[row] = load[row][0] + t, load[row][1] + w
        rows[row].append(sample)
    return [sorted(row) for row in rows]
