"""The values of a program's tensors as numpy arrays, 16-bit floats as their bits."""

from typing import Any

import numpy as np
import numpy.typing as npt

from jobs.program import Program

#: Whatever an entry holds.
Raw = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

_TYPES: dict[str, npt.DTypeLike] = {
    "BOOL": np.uint8, "U8": np.uint8, "I8": np.int8, "I16": np.int16, "I32": np.int32,
    "I64": np.int64, "F16": np.float16, "BF16": np.uint16, "F32": np.float32, "F64": np.float64,
}  # fmt: skip


class ProgramFile:
    """Reads the tensors of a program, which lies on the disk until they are asked for.

    Args:
        program: The program.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._bytes = np.memmap(program.path, np.uint8, "r")

    def entry(self, name: str) -> npt.NDArray[np.uint8]:
        """Give the bytes of an entry."""
        start, nbytes = self._program.spans[name]
        return self._bytes[start : start + nbytes]

    def read(self, name: str) -> Raw:
        """Give the values of a tensor, in its shape, of its dtype; a view of the file."""
        tensor = self._program.tensors[name]
        kind = np.dtype(_TYPES[tensor.spec.dtype])
        raw = self.entry(tensor.entry)
        count = len(raw) // kind.itemsize
        values = np.frombuffer(raw.data, kind, count)
        if 0 in tensor.spec.shape:
            return values[:0].reshape(tensor.spec.shape)
        # Its reach was checked against the entry when the program was opened.
        return np.lib.stride_tricks.as_strided(
            values[tensor.offset :],
            tensor.spec.shape,
            tuple(stride * kind.itemsize for stride in tensor.strides),
            writeable=False,
        )

    def read_floats(self, name: str) -> Floats:
        """Give the values of a 16- or 32-bit float tensor, exactly."""
        return to_floats(self.read(name), self._program.tensors[name].spec.dtype)


def to_floats(raw: Raw, dtype: str) -> Floats:
    """Widen floats.

    Args:
        raw: Of any shape, as `ProgramFile.read` gives them.
        dtype: What safetensors calls their dtype.

    Returns:
        The same values as float32.
    """
    if dtype == "BF16":
        return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return raw.astype(np.float32)


def round_up(values: Floats, dtype: str) -> Raw:
    """Narrow positive floats, none to less than it was.

    Args:
        values: Positive, float32.
        dtype: BF16, F16 or F32.

    Returns:
        The values, as `ProgramFile.read` would give them.
    """
    if dtype == "BF16":
        return ((values.view(np.uint32) + np.uint32(0xFFFF)) >> np.uint32(16)).astype(np.uint16)
    if dtype == "F16":
        nearest = values.astype(np.float16)
        is_less = nearest.astype(np.float32) < values
        return np.where(is_less, np.nextafter(nearest, np.float16(np.inf)), nearest)
    return values
