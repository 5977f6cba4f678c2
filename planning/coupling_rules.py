"""What each operator of aten couples, for programs whose channels are to be removed.

Dimension key: B rows, C channels, places H and W of an image.

An operator that is not known here freezes whatever it touches, so what is cut is proven.
"""

from collections.abc import Callable, Mapping
from typing import Any

from jobs.program import Program
from planning.couplings import Couplings, Slot, merging
from planning.graph_values import (
    given_of,
    int_of,
    ints_of,
    made_by,
    operator_of,
    shape_of,
    taken_by,
    tensor_of,
    tokens_of,
)
from planning.operator_kinds import (
    BROADCAST,
    CONVOLUTIONS,
    NORMS,
    POOLS,
    REDUCTIONS,
    SAME,
    SHAPED,
)


class Rules:
    """Finds the couplings of a program.

    Args:
        program: The program.

    Attributes:
        couplings: What was found.
    """

    couplings: Couplings

    def __init__(self, program: Program) -> None:
        self.couplings = Couplings()
        self._values = program.graph["tensor_values"]
        self._program = program
        graph = program.graph
        known: dict[str, Callable[[Mapping[str, Any]], bool]] = {
            **dict.fromkeys(SAME, self._same),
            **dict.fromkeys(BROADCAST, self._broadcast),
            **dict.fromkeys(POOLS, self._pool),
            **dict.fromkeys(CONVOLUTIONS, self._convolution),
            **dict.fromkeys(NORMS, self._batch_norm),
            **dict.fromkeys(REDUCTIONS, self._reduction),
            **dict.fromkeys(SHAPED, self._reshape),
            "linear": self._linear,
            "sym_size": self._sym_size,
            "permute": self._permute,
        }
        for node in graph["nodes"]:
            rule = known.get(operator_of(node))
            if rule is None or not rule(node):
                self._freeze_node(node)
        self._freeze_ends()

    # What holds for ends of the program.

    def _freeze_ends(self) -> None:
        module = self._program.document["graph_module"]
        for spec in module["signature"]["input_specs"]:
            if "user_input" in spec:
                self._freeze(tensor_of(spec["user_input"], "arg"), "It is an input of the program")
        for argument in self._program.graph["outputs"]:
            self._freeze(
                tensor_of({"output": argument}, "output"), "It is an output of the program"
            )
        for name, source in self._program.sources.items():
            if not self._program.is_whole(source):
                self._freeze(name, "It shares its bytes, or they do not lie one behind the other")

    def _freeze_node(self, node: Mapping[str, Any]) -> None:
        for name in (*taken_by(node), *made_by(node)):
            self._freeze(name, f"{operator_of(node)} is not followed")

    def _freeze(self, name: str | None, reason: str) -> None:
        if name is None or name not in self._values:
            return
        for dimension in range(len(self._values[name]["sizes"])):
            self._freeze_slot((name, dimension), reason)

    def _freeze_slot(self, slot: Slot, reason: str) -> None:
        self.couplings.freeze(slot, self._size(slot), reason)

    def _link(self, first: Slot, second: Slot, repeat: int = 1) -> None:
        sizes = self._size(first), self._size(second)
        if -1 in sizes:
            # Sizes that vary from call to call are nothing that a weight has.
            for slot in (first, second):
                self._freeze_slot(slot, "Its size varies")
            return
        self.couplings.link(first, second, sizes, repeat)

    def _size(self, slot: Slot) -> int:
        return shape_of(self._values, slot[0])[slot[1]]

    def _rank(self, name: str) -> int:
        return len(self._values[name]["sizes"])

    # Operators. Each says whether it followed the node.

    def _same(self, node: Mapping[str, Any]) -> bool:
        made, taken = made_by(node), taken_by(node)
        if len(made) != 1 or len(taken) != 1 or self._rank(made[0]) != self._rank(taken[0]):
            return False
        for dimension in range(self._rank(made[0])):
            self._link((taken[0], dimension), (made[0], dimension))
        return True

    def _broadcast(self, node: Mapping[str, Any]) -> bool:
        [made] = made_by(node)
        for name in taken_by(node):
            shift = self._rank(made) - self._rank(name)
            for dimension in range(self._rank(name)):
                slot, other = (name, dimension), (made, dimension + shift)
                if self._size(slot) == 1 != self._size(other):
                    continue
                self._link(slot, other)
        return True

    def _pool(self, node: Mapping[str, Any]) -> bool:
        made, taken = made_by(node), taken_by(node)
        places = 1 if "1d" in operator_of(node) else 3 if "3d" in operator_of(node) else 2
        for name in made[1:]:
            self._freeze(name, "It counts places")
        for dimension in range(self._rank(taken[0])):
            if dimension < self._rank(taken[0]) - places:
                self._link((taken[0], dimension), (made[0], dimension))
            else:
                self._freeze_slot((taken[0], dimension), "It is pooled")
                self._freeze_slot((made[0], dimension), "It is pooled")
        return len(taken) == 1

    def _convolution(self, node: Mapping[str, Any]) -> bool:
        given, [made] = given_of(node), made_by(node)
        image, weight, bias = (tensor_of(given, name) for name in ("input", "weight", "bias"))
        if image is None or weight is None or given.get("transposed", {}).get("as_bool"):
            return False
        channel = self._rank(image) - self._rank(weight) + 1
        for dimension in range(self._rank(image)):
            if dimension != channel:
                self._freeze_slot((image, dimension), "It is a place or a row")
                self._freeze_slot((made, dimension), "It is a place or a row")
        for dimension in range(2, self._rank(weight)):
            self._freeze_slot((weight, dimension), "It is a place of a kernel")
        outputs, inputs = (shape_of(self._values, weight)[i] for i in (0, 1))
        groups = int_of(given, "groups", 1)
        if groups not in (1, outputs) or (groups > 1 and inputs != 1):
            return False
        if groups > 1:
            if self._size((image, channel)) != outputs:
                return False
            self._freeze_slot((weight, 1), "It is 1")
            self._link((image, channel), (weight, 0))
        else:
            self._link((image, channel), (weight, 1))
        self._link((weight, 0), (made, channel))
        if bias is not None:
            self._link((weight, 0), (bias, 0))
        return True

    def _linear(self, node: Mapping[str, Any]) -> bool:
        given, [made] = given_of(node), made_by(node)
        taken, weight, bias = (tensor_of(given, name) for name in ("input", "weight", "bias"))
        if taken is None or weight is None:
            return False
        last = self._rank(taken) - 1
        for dimension in range(last):
            self._link((taken, dimension), (made, dimension))
        self._link((taken, last), (weight, 1))
        self._link((weight, 0), (made, last))
        if bias is not None:
            self._link((weight, 0), (bias, 0))
        return True

    def _batch_norm(self, node: Mapping[str, Any]) -> bool:
        given, made = given_of(node), made_by(node)
        image = tensor_of(given, "input")
        if image is None or given.get("training", {}).get("as_bool"):
            return False
        for dimension in range(self._rank(image)):
            self._link((image, dimension), (made[0], dimension))
        for name in taken_by(node):
            if name != image:
                self._link((image, 1), (name, 0))
        for name in made[1:]:
            self._freeze(name, "It is a statistic")
        return True

    def _reduction(self, node: Mapping[str, Any]) -> bool:
        given, [made], [taken] = given_of(node), made_by(node), taken_by(node)
        rank = self._rank(taken)
        dimensions = ints_of(given, "dim")
        if not dimensions:
            return False
        reduced = {dimension % rank for dimension in dimensions}
        keeps = bool(given.get("keepdim", {}).get("as_bool"))
        place = 0
        for dimension in range(rank):
            if dimension in reduced:
                self._freeze_slot((taken, dimension), "It is summed over")
                place += keeps
            else:
                self._link((taken, dimension), (made, place))
                place += 1
        return True

    def _sym_size(self, node: Mapping[str, Any]) -> bool:
        given = given_of(node)
        [taken] = taken_by(node)
        if "as_int" not in given.get("dim", {}):
            return False
        self._freeze_slot((taken, int_of(given, "dim", 0) % self._rank(taken)), "Its size is read")
        return True

    def _permute(self, node: Mapping[str, Any]) -> bool:
        [made], [taken] = made_by(node), taken_by(node)
        for place, dimension in enumerate(ints_of(given_of(node), "dims")):
            self._link((taken, dimension % self._rank(taken)), (made, place))
        return True

    def _reshape(self, node: Mapping[str, Any]) -> bool:
        """Follow dimensions that stay, and those that are merged with all that come after them."""
        made, taken = made_by(node), taken_by(node)
        if len(made) != 1 or len(taken) != 1:
            return False
        before, after = (tokens_of(self._values, name) for name in (taken[0], made[0]))
        staying, repeat = merging(before, after)
        for place in range(staying):
            self._link((taken[0], place), (made[0], place))
        if repeat is not None:
            self._link((taken[0], staying), (made[0], staying), repeat)
        for name, first in ((taken[0], staying + (repeat is not None)), (made[0], staying)):
            if name == taken[0] or repeat is None:
                for dimension in range(first, self._rank(name)):
                    self._freeze_slot((name, dimension), "It is regrouped")
        return True
