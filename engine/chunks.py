"""The chunks of a tensor in the order in which they are worked on.

Dimension key: C output channels, I inputs of one channel.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from planning.extents import Extent
from planning.matrices import Matrix


@dataclass(frozen=True)
class Chunk:
    """A rectangle of a tensor as its file holds it.

    Attributes:
        row: Its first row.
        rows: How many it has.
        column: Its first value in each.
        width: How many it has.
        is_run: Whether its values are neighbours in the file.
    """

    row: int
    rows: int
    column: int
    width: int
    is_run: bool

    @property
    def elements(self) -> int:
        """How many values it has."""
        return self.rows * self.width


@dataclass(frozen=True)
class Section:
    """A part of a tensor whose scales and thresholds do not depend on the rest.

    Attributes:
        extent: How it is cut.
        row: Its first row.
        rows: How many it has.
        column: Its first value in each.
        width: How many it has.
    """

    extent: Extent
    row: int
    rows: int
    column: int
    width: int

    @property
    def count(self) -> int:
        """How many chunks it has."""
        return -(-self.rows // self.extent.rows) * -(-self.width // self.extent.width)

    @property
    def is_one_stream(self) -> bool:
        """Whether nothing but the ties before it connects a chunk to the others."""
        return self.extent.shape in {"rows", "flat"}

    def chunks(self) -> Iterator[Chunk]:
        """Cut it, in the order of its file."""
        is_full = self.width == self.extent.file_columns
        for row in range(self.row, self.row + self.rows, self.extent.rows):
            rows = min(self.extent.rows, self.row + self.rows - row)
            if self.extent.shape == "panel":
                yield Chunk(row, rows, self.column, self.width, is_full or rows == 1)
                continue
            for column in range(self.column, self.column + self.width, self.extent.width):
                width = min(self.extent.width, self.column + self.width - column)
                yield Chunk(row, rows, column, width, is_run=True)


def sections(extent: Extent) -> Iterator[Section]:
    """Cut a tensor where scales and thresholds allow it.

    Args:
        extent: How it is cut into chunks.

    Yields:
        Every row on its own where rows are cut, every panel of columns, or the whole.
    """
    rows, columns = extent.file_rows, extent.file_columns
    if 0 in (rows, columns):
        return
    if extent.shape == "pieces":
        for row in range(rows):
            yield Section(extent, row, 1, 0, columns)
    elif extent.shape == "panel":
        for column in range(0, columns, extent.width):
            yield Section(extent, 0, rows, column, min(extent.width, columns - column))
    else:
        yield Section(extent, 0, rows, 0, columns)


def file_position(chunk: Chunk, extent: Extent) -> int:
    """Give the place of a chunk's first value in its tensor as the file holds it."""
    return chunk.row * extent.file_columns + chunk.column


def steps_of(chunk: Chunk, extent: Extent, matrix: Matrix) -> tuple[int, int, int]:
    """Give the place of a chunk's first value in the order of channels, and those of neighbours.

    Args:
        chunk: The chunk.
        extent: How its tensor is cut.
        matrix: The tensor as channels and inputs.

    Returns:
        The position, and how far from it the next row's and the next column's value lie.
    """
    if matrix.is_transposed:
        return chunk.column * matrix.inputs + chunk.row, 1, matrix.inputs
    return file_position(chunk, extent), extent.file_columns, 1
