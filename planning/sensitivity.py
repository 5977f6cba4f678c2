"""Which weights stay float, so that an artifact meets a size or an error.

What is left float costs bytes and takes an error away. The choice is a knapsack: the error of every
weight is known from one pass, its bytes from the layout. Densest first is the known greedy for it
(Dantzig, 1957, "Discrete-variable extremum problems", section 4); here the rest of the room is then
filled by exchanges, because a target is to be met, not merely kept.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from math import comb

Sizes = tuple[int, ...]

#: Of how many ways to take units away, or to bring some in, an exchange is chosen at most.
_PICKS = 256
#: How many units an exchange takes away, or brings in, at most.
_MOST_AT_ONCE = 4


@dataclass(frozen=True)
class Unit:
    """Weights that loaders fuse, so that all of them are quantized or none; mostly a single one.

    Attributes:
        names: The tensors.
        relative_squared_error: Sum over them of the squared rounding error over the squared weight.
        saved_bytes: How many bytes quantizing them saves; at least 1.
    """

    names: tuple[str, ...]
    relative_squared_error: float
    saved_bytes: int

    @property
    def density(self) -> float:
        """The error that a byte of float takes away."""
        return self.relative_squared_error / self.saved_bytes


def units_of(
    groups: Sequence[tuple[str, ...]],
    relative_squared_errors: Mapping[str, float],
    saved_bytes: Mapping[str, int],
) -> list[Unit]:
    """Put together what is known about the weights.

    Args:
        groups: Names of the tensors that go together.
        relative_squared_errors: By name.
        saved_bytes: By name.

    Returns:
        One unit per group that saves anything.
    """
    units = (
        Unit(
            names,
            sum(relative_squared_errors[name] for name in names),
            sum(saved_bytes[name] for name in names),
        )
        for names in groups
    )
    return [unit for unit in units if unit.saved_bytes > 0]


def keep_float(units: Sequence[Unit], room_bytes: int, slack_bytes: int = 0) -> list[Unit]:
    """Choose what stays float within a number of bytes.

    Args:
        units: Everything that could be quantized.
        room_bytes: How many bytes may be added to the artifact in which all of it is quantized.
        slack_bytes: How many of them may stay unused without an exchange.

    Returns:
        The chosen units: the densest that fit, then one exchanged for a larger one until at most
        `slack_bytes` are unused or no exchange uses more; the fewer sizes there are, the more
        units one exchange may move. Their `saved_bytes` sum to at most
        `room_bytes`, and no unit that was not chosen would fit as well. Equal input, equal choice.
    """
    chosen: dict[int, list[Unit]] = defaultdict(list)
    left: dict[int, list[Unit]] = defaultdict(list)
    for unit in sorted(units, key=lambda unit: (-unit.density, unit.names)):
        fits = unit.saved_bytes <= room_bytes
        (chosen if fits else left)[unit.saved_bytes].append(unit)
        room_bytes -= unit.saved_bytes if fits else 0
    while room_bytes > slack_bytes:
        exchange = _best_exchange(chosen, left, room_bytes, slack_bytes)
        if exchange is None:
            break
        # Of one size the least dense goes and the densest comes, so both lists stay sorted.
        out, into = exchange
        going = [chosen[size].pop() for size in out]
        coming = [left[size].pop(0) for size in into]
        for unit in going:
            left[unit.saved_bytes].insert(0, unit)
        for unit in coming:
            chosen[unit.saved_bytes].append(unit)
        room_bytes -= sum(into) - sum(out)
    return [unit for same_size in chosen.values() for unit in same_size]


def _best_exchange(
    chosen: Mapping[int, list[Unit]],
    left: Mapping[int, list[Unit]],
    room_bytes: int,
    slack_bytes: int,
) -> tuple[Sizes, Sizes] | None:
    """Find the sizes to exchange: what leaves the least beyond the slack, then the least error."""
    most = _most_at_once(len({*chosen, *left}))
    offers = [(into, sum(into), _error(left, into)) for into in _picks(left, most)]
    best: tuple[tuple[int, float], tuple[Sizes, Sizes]] | None = None
    for out in _picks(chosen, most):
        nbytes, lost = sum(out), _error(chosen, out, is_from_end=True)
        for into, bytes_in, won in offers:
            more = bytes_in - nbytes
            if not 0 < more <= room_bytes:
                continue
            found = max(0, room_bytes - more - slack_bytes), lost - won
            if best is None or found < best[0]:
                best = found, (out, into)
    return best[1] if best is not None else None


def _most_at_once(sizes: int) -> int:
    return max((n for n in range(2, _MOST_AT_ONCE + 1) if comb(sizes + n, n) <= _PICKS), default=1)


def _picks(units: Mapping[int, list[Unit]], most: int) -> Iterator[Sizes]:
    """Yield the sizes of one unit, or of several up to `most`, as far as there are any."""
    sizes = sorted(size for size, same_size in units.items() if same_size)
    for count in range(1, most + 1):
        for pick in combinations_with_replacement(sizes, count):
            if all(pick.count(size) <= len(units[size]) for size in pick):
                yield pick


def _error(units: Mapping[int, list[Unit]], pick: Sizes, *, is_from_end: bool = False) -> float:
    places = [pick[:i].count(size) for i, size in enumerate(pick)]
    return sum(
        units[size][-1 - place if is_from_end else place].relative_squared_error
        for size, place in zip(pick, places, strict=True)
    )
