"""Which weights stay float, so that an artifact meets a size or an error.

What is left float costs bytes and takes an error away. The choice is a knapsack: the error of every
weight is known from one pass, its bytes from the layout. Densest first is the known greedy for it
(Dantzig, 1957, "Discrete-variable extremum problems", section 4); here the rest of the room is then
filled by exchanges, because a target is to be met, not merely kept.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


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
        The chosen units: the densest that fit, then single ones exchanged for larger ones until at
        most `slack_bytes` are unused or no exchange uses more. Their `saved_bytes` sum to at most
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
        out, into = exchange
        # Of one size the least dense goes and the densest comes, so both lists stay sorted.
        left[out].insert(0, chosen[out].pop())
        chosen[into].append(left[into].pop(0))
        room_bytes -= into - out
    return [unit for same_size in chosen.values() for unit in same_size]


def _best_exchange(
    chosen: Mapping[int, list[Unit]],
    left: Mapping[int, list[Unit]],
    room_bytes: int,
    slack_bytes: int,
) -> tuple[int, int] | None:
    """Find the sizes to exchange: what leaves the least beyond the slack, then the least error."""
    best: tuple[tuple[int, float], tuple[int, int]] | None = None
    for out, going in chosen.items():
        for into, coming in left.items():
            if not (going and coming and out < into <= out + room_bytes):
                continue
            beyond = max(0, room_bytes - (into - out) - slack_bytes)
            lost = going[-1].relative_squared_error - coming[0].relative_squared_error
            if best is None or (beyond, lost) < best[0]:
                best = (beyond, lost), (out, into)
    return best[1] if best is not None else None
