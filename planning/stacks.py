"""The layers that a checkpoint has, and what of each could be cut, as values.

Dimension key: U units (heads with the keys and values that they share, or channels) of one layer.
"""

import re
from dataclasses import dataclass
from typing import Literal

from jobs.checkpoint import Checkpoint
from jobs.problems import Problem
from jobs.safetensors_header import TensorSpec
from planning.anatomy import Family, Heads, Stack

Unit = Literal["heads", "channels"]


@dataclass(frozen=True)
class Part:
    """Where a tensor holds U units: one behind the other along one of its axes.

    Attributes:
        start: The first one's place.
        width: How many rows or columns each has.
        is_scored: Whether its weights count for a unit's importance, as they are or times what
            they are given.
    """

    start: int
    width: int
    is_scored: bool


@dataclass(frozen=True)
class Piece:
    """A tensor of a layer that is smaller with fewer units.

    Attributes:
        tensor: The tensor.
        axis: Along which of its axes it is.
        parts: Where the units are along it.
    """

    tensor: TensorSpec
    axis: int
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Layers:
    """The layers of one stack, as a checkpoint has them.

    Attributes:
        stack: Which stack.
        is_transposed: Whether weights are [in, out].
        path: Its whole name.
        tensors: By the number of a layer, its tensors by what follows that number.
    """

    stack: Stack
    is_transposed: bool
    path: str
    tensors: tuple[dict[str, TensorSpec], ...]


@dataclass(frozen=True)
class Dimension:
    """Something that every layer of a stack has the same number of.

    Attributes:
        layers: Whose.
        unit: What is counted.
        block: The name of the module in each layer that it belongs to.
        modules: The modules in each layer whose tensors become smaller with it.
        count: U.
        queries: How many query heads a unit has; 1 for channels.
        head_size: How many values a head has; 1 for channels.
        pieces: By the number of a layer, what becomes smaller.
        heads: What is known of the heads; None of channels.
    """

    layers: Layers
    unit: Unit
    block: str
    modules: tuple[str, ...]
    count: int
    queries: int
    head_size: int
    pieces: tuple[tuple[Piece, ...], ...]
    heads: Heads | None = None

    @property
    def is_shared(self) -> bool:
        """Whether all layers keep the same units."""
        return self.heads is not None and self.heads.shared_bias is not None


def find_layers(checkpoint: Checkpoint, family: Family, stack: Stack) -> Layers | None:
    """Find the layers of a stack.

    Args:
        checkpoint: The model.
        family: What it belongs to.
        stack: One of the family's.

    Returns:
        The layers; None where no tensor's name fits.

    Raises:
        Problem: `invalid_checkpoint`: a layer is missing, or there are two such stacks.
    """
    pattern = re.compile(rf"((?:.*\.)?{re.escape(stack.path)})\.(0|[1-9][0-9]*)\.(.+)")
    found: dict[int, dict[str, TensorSpec]] = {}
    paths = set()
    for name, tensor in checkpoint.tensors.items():
        match = pattern.fullmatch(name)
        if match is not None:
            paths.add(match[1])
            found.setdefault(int(match[2]), {})[match[3]] = tensor
    if not any(f"{stack.channels.inputs}.weight" in layer for layer in found.values()):
        return None
    if len(paths) > 1:
        raise Problem("invalid_checkpoint", f"It has layers in {' and in '.join(sorted(paths))}.")
    path = paths.pop()
    missing = next((n for n in range(len(found)) if n not in found), None)
    if missing is not None:
        raise Problem("invalid_checkpoint", f"No tensor's name begins with {path}.{missing}.")
    tensors = tuple(found[number] for number in range(len(found)))
    return Layers(stack, family.is_transposed, path, tensors)
