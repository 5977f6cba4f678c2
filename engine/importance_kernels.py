"""Sums of squares along rows and columns, compiled.

What is kept depends on them, so they are taken in one order whatever the machine: no loop may be
rearranged, and no product be fused with a sum.
"""

from engine.compilation import Integer, Singles, Tallies, kernel


@kernel("void(float32[::1], int64, float64[::1])")
def add_rows(values: Singles, columns: Integer, sums: Tallies) -> None:
    """Add the squares of every row of a matrix to that row's sum.

    Args:
        values: The matrix, row by row.
        columns: How many values a row has.
        sums: One sum for each row.
    """
    for row in range(sums.size):
        start = row * columns
        # Four sums at a time, because each waits for itself.
        first = 0.0
        second = 0.0
        third = 0.0
        fourth = 0.0
        for i in range(start, start + columns // 4 * 4, 4):
            first += float(values[i]) * float(values[i])
            second += float(values[i + 1]) * float(values[i + 1])
            third += float(values[i + 2]) * float(values[i + 2])
            fourth += float(values[i + 3]) * float(values[i + 3])
        for i in range(start + columns // 4 * 4, start + columns):
            first += float(values[i]) * float(values[i])
        sums[row] += (first + second) + (third + fourth)


@kernel("void(float32[::1], float64[::1])")
def add_columns(values: Singles, sums: Tallies) -> None:
    """Add the squares of every column of a matrix to that column's sum.

    Args:
        values: The matrix, row by row.
        sums: One sum for each column.
    """
    columns = sums.size
    for row in range(values.size // columns):
        for i in range(columns):
            value = float(values[row * columns + i])
            sums[i] += value * value


@kernel("void(float64[::1], int64, float64[::1])")
def add_units(sums: Tallies, width: Integer, units: Tallies) -> None:
    """Add up the sums of neighbours.

    Args:
        sums: The sums; those of a unit are neighbours.
        width: How many each unit has.
        units: Where the result goes: one sum for each unit.
    """
    for unit in range(units.size):
        total = 0.0
        for i in range(unit * width, (unit + 1) * width):
            total += sums[i]
        units[unit] = total
