"""How a tensor is cut into the chunks in which it is read, computed and written.

Dimension key: C output channels, I inputs of one channel, P places of a convolution's kernel,
R rows and K columns of a tensor as its file holds it.
"""

import math
from dataclasses import dataclass
from typing import Literal

from planning.selection import Target

#: ``rows``: whole rows, with all that a scale or a row's threshold needs to know. ``pieces``: parts
#: of a row that is too long for that. ``flat``: any run of values, where no step looks at a row.
#: ``panel``: rows of some columns, where the file holds [I, C].
Shape = Literal["rows", "pieces", "flat", "panel"]


#: What is found out about every column of a panel is held at one time; reads are still long.
_PANEL_COLUMNS = 16384


@dataclass(frozen=True)
class Extent:
    """The largest chunk of a tensor; those at its ends are smaller.

    Attributes:
        shape: How the chunks lie in the tensor.
        file_rows: R; 1 where the tensor is taken as one run of values.
        file_columns: K.
        rows: How many rows a chunk has at most.
        width: How many values of each.
    """

    shape: Shape
    file_rows: int
    file_columns: int
    rows: int
    width: int

    @property
    def elements(self) -> int:
        """How many values a chunk has at most."""
        return self.rows * self.width


def extent_of(target: Target, chunk_bytes: int) -> Extent:
    """Say how a tensor is cut.

    Args:
        target: The tensor and what the job does to it.
        chunk_bytes: How large a chunk should be at most.

    Returns:
        The cut. Inputs that N:M pruning or a scale's `group_size` takes together are in one chunk
        however small `chunk_bytes` is; nothing else makes a chunk larger than that.
    """
    matrix = target.matrix
    limit = max(1, chunk_bytes // target.itemsize)
    if matrix.is_transposed:
        together = math.lcm(*target.groups) if target.groups else 1
        width = max(1, min(matrix.channels, limit // together, _PANEL_COLUMNS))
        rows = max(1, limit // width // together) * together
        rows = min(rows, max(1, matrix.inputs))
        return Extent("panel", matrix.inputs, matrix.channels, rows, width)
    together = math.lcm(*(group * matrix.positions for group in target.groups), 1)
    if target.group_size is not None:
        together = math.lcm(together, target.group_size)
    limit = max(1, limit // together) * together
    if not target.whole_channels:
        elements = matrix.channels * matrix.inputs
        return Extent("flat", 1, elements, 1, min(limit, elements))
    if matrix.inputs <= limit:
        rows = min(matrix.channels, limit // max(1, matrix.inputs))
        return Extent("rows", matrix.channels, matrix.inputs, max(1, rows), matrix.inputs)
    return Extent("pieces", matrix.channels, matrix.inputs, 1, limit)
