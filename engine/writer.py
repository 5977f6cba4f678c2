"""Writes the artifact's files in place: every byte's position is known before the first is read.

Dimension key: R rows of a chunk, W values of each.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine import (
    column_kernels,
    float_kernels,
    pruning_kernels,
    rounding_kernels,
    scale_kernels,
)
from engine.chunks import file_position
from engine.crew import Settlement, Task
from engine.gatherings import Gathering
from engine.ledger import StepEntry, TensorEntry
from engine.looks import Look, Seen
from engine.outputs import Output, Outputs
from engine.progress import Ticker
from engine.pruning import Pruning, Relays
from engine.rankings import MAGNITUDE
from engine.source import Source
from engine.workbench import Workbench
from planning.layout import Placement, ShardPlan
from planning.working_set import RUN

_COPY_BYTES = 8 * 1024**2
#: An int32 holds four values, each as value + 128: the sign bit turned over.
_FLIP = {"w8a16": 0x80, "w8a8": 0}


class Writer:
    """Makes the tasks that carry tensors from the model's files to the artifact's.

    Args:
        source: The model's files.
        outputs: The artifact's files.
        pruning: Looks at the tensors that change.
        entries: Where the cost of each step is counted.
        ticker: Told how many bytes of the model are done.

    Attributes:
        tensors: What became of every changed tensor, by its name.
    """

    tensors: dict[str, TensorEntry]

    def __init__(
        self,
        source: Source,
        outputs: Outputs,
        pruning: Pruning,
        entries: Sequence[StepEntry],
        ticker: Ticker,
    ) -> None:
        self._source = source
        self._outputs = outputs
        self._pruning = pruning
        self._entries = entries
        self._ticker = ticker
        self.tensors = {}

    def tasks(self, shards: Sequence[ShardPlan]) -> Iterator[Task]:
        """Make the tasks of all files, in their order.

        Args:
            shards: The files.

        Yields:
            The tasks. When the last one of a file has run, the disk is told to keep that file.
        """
        totals: Relays = {}
        for shard in shards:
            output = self._outputs.create(shard.source.name, shard.nbytes)
            output.write(np.frombuffer(shard.header, np.uint8), 0)
            for placement in shard.placements:
                starts = {r: len(shard.header) + o.start for r, o in placement.outputs.items()}
                if placement.target is None:
                    yield from self._copies(placement, output, starts["weight"])
                else:
                    yield from self._presses(placement, output, starts, totals)
            self._entries[-1].bytes_read += shard.source.header.data_bytes
            self._entries[-1].bytes_written += shard.nbytes
            output.let_go()

    def _copies(self, placement: Placement, output: Output, start: int) -> Iterator[Task]:
        file, offset = self._source.place(placement.source.name)
        nbytes = placement.source.nbytes
        for done in range(0, nbytes, _COPY_BYTES):
            output.hold()
            count = min(_COPY_BYTES, nbytes - done)
            yield _Copy(file, offset + done, output, start + done, count, self._ticker)

    def _presses(
        self, placement: Placement, output: Output, starts: Mapping[str, int], totals: Relays
    ) -> Iterator[Task]:
        target = placement.target
        assert target is not None  # noqa: S101 - the caller asked
        entry = self.tensors[target.name] = TensorEntry()
        if "shape" in starts:
            output.write(np.array(placement.source.shape, np.int64), starts["shape"])
        if target.scheme is not None:
            self._entries[-1].tensors.add(target.name)
        for index in target.prune_steps:
            self._entries[index].tensors.add(target.name)

        def make(look: Look, peaks: Gathering | None) -> Task:
            output.hold()
            place = _Place(output, starts, placement.row_bytes)
            return _Press(look, peaks, place, entry, self._entries, self._ticker)

        limit = len(self._entries)
        yield from self._pruning.look_at(target, limit, totals, make, with_peaks=True)


@dataclass(frozen=True)
class _Copy:
    source: int
    start: int
    output: Output
    offset: int
    nbytes: int
    ticker: Ticker

    def run(self, _: Workbench) -> Settlement:
        self.output.copy(self.source, self.start, self.offset, self.nbytes)
        self.output.let_go()
        return lambda: self.ticker.advance(self.nbytes)


@dataclass(frozen=True)
class _Place:
    """Where a tensor is written.

    Attributes:
        output: The file.
        starts: Where in it each role of the tensor begins.
        row_bytes: How many bytes a row of the written weight takes.
    """

    output: Output
    starts: Mapping[str, int]
    row_bytes: int


@dataclass(frozen=True)
class _Press:
    """A chunk on its way through all steps into the artifact."""

    look: Look
    peaks: Gathering | None
    place: _Place
    entry: TensorEntry
    entries: Sequence[StepEntry]
    ticker: Ticker

    def run(self, bench: Workbench) -> Settlement:
        seen = self.look.take(bench)
        tallies = np.zeros(rounding_kernels.TALLIES)
        mask = MAGNITUDE[seen.before.itemsize]
        tallies[0] = float_kernels.count_equal(seen.before.reshape(-1), mask, 0)
        started = time.perf_counter()
        values = self._values(seen, mask, bench, tallies)
        seconds = time.perf_counter() - started
        self._write(values)
        self.place.output.let_go()
        return lambda: self._settle(seen, seconds, tallies)

    def _values(
        self, seen: Seen, mask: int, bench: Workbench, tallies: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.generic]:
        kind = float_kernels.KINDS[self.look.target.matrix.tensor.dtype]
        scratch = bench.take("scratch", (3, RUN), np.uint32)
        if self.look.target.scheme is None:
            flat = seen.before.reshape(-1), seen.after.reshape(-1)
            pruning_kernels.tally(*flat, kind, mask, scratch, tallies)
            return seen.after
        return self._round(seen, kind, mask, bench, scratch, tallies)

    def _round(
        self,
        seen: Seen,
        kind: int,
        mask: int,
        bench: Workbench,
        scratch: npt.NDArray[np.uint32],
        tallies: npt.NDArray[np.float64],
    ) -> npt.NDArray[np.generic]:
        target, extent, chunk = self.look.target, self.look.extent, self.look.chunk
        is_pruned = seen.after is not seen.before
        flip = _FLIP[target.scheme or ""]
        is_full = chunk.width == extent.file_columns
        row_bytes = self.place.row_bytes if is_full else chunk.width
        rounded = bench.take("rounded", (chunk.rows, row_bytes), np.uint8)
        group = target.group_size or chunk.width
        first = file_position(chunk, extent) // (target.group_size or extent.file_columns)
        count = chunk.width if extent.shape == "panel" else chunk.elements // group
        stored = bench.take("scales", (count,), seen.before.dtype)
        weights = seen.before, seen.after, is_pruned, kind
        if self.peaks is None:
            bench.kernels.round_rows(*weights, mask, group, stored, flip, rounded, scratch, tallies)
        elif extent.shape == "pieces":
            stored[0] = scale_kernels.scale_of(int(self.peaks.result()[0]), kind)
            rounding_kernels.round_row(
                seen.before[0], seen.after[0], is_pruned, kind,
                stored, group, flip, rounded[0], scratch, tallies,
            )  # fmt: skip
            stored = stored[: chunk.column == 0]
        else:
            scales = bench.take("column scales", (chunk.width,), np.float32)
            column_kernels.find_scales(self.peaks.result(), kind, stored, scales)
            column_kernels.round_columns(*weights, scales, flip, rounded, scratch, tallies)
            first, stored = chunk.column, stored[: chunk.width * (chunk.row == 0)]
        self.place.output.write(stored, self.place.starts["scale"] + first * target.itemsize)
        return rounded

    def _write(self, values: npt.NDArray[np.generic]) -> None:
        chunk, place = self.look.chunk, self.place
        itemsize = values.itemsize
        start = place.starts["weight"] + chunk.row * place.row_bytes + chunk.column * itemsize
        if chunk.is_run:
            place.output.write(values, start)
            return
        for i, row in enumerate(values):
            place.output.write(row, start + i * place.row_bytes)

    def _settle(self, seen: Seen, seconds: float, tallies: npt.NDArray[np.float64]) -> None:
        for index, spent in seen.seconds.items():
            self.entries[index].seconds += spent
        if self.look.target.scheme is not None:
            self.entries[-1].seconds += seconds
        self.entry.zeros_before += int(tallies[0])
        self.entry.zeros_after += int(tallies[1])
        self.entry.squared_error += float(tallies[2])
        self.entry.squares += float(tallies[3])
        self.entry.max_error_steps = max(self.entry.max_error_steps, float(tallies[4]))
        self.ticker.advance(self.look.nbytes)
