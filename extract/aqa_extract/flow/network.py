"""The median of 5x5 values as a fixed series of exchanges, shared by kernels.py and tvl1.c.

Such a series has no branches, so it runs on whole planes or vectors. It starts from a sorting network and keeps
only what the median of 25 values, in five columns that are in order already, needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product


@dataclass(frozen=True)
class Exchange:
    """Put values `a` and `b` in order: a gets the smaller, b the larger; `lower`, `upper`: which one is used."""

    a: int
    b: int
    lower: bool = True
    upper: bool = True


def sorting_network(n: int) -> list[tuple[int, int]]:
    """Batcher's odd-even merge sort of n values (Knuth, TAOCP 3, 5.2.2 M)."""
    size = 1 << (n - 1).bit_length()
    pairs = []
    run = 1
    while run < size:
        gap = run
        while gap >= 1:
            for start in range(gap % run, size - gap, 2 * gap):
                for i in range(min(gap, size - start - gap)):
                    a, b = start + i, start + i + gap
                    if a // (2 * run) == b // (2 * run) and b < n:
                        pairs.append((a, b))
            gap //= 2
        run *= 2
    return pairs


def _median_of_sorted_columns() -> tuple[list[tuple[int, int]], int]:
    """Exchanges and the place of the median, for values numbered 5 row + column.

    Once rows are in order as well, the value at (row, column) has (row + 1)(column + 1) - 1 values that are not
    larger and (5 - row)(5 - column) - 1 that are not smaller. More than 12 of either, and it cannot be the median:
    13 values remain, as many were dropped above as below, and theirs is the median of all.
    """
    rows = [(5 * row + a, 5 * row + b) for row in range(5) for a, b in sorting_network(5)]
    places = [
        5 * row + column
        for row, column in product(range(5), repeat=2)
        if (row + 1) * (column + 1) <= 13 and (5 - row) * (5 - column) <= 13
    ]
    rest = [(places[a], places[b]) for a, b in sorting_network(len(places))]
    return rows + rest, places[len(places) // 2]


def _without_idle(pairs: list[tuple[int, int]], median: int) -> tuple[Exchange, ...]:
    """Drop exchanges that never exchange or that the median does not depend on.

    A network is decided by its action on zeros and ones (Knuth's 0-1 principle), and sorted columns of those are
    6^5 inputs: each is followed through the network.
    """
    inputs = [
        [int(row >= 5 - ones[column]) for row in range(5) for column in range(5)]
        for ones in product(range(6), repeat=5)
    ]
    busy = []
    for a, b in pairs:
        swapped = [values for values in inputs if values[a] > values[b]]
        for values in swapped:
            values[a], values[b] = values[b], values[a]
        if swapped:
            busy.append((a, b))
    needed = {median}
    kept = []
    for a, b in reversed(busy):
        if a in needed or b in needed:
            kept.append(Exchange(a, b, a in needed, b in needed))
            needed |= {a, b}
    return tuple(reversed(kept))


_PAIRS, MEDIAN = _median_of_sorted_columns()
SORT_5 = tuple(Exchange(a, b) for a, b in sorting_network(5))
"""Puts five values in order, the smallest first."""
MEDIAN_OF_SORTED_COLUMNS = _without_idle(_PAIRS, MEDIAN)
"""Leaves the median of 25 values in place `MEDIAN`, given that each column is in order."""
