"""The model's files, open for reading block by block."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from engine.blocks import read_block
from engine.compilation import Bits
from engine.kernels import Kernels
from engine.magnitudes import first_non_finite, keys_of
from engine.workbench import Workbench
from jobs.checkpoint import Checkpoint
from jobs.problems import Problem
from planning.matrices import Block, Matrix, blocks
from planning.selection import Target


class Source:
    """Reads tensors of a checkpoint in blocks; a context that closes its files.

    Args:
        checkpoint: The model.
        chunk_bytes: How large a block may be.
        kernels: What computes on the blocks.

    Attributes:
        bench: Memory that all blocks of the job share.
    """

    bench: Workbench

    def __init__(self, checkpoint: Checkpoint, chunk_bytes: int, kernels: Kernels) -> None:
        self.bench = Workbench(kernels)
        self._checkpoint = checkpoint
        self._chunk_bytes = chunk_bytes
        self._places: dict[str, tuple[int, int]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        for shard in self._checkpoint.shards:
            path = self._checkpoint.folder / shard.name
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._stack.callback(os.close, file)
            for tensor in shard.header.tensors:
                self._places[tensor.name] = file, shard.header.data_start + tensor.start
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def place(self, tensor_name: str) -> tuple[int, int]:
        """Give the file descriptor of a tensor and the offset of its first byte."""
        return self._places[tensor_name]

    def read(self, target: Target) -> Iterator[tuple[Block, Bits]]:
        """Read a tensor block by block.

        Args:
            target: The tensor.

        Yields:
            Each block with its bit patterns, valid until the next one.

        Raises:
            Problem: `non_finite_weight`, with the tensor and the index of the first NaN or
                infinity in it.
        """
        matrix = target.matrix
        file, start = self.place(target.name)
        for block in blocks(matrix, self._chunk_bytes, whole_channels=target.whole_channels):
            bits = read_block(file, start, matrix, block, self.bench)
            self._refuse_non_finite(matrix, block, bits)
            yield block, bits

    def _refuse_non_finite(self, matrix: Matrix, block: Block, bits: Bits) -> None:
        found = first_non_finite(keys_of(bits, self.bench), matrix.tensor.dtype)
        if found is None:
            return
        index = matrix.index(block.position + found)
        raise Problem(
            "non_finite_weight",
            f"Tensor {matrix.tensor.name!r} holds a NaN or an infinity at index {list(index)}.",
            extra={"tensor": matrix.tensor.name, "index": list(index)},
        )
