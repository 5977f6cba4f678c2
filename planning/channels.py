"""Which channels of a program can go, how many stay, and its graph without the others."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from jobs.problems import Problem
from jobs.program import Program
from jobs.report import Skipped
from jobs.steps import ShrinkStep
from planning.coupling_rules import Rules
from planning.couplings import Group
from planning.graph_values import given_of, int_of, made_by, operator_of, strides_of, tensor_of
from planning.naming import module_of
from planning.shrunk_sizes import kept_count

_PRODUCERS = frozenset({"linear", "conv1d", "conv2d", "conv3d", "convolution"})
#: Arguments that repeat the shape of what a node makes.
_SHAPES = {"view": "size", "reshape": "shape", "_unsafe_view": "size", "expand": "size"}


@dataclass(frozen=True)
class Cut:
    """A dimension of a stored tensor that loses channels.

    Attributes:
        tensor: The tensor's name.
        dimension: Which dimension.
        places: How many neighbouring places one channel takes in it.
    """

    tensor: str
    dimension: int
    places: int


@dataclass(frozen=True)
class Shrinkage:
    """Channels that go together.

    Attributes:
        channels: How many there are.
        kept: How many stay.
        cuts: Where they are in stored tensors.
        producers: Of those, the rows of the weights that make them.
        slots: Where they are in the graph: value, dimension and places of a channel.
    """

    channels: int
    kept: int
    cuts: tuple[Cut, ...]
    producers: tuple[Cut, ...]
    slots: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class ShrinkPlan:
    """What a shrink step does.

    Attributes:
        shrinkages: The groups of channels that lose some.
        shapes: The new shape of each tensor that becomes smaller, by its name.
        skipped: Weights whose channels all stay, with the reason.
    """

    shrinkages: tuple[Shrinkage, ...]
    shapes: Mapping[str, tuple[int, ...]]
    skipped: tuple[Skipped, ...]


def plan_shrink(program: Program, step: ShrinkStep) -> ShrinkPlan:
    """Decide how many channels go where.

    Args:
        program: The program.
        step: What is wanted.

    Returns:
        The decision. Inputs and outputs of the program keep their shapes.

    Raises:
        Problem: `nothing_changed`: no channel can go; the detail says why.
    """
    makers = _makers(program)
    shrinkages, skipped = [], []
    for group in Rules(program).couplings.groups():
        made = [(name, dimension) for name, dimension in group.slots if (name, dimension) in makers]
        names = [program.sources[name] for name, _ in made]
        if not names:
            continue
        kept = kept_count(step.width or 1.0, group.channels, step.round_to)
        reason = group.frozen or _reason(names, step, group.channels, kept)
        if reason is not None:
            skipped += [Skipped(name=name, op="shrink", reason=f"{reason}.") for name in names]
            continue
        shrinkages.append(_shrinkage(program, group, kept, set(made)))
    if not shrinkages:
        told = "; ".join(f"{one.name}: {one.reason}" for one in skipped[:5])
        raise Problem(
            "nothing_changed",
            f"The shrink step would remove no channel. {told or 'No Linear or Conv makes any.'}",
        )
    return ShrinkPlan(tuple(shrinkages), _shapes(program, shrinkages), tuple(skipped))


def shrink_document(document: Mapping[str, Any], plan: ShrinkPlan) -> dict[str, Any]:
    """Give a program's document as it is when the channels are gone.

    Args:
        document: The document.
        plan: What goes.

    Returns:
        A new document.
    """
    changed: dict[str, Any] = copy.deepcopy(dict(document))
    graph = changed["graph_module"]["graph"]
    sizes: dict[tuple[str, int], int] = {}
    for shrinkage in plan.shrinkages:
        for name, dimension, places in shrinkage.slots:
            sizes[name, dimension] = shrinkage.kept * places
    for (name, dimension), size in sizes.items():
        graph["tensor_values"][name]["sizes"][dimension] = {"as_int": size}
    for name in {name for name, _ in sizes}:
        meta = graph["tensor_values"][name]
        meta["strides"] = strides_of(meta["sizes"])
    for node in graph["nodes"]:
        _resize(node, sizes, graph["tensor_values"])
    return changed


def _resize(
    node: dict[str, Any], sizes: Mapping[tuple[str, int], int], values: Mapping[str, Any]
) -> None:
    """Change the numbers in a node that repeat a size that changed."""
    operator, given = operator_of(node), given_of(node)
    made = made_by(node)
    if operator in _PRODUCERS and int_of(given, "groups", 1) > 1:
        weight = tensor_of(given, "weight")
        if weight is not None and (weight, 0) in sizes:
            given["groups"]["as_int"] = sizes[weight, 0]  # type: ignore[index]
    if operator not in _SHAPES or not made:
        return
    argument = given[_SHAPES[operator]]
    for dimension in range(len(values[made[0]]["sizes"])):
        if (made[0], dimension) not in sizes:
            continue
        size = sizes[made[0], dimension]
        if "as_ints" in argument and argument["as_ints"][dimension] >= 0:
            argument["as_ints"][dimension] = size
        elif (
            "as_sym_ints" in argument and argument["as_sym_ints"][dimension].get("as_int", -1) >= 0
        ):
            argument["as_sym_ints"][dimension] = {"as_int": size}


def _makers(program: Program) -> set[tuple[str, int]]:
    """Give the rows of every weight that makes channels, as the graph names them."""
    found = set()
    for node in program.graph["nodes"]:
        if operator_of(node) in _PRODUCERS:
            weight = tensor_of(given_of(node), "weight")
            groups = int_of(given_of(node), "groups", 1)
            # A depthwise convolution passes channels on that others made.
            if weight in program.sources and groups == 1:
                found.add((weight, 0))
    return found


def _reason(names: list[str], step: ShrinkStep, channels: int, kept: int) -> str | None:
    modules = [module_of(name) or name for name in names]
    if any(fnmatchcase(module, pattern) for module in modules for pattern in step.exclude):
        return f"An exclude pattern of the recipe names one of {', '.join(modules)}"
    if step.include is not None and not any(
        fnmatchcase(module, pattern) for module in modules for pattern in step.include
    ):
        return "No include pattern of the recipe names it"
    if kept >= channels:
        return f"Of its {channels} channels {kept} would stay"
    return None


def _shrinkage(program: Program, group: Group, kept: int, made: set[tuple[str, int]]) -> Shrinkage:
    cuts = {
        slot: Cut(program.sources[slot[0]], slot[1], places)
        for slot, places in group.slots.items()
        if slot[0] in program.sources
    }
    return Shrinkage(
        channels=group.channels,
        kept=kept,
        cuts=tuple(cuts.values()),
        producers=tuple(cut for slot, cut in cuts.items() if slot in made),
        slots=tuple((name, dimension, places) for (name, dimension), places in group.slots.items()),
    )


def _shapes(program: Program, shrinkages: list[Shrinkage]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for shrinkage in shrinkages:
        for cut in shrinkage.cuts:
            shape = list(shapes.get(cut.tensor, program.tensors[cut.tensor].spec.shape))
            shape[cut.dimension] = shrinkage.kept * cut.places
            shapes[cut.tensor] = tuple(shape)
    return shapes
