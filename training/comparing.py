"""What training made of every tensor, found by reading both files, a piece at a time."""

import math
import os
from dataclasses import dataclass

import numpy as np

from jobs.checkpoint import Checkpoint
from jobs.problems import Problem
from jobs.safetensors_header import TensorSpec

_PIECE_BYTES = 2 * 1024**2
_FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}


@dataclass
class Difference:
    """A tensor before and after.

    Attributes:
        is_float: Whether it can have been trained.
        elements: How many values it has.
        zeros_before: How many of them were zero.
        zeros_after: How many are.
        zeros_scattered: How many were zero in rows that were not zero as a whole.
        zeros_lost: How many of these are not zero any more.
        non_finite: How many are NaN or infinite.
        squares: Sum of squares before.
        squared_error: Sum of squared differences.
        is_changed: Whether a bit of it is another.
    """

    is_float: bool
    elements: int
    zeros_before: int = 0
    zeros_after: int = 0
    zeros_scattered: int = 0
    zeros_lost: int = 0
    non_finite: int = 0
    squares: float = 0.0
    squared_error: float = 0.0
    is_changed: bool = False

    @property
    def relative_rmse(self) -> float:
        """Root mean square of the differences over that of what came in; 0 where that is 0."""
        return math.sqrt(self.squared_error / self.squares) if self.squares else 0.0


class Pair:
    """A tensor's files, before and after.

    Args:
        before: The model that came in.
        after: What training made of it.
    """

    def __init__(self, before: Checkpoint, after: Checkpoint) -> None:
        self._before = {tensor.name: (shard, tensor) for shard, tensor in before.walk()}
        self._after = {tensor.name: (shard, tensor) for shard, tensor in after.walk()}
        self._folders = before.folder, after.folder

    def compare(self, name: str) -> Difference:
        """Compare a tensor, all of it.

        Args:
            name: A tensor that both have, of one dtype and shape.

        Returns:
            The difference.

        Raises:
            Problem: `invalid_artifact`: a file ended early.
        """
        (shard, tensor), (other_shard, other) = self._before[name], self._after[name]
        found = Difference(tensor.dtype in _FLOATS, tensor.elements)
        first = (self._folders[0] / shard.name, shard.header.data_start + tensor.start)
        second = (self._folders[1] / other_shard.name, other_shard.header.data_start + other.start)
        with open(first[0], "rb") as before, open(second[0], "rb") as after:
            row_bytes = tensor.nbytes // tensor.shape[0] if len(tensor.shape) > 1 else 1
            step = max(1, _PIECE_BYTES // max(1, row_bytes)) * max(1, row_bytes)
            for start in range(0, tensor.nbytes, step):
                size = min(step, tensor.nbytes - start)
                pieces = (
                    os.pread(before.fileno(), size, first[1] + start),
                    os.pread(after.fileno(), size, second[1] + start),
                )
                if len(pieces[0]) != size or len(pieces[1]) != size:
                    raise Problem("invalid_artifact", f"The file of {name!r} ended early.")
                add_piece(found, tensor, pieces)
        return found


def add_piece(found: Difference, tensor: TensorSpec, pieces: tuple[bytes, bytes]) -> None:
    """Add a piece to a difference.

    Args:
        found: What was found so far; added to in place.
        tensor: The tensor.
        pieces: Some of its rows, before and after.
    """
    found.is_changed |= pieces[0] != pieces[1]
    if not found.is_float:
        return
    before, after = (_values(tensor.dtype, piece) for piece in pieces)
    was_zero, is_zero = before == 0, after == 0
    found.zeros_before += int(was_zero.sum())
    found.zeros_after += int(is_zero.sum())
    if len(tensor.shape) > 1 and tensor.elements:
        rows = was_zero.reshape(-1, tensor.elements // tensor.shape[0])
        # A row of zeros is padding's in an embedding, and may learn.
        scattered = rows & ~rows.all(axis=1, keepdims=True)
        found.zeros_scattered += int(scattered.sum())
        found.zeros_lost += int((scattered.reshape(-1) & ~is_zero).sum())
    found.non_finite += int((~np.isfinite(after)).sum())
    with np.errstate(all="ignore"):
        found.squares += float(np.square(before, dtype=np.float64).sum())
        found.squared_error += float(np.square(after.astype(np.float64) - before).sum())


def _values(dtype: str, raw: bytes) -> np.ndarray:
    stored = np.frombuffer(raw, _FLOATS[dtype])
    if dtype == "BF16":
        # The upper half of a float32.
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored
