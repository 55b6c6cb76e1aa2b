"""What a sample says of a whole input: how many rows it has, and their means.

A sample is of stretches of neighbouring rows at places that are spread evenly over the bytes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from launcher.plan.outlook import Range

__all__ = ["Stretch", "mean_of", "rows_in"]

# Standard errors to each side.
_ERRORS = 2.0
# Of one stretch alone nothing tells how the others differ.
_ALONE = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Neighbouring rows of one file.

    Attributes
    ----------
    file
        Its index.
    share_bytes
        Bytes of the input for which it stands.
    gaps_bytes
        From each row to the next one of the stretch.
    values
        Something of each row.
    """

    file: int
    share_bytes: float
    gaps_bytes: tuple[int, ...]
    values: tuple[float, ...] = ()


def rows_in(stretches: Sequence[Stretch], total_bytes: int) -> Range | None:
    """How many rows begin in ``total_bytes``; None where no two neighbours were seen.

    Files may differ in the length of their rows, so each is counted for itself.
    """
    found = _with_errors(stretches, _rows_per_byte)
    return None if found is None else found.times(total_bytes)


def mean_of(stretches: Sequence[Stretch]) -> Range | None:
    """The mean of ``values`` over all rows; None where there are none, or all are 0."""
    return _with_errors(stretches, _mean)


def _rows_per_byte(stretches: Sequence[Stretch]) -> float:
    rows = _rows_by_file(stretches)
    seen = sum(stretch.share_bytes for stretch in stretches if stretch.file in rows)
    return sum(rows.values()) / seen if seen else 0.0


def _mean(stretches: Sequence[Stretch]) -> float:
    rows = _rows_by_file(stretches)
    values: dict[int, list[float]] = defaultdict(list)
    for stretch in stretches:
        values[stretch.file] += stretch.values
    known = [(rows.get(file, 0.0 if rows else 1.0), found) for file, found in values.items()]
    total = sum(weight for weight, found in known if found)
    sums = sum(weight * sum(found) / len(found) for weight, found in known if found)
    return sums / total if total else 0.0


def _rows_by_file(stretches: Sequence[Stretch]) -> dict[int, float]:
    """Rows in the bytes for which the stretches of each file stand."""
    gaps: dict[int, list[int]] = defaultdict(list)
    shares: dict[int, float] = defaultdict(float)
    for stretch in stretches:
        shares[stretch.file] += stretch.share_bytes
        gaps[stretch.file] += stretch.gaps_bytes
    known = {file: found for file, found in gaps.items() if sum(found)}
    varied = _variance(list(known.values()))
    # One over a mean of few is too much by their variance over their number.
    return {
        file: shares[file] * len(found) / sum(found) / (1 + varied / len(found))
        for file, found in known.items()
    }


def _variance(groups: Sequence[Sequence[int]]) -> float:
    """Of the gaps of a file over the square of their mean, over all files."""
    squares = freedom = 0.0
    for gaps in groups:
        mean = sum(gaps) / len(gaps)
        squares += sum((gap / mean - 1) ** 2 for gap in gaps)
        freedom += len(gaps) - 1
    return squares / freedom if freedom else 0.0


def _with_errors(
    stretches: Sequence[Stretch], estimate: Callable[[Sequence[Stretch]], float]
) -> Range | None:
    """The estimate, and what it may be by what it is without each of the stretches (jackknife)."""
    whole = estimate(stretches)
    if not whole:
        return None
    count = len(stretches)
    if count == 1:
        return Range.around(whole, _ALONE)
    left_out = [estimate([*stretches[:i], *stretches[i + 1 :]]) for i in range(count)]
    mean = sum(left_out) / count
    spread = math.sqrt((count - 1) / count * sum((one - mean) ** 2 for one in left_out))
    return Range.around(whole, 1 + _ERRORS * spread / whole)
