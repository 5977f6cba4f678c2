"""Writes the artifact's files in place: every byte's position is known before the first is read."""

import errno
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine import pruning_kernels
from engine.blocks import write_at, write_block
from engine.compilation import Bits
from engine.erasers import Eraser
from engine.ledger import StepEntry, TensorEntry
from engine.magnitudes import keys_of, single_precision, sparsity_count
from engine.memory import MemoryMeter
from engine.progress import Ticker
from engine.pruning import PruningPass
from engine.rounding import Rounded, round_block, rounding_errors
from engine.source import Source
from jobs.problems import Problem
from planning.layout import Placement, ShardPlan
from planning.matrices import Block
from planning.selection import Target

_COPY_BYTES = 64 * 1024**2
_BUFFER_BYTES = 1024**2
_NO_COPY_IN_KERNEL = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}


class Writer:
    """Carries tensors from the model's files to the artifact's.

    Args:
        source: The model's files.
        walk: The pruning of the tensors, in the order in which they are written.
        entries: Where the cost of each step is counted.
        meter: Takes a sample of memory for every block.
        ticker: Told how many bytes of the model are done.

    Attributes:
        tensors: What became of every changed tensor, by its name.
    """

    tensors: dict[str, TensorEntry]

    def __init__(
        self,
        source: Source,
        walk: PruningPass,
        entries: Sequence[StepEntry],
        meter: MemoryMeter,
        ticker: Ticker,
    ) -> None:
        self._source = source
        self._walk = walk
        self._entries = entries
        self._meter = meter
        self._ticker = ticker
        self.tensors = {}

    def write_shard(self, plan: ShardPlan, folder: Path) -> None:
        """Write one file and have the disk keep it.

        Args:
            plan: The file.
            folder: Where to.

        Raises:
            Problem: `storage_full`, `non_finite_weight`, or the model's file ended early.
        """
        with _preallocated(folder / plan.source.name, plan.nbytes) as file:
            write_at(file, np.frombuffer(plan.header, np.uint8), 0)
            for placement in plan.placements:
                starts = {r: len(plan.header) + o.start for r, o in placement.outputs.items()}
                if placement.target is None:
                    self._copy(placement, file, starts["weight"])
                else:
                    self._compress(placement, placement.target, file, starts)
            os.fsync(file)
        self._entries[-1].bytes_read += plan.source.header.data_bytes
        self._entries[-1].bytes_written += plan.nbytes

    def _compress(
        self, placement: Placement, target: Target, file: int, starts: dict[str, int]
    ) -> None:
        erasers = self._walk.erasers(target)
        entry = self.tensors[target.name] = TensorEntry()
        if "shape" in starts:
            write_at(file, np.array(placement.source.shape, np.int64), starts["shape"])
        for block, before in self._source.read(target):
            entry.zeros_before += sparsity_count(keys_of(before, self._source.bench))
            after = self._prune(before, target, erasers)
            values: npt.NDArray[Any]
            if target.scheme is None:
                values = self._measure_pruning(before, after, target, entry)
            else:
                rounded = self._round(before, after, target, entry)
                first = block.position // max(1, target.matrix.inputs)
                write_at(file, rounded.stored_scales, starts["scale"] + first * target.itemsize)
                values = rounded.values
                if target.scheme == "w8a16":
                    # An int32 holds four values, each as value + 128: the sign bit turned over.
                    np.bitwise_xor(values.view(np.uint8), np.uint8(0x80), out=values.view(np.uint8))
            self._write(file, starts["weight"], placement, target, block, values)
            self._meter.sample()
            self._ticker.advance(before.nbytes)

    def _prune(self, before: Bits, target: Target, erasers: list[tuple[int, Eraser]]) -> Bits:
        if not erasers:
            return before
        after: Bits = self._source.bench.take("after", before.shape, before.dtype)
        np.copyto(after, before)
        for index, eraser in erasers:
            entry = self._entries[index]
            started = time.perf_counter()
            dtype = target.matrix.tensor.dtype
            entry.weights_pruned += eraser.erase(after, dtype, self._source.bench)
            entry.seconds += time.perf_counter() - started
            entry.tensors.add(target.name)
        return after

    def _round(self, before: Bits, after: Bits, target: Target, entry: TensorEntry) -> Rounded:
        dtype, bench = target.matrix.tensor.dtype, self._source.bench
        started = time.perf_counter()
        rounded = round_block(after, keys_of(after, bench), dtype, bench)
        self._entries[-1].seconds += time.perf_counter() - started
        self._entries[-1].tensors.add(target.name)
        errors = rounding_errors(before, after, dtype, rounded, bench)
        entry.squared_error += errors.squared_error
        entry.squares += errors.squares
        entry.max_error_steps = max(entry.max_error_steps, errors.max_error_steps)
        entry.zeros_after += rounded.values.size - int(np.count_nonzero(rounded.values))
        return rounded

    def _measure_pruning(
        self, before: Bits, after: Bits, target: Target, entry: TensorEntry
    ) -> Bits:
        dtype, bench = target.matrix.tensor.dtype, self._source.bench
        entry.zeros_after += sparsity_count(keys_of(after, bench))
        original, shift = single_precision(before, dtype, bench, "original")
        pruned, _ = single_precision(after, dtype, bench, "single")
        error, squares = pruning_kernels.pruning_errors(original, pruned, shift)
        entry.squared_error += error
        entry.squares += squares
        return after

    def _write(
        self,
        file: int,
        start: int,
        placement: Placement,
        target: Target,
        block: Block,
        values: npt.NDArray[np.generic],
    ) -> None:
        write_block(
            file, start, target.matrix, block, values, placement.row_bytes, self._source.bench
        )

    def _copy(self, placement: Placement, file: int, start: int) -> None:
        source, offset = self._source.place(placement.source.name)
        left = placement.source.nbytes
        while left:
            copied = _copy_range(source, offset, file, start, min(left, _COPY_BYTES))
            if copied == 0:
                raise Problem("invalid_checkpoint", f"A file ended at byte {offset}.")
            offset, start, left = offset + copied, start + copied, left - copied
            self._ticker.advance(copied)


@contextmanager
def _preallocated(path: Path, nbytes: int) -> Iterator[int]:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        os.posix_fallocate(file, 0, nbytes)
        yield file
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise Problem(
            "storage_full", f"There is no room for {nbytes} bytes of {path.name}."
        ) from error
    finally:
        os.close(file)


def _copy_range(source: int, offset: int, file: int, start: int, count: int) -> int:
    try:
        return os.copy_file_range(source, file, count, offset, start)
    except OSError as error:
        if error.errno not in _NO_COPY_IN_KERNEL:
            raise
    return os.pwrite(file, os.pread(source, min(count, _BUFFER_BYTES), offset), start)
