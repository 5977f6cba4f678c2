"""A chunk rounded to int8, as the writer writes it and the rehearsal only measures it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine import column_kernels, float_kernels, rounding_kernels, scale_kernels
from engine.chunks import file_position
from engine.compilation import Bits, Bytes
from engine.gatherings import Gathering
from engine.looks import Look, Seen
from engine.rankings import MAGNITUDE
from engine.workbench import Workbench
from planning.working_set import RUN, written_row_bytes

#: A packed int32 holds four values, each as value + 128: the sign bit turned over.
_FLIP = 0x80


@dataclass(frozen=True)
class Rounded:
    """What a chunk became, valid until its bench is used again.

    Attributes:
        values: Its bytes, [rows, bytes of a row].
        scales: The bit patterns of the scales that it is the one to write; may be empty.
        first_scale: Which of the tensor's scales is the first of them.
    """

    values: Bytes
    scales: Bits
    first_scale: int


def round_chunk(
    look: Look,
    seen: Seen,
    peaks: Gathering | None,
    bench: Workbench,
    tallies: npt.NDArray[np.float64],
) -> Rounded:
    """Round a chunk to int8.

    Args:
        look: The chunk, of a tensor that is quantized.
        seen: Its weights; their error is counted against those before pruning.
        peaks: The largest magnitudes of its section, where the chunk alone cannot tell its scales.
        bench: Whose memory and kernels are used.
        tallies: As in `rounding_kernels.round_run`.

    Returns:
        What the artifact holds of it. A scale that several chunks share is the first one's.
    """
    target, extent, chunk = look.target, look.extent, look.chunk
    kind = float_kernels.KINDS[target.matrix.tensor.dtype]
    mask = MAGNITUDE[target.itemsize]
    flip = _FLIP if target.is_packed else 0
    is_full = chunk.width == extent.file_columns
    row_bytes = written_row_bytes(target, chunk.width) if is_full else chunk.width
    rounded = bench.take("rounded", (chunk.rows, row_bytes), np.uint8)
    group = target.group_size or chunk.width
    first = file_position(chunk, extent) // (target.group_size or extent.file_columns)
    count = chunk.width if extent.shape == "panel" else chunk.elements // group
    stored = bench.take("scales", (count,), seen.before.dtype)
    scratch = bench.take("scratch", (3, RUN), np.uint32)
    is_pruned = seen.after is not seen.before
    weights = seen.before, seen.after, is_pruned, kind
    if peaks is None:
        bench.kernels.round_rows(*weights, mask, group, stored, flip, rounded, scratch, tallies)
    elif extent.shape == "pieces":
        stored[0] = scale_kernels.scale_of(int(peaks.result()[0]), kind)
        rounding_kernels.round_row(
            seen.before[0], seen.after[0], is_pruned, kind,
            stored, group, flip, rounded[0], scratch, tallies,
        )  # fmt: skip
        stored = stored[: chunk.column == 0]
    else:
        scales = bench.take("column scales", (chunk.width,), np.float32)
        column_kernels.find_scales(peaks.result(), kind, stored, scales)
        column_kernels.round_columns(*weights, scales, flip, rounded, scratch, tallies)
        first, stored = chunk.column, stored[: chunk.width * (chunk.row == 0)]
    return Rounded(rounded, stored, first)
