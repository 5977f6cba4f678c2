"""Dimensions of a program's tensors that can only shrink together.

A channel is a row of one weight, a value of a bias and of four tensors of a BatchNorm, a column of
the next weight, and, where a residual adds two branches, the same in each of them. This walks no
graph; `planning.coupling_rules` does, and says here what it finds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

#: A dimension of a value in the graph: the value's name and the dimension.
Slot = tuple[str, int]


@dataclass
class Group:
    """Dimensions that shrink together.

    Attributes:
        channels: How many channels they have.
        slots: Each dimension, with how many neighbouring places one channel takes in it: 16 where
            a channel's 4 by 4 places were flattened.
        frozen: Why none of them can be cut; None where they can.
    """

    channels: int
    slots: dict[Slot, int] = field(default_factory=dict)
    frozen: str | None = None


def merging(before: Sequence[int | str], after: Sequence[int | str]) -> tuple[int, int | None]:
    """Tell what a change of shape does to dimensions.

    Args:
        before: The sizes; those that vary as expressions.
        after: The sizes afterwards, of the same values in the same order.

    Returns:
        How many first dimensions stay as they are; and, where all others are merged into one, how
        many of its places belong to one of the first of them, or None where they are not.
    """
    staying = 0
    while staying < min(len(before), len(after)) and before[staying] == after[staying]:
        staying += 1
    merged = [size for size in before[staying:] if isinstance(size, int)]
    is_known = len(merged) == len(before) - staying and isinstance(after[-1], int)
    if len(merged) < 2 or len(after) != staying + 1 or not is_known:
        return staying, None
    return staying, math.prod(merged[1:])


class Couplings:
    """Which dimensions belong together, while that is being found out."""

    def __init__(self) -> None:
        self._homes: dict[Slot, Group] = {}

    def groups(self) -> list[Group]:
        """Give every group once, in the order in which their first dimensions were met."""
        return list({id(group): group for group in self._homes.values()}.values())

    def group_of(self, slot: Slot) -> Group | None:
        """Give the group of a dimension, or None where nothing was said of it."""
        return self._homes.get(slot)

    def freeze(self, slot: Slot, size: int, reason: str) -> None:
        """Say that a dimension cannot be cut, and so nothing that shrinks with it.

        Args:
            slot: The dimension.
            size: How many places it has.
            reason: Why.
        """
        group = self._group(slot, size)
        group.frozen = group.frozen or reason

    def link(self, first: Slot, second: Slot, sizes: tuple[int, int], repeat: int = 1) -> None:
        """Say that two dimensions shrink together.

        Args:
            first: One.
            second: The other one.
            sizes: How many places they have.
            repeat: How many neighbouring places of the second belong to one of the first.
        """
        one, other = self._group(first, sizes[0]), self._group(second, sizes[1])
        # How many places of a channel each has, in places of the first.
        width, other_width = one.slots[first] * repeat, other.slots[second]
        if sizes[0] * repeat != sizes[1] or max(width, other_width) % min(width, other_width):
            one.frozen = one.frozen or "It is regrouped in a way that is not followed"
            other.frozen = other.frozen or one.frozen
            return
        if one is other:
            if width != other_width:
                one.frozen = one.frozen or "It is coupled with itself"
            return
        self._merge(one, other, width, other_width)

    def _merge(self, one: Group, other: Group, width: int, other_width: int) -> None:
        """Make two groups one, whose channels are the wider ones of both."""
        wide = max(width, other_width)
        for group, own in ((one, width), (other, other_width)):
            factor = wide // own
            group.channels //= factor
            for slot in group.slots:
                group.slots[slot] *= factor
        one.frozen = one.frozen or other.frozen
        for slot, places in other.slots.items():
            one.slots[slot] = places
            self._homes[slot] = one

    def _group(self, slot: Slot, size: int) -> Group:
        if slot not in self._homes:
            self._homes[slot] = Group(size, {slot: 1})
        return self._homes[slot]
