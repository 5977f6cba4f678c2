"""A tensor seen as output channels with their inputs.

Dimension key: C output channels, I inputs of one channel, P places of a convolution's kernel.

Everything that counts, compares or rounds works on this view, so "row", "tie in row-major order"
and "group of inputs" mean the same for a Linear [out, in], a Conv2d [out, in, kh, kw] and GPT-2's
Conv1D [in, out], whose channels are its columns.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

from jobs.safetensors_header import TensorSpec

#: The dtypes of weights that are pruned and quantized.
WEIGHT_DTYPES = frozenset({"BF16", "F16", "F32"})


@dataclass(frozen=True)
class Matrix:
    """How a tensor's values belong to output channels.

    Attributes:
        tensor: The tensor in its file.
        channels: C.
        inputs: I.
        positions: P, how many consecutive values of a channel belong to one input.
        is_transposed: Whether the file holds [I, C] rather than [C, I].
    """

    tensor: TensorSpec
    channels: int
    inputs: int
    positions: int = 1
    is_transposed: bool = False

    @classmethod
    def of(cls, tensor: TensorSpec, kind: str) -> "Matrix":
        """Give the view that a kind of module asks for.

        Args:
            tensor: A weight, or the bias of a module.
            kind: The module's kind, see `engine.module_kinds`.

        Returns:
            The view; a tensor of rank 0 or 1 is one channel.
        """
        shape = tensor.shape
        if len(shape) < 2:
            return cls(tensor, 1, tensor.elements)
        if kind == "Conv1D":
            return cls(tensor, shape[1], shape[0], is_transposed=True)
        return cls(tensor, shape[0], math.prod(shape[1:]), positions=math.prod(shape[2:]))

    def index(self, position: int) -> tuple[int, ...]:
        """Give the index in the tensor's own shape of a position in the order of this view."""
        channel, i = divmod(position, self.inputs)
        flat = i * self.channels + channel if self.is_transposed else position
        parts = []
        for size in reversed(self.tensor.shape):
            flat, part = divmod(flat, size)
            parts.append(part)
        return tuple(reversed(parts))


def pruned_count(sparsity: float, elements: int) -> int:
    """Give the number of weights that a sparsity means: the nearest integer, ties to even.

    The sparsity is taken as it is written, so 0.3 of 10 is 3 whatever 0.3 is in binary.
    """
    return round(Fraction(str(sparsity)) * elements)
