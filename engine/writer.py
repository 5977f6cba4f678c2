"""Writes the artifact's files in place: every byte's position is known before the first is read.

Dimension key: R rows of a chunk, W values of each.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import numpy.typing as npt

from engine import float_kernels, pruning_kernels, rounding_kernels
from engine.bookmarks import Bookmarks
from engine.crew import Settlement, Task
from engine.gatherings import Gathering
from engine.ledger import StepEntry, TensorEntry
from engine.looks import Look, Seen
from engine.outputs import Output, Outputs
from engine.progress import Ticker
from engine.pruning import Pruning
from engine.rankings import MAGNITUDE
from engine.rounding import round_chunk
from engine.source import Source
from engine.workbench import Workbench
from planning.layout import Placement, ShardPlan
from planning.working_set import RUN


class Writer:
    """Makes the tasks that carry tensors from the model's files to the artifact's.

    Args:
        source: The model's files.
        outputs: The artifact's files.
        pruning: Looks at the tensors that change.
        bookmarks: Where the job goes on, and where what became of each tensor is counted.
        entries: Where the cost of each step is counted.
        ticker: Told how many bytes of the model are done.
        chunk_bytes: How much of a tensor that stays as it is is copied at one time.
    """

    def __init__(
        self,
        source: Source,
        outputs: Outputs,
        pruning: Pruning,
        bookmarks: Bookmarks,
        entries: Sequence[StepEntry],
        ticker: Ticker,
        chunk_bytes: int,
    ) -> None:
        self._chunk_bytes = chunk_bytes
        self._source = source
        self._outputs = outputs
        self._pruning = pruning
        self._entries = entries
        self._ticker = ticker
        self._bookmarks = bookmarks

    def tasks(self, shards: Sequence[ShardPlan]) -> Iterator[Task]:
        """Make the tasks of all files, in their order.

        Args:
            shards: The files.

        Yields:
            The tasks that are not done yet, and bookmarks. When the last task of a file has run,
            it is closed.
        """
        reached = self._bookmarks.reached.placement
        numbers = count()
        for shard in shards:
            output = self._outputs.create(shard.source.name, shard.nbytes)
            output.write(np.frombuffer(shard.header, np.uint8), 0)
            self._bookmarks.open_file(shard.source.name, shard.nbytes)
            for number, placement in zip(numbers, shard.placements, strict=False):
                if number < reached:
                    continue
                starts = {r: len(shard.header) + o.start for r, o in placement.outputs.items()}
                done = self._bookmarks.begin(number)
                if placement.target is None:
                    yield from self._copies(placement, output, starts["weight"], done)
                else:
                    yield from self._presses(placement, output, starts, done)
            output.let_go()
        yield from self._bookmarks.end()

    def _copies(
        self, placement: Placement, output: Output, start: int, done: int
    ) -> Iterator[Task]:
        name, nbytes, step = placement.source.name, placement.source.nbytes, self._chunk_bytes
        for passed in range(done * step, nbytes, step):
            output.hold()
            length = min(step, nbytes - passed)
            yield _Copy(self._source, name, passed, length, output, start + passed, self._ticker)
            yield from self._bookmarks.pass_by(1, length, {})

    def _presses(
        self, placement: Placement, output: Output, starts: Mapping[str, int], done: int
    ) -> Iterator[Task]:
        target = placement.target
        assert target is not None  # noqa: S101 - the caller asked
        entry = self._bookmarks.entry(target.name)
        if "shape" in starts:
            output.write(np.array(placement.source.shape, np.int64), starts["shape"])

        def make(look: Look, peaks: Gathering | None) -> Task:
            output.hold()
            place = _Place(output, starts, placement.row_bytes)
            return _Press(look, peaks, place, entry, self._entries, self._ticker)

        yield from self._pruning.look_at(
            target,
            len(self._entries),
            self._bookmarks.totals,
            make,
            with_peaks=True,
            done=done,
        )


@dataclass(frozen=True)
class _Copy:
    """A part of a tensor that stays as it is."""

    source: Source
    tensor: str
    first: int
    nbytes: int
    output: Output
    offset: int
    ticker: Ticker

    def run(self, bench: Workbench) -> Settlement:
        # Not by `copy_file_range`: on ext4 it splices page by page, which took four times as long.
        memory = bench.take("read", (self.nbytes,), np.uint8)
        self.source.copy_to(memory, self.tensor, self.first)
        self.output.write(memory, self.offset)
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
        target = self.look.target
        if target.scheme is not None:
            rounded = round_chunk(self.look, seen, self.peaks, bench, tallies)
            first = rounded.first_scale * target.itemsize
            self.place.output.write(rounded.scales, self.place.starts["scale"] + first)
            return rounded.values
        kind = float_kernels.KINDS[target.matrix.tensor.dtype]
        scratch = bench.take("scratch", (3, RUN), np.uint32)
        flat = seen.before.reshape(-1), seen.after.reshape(-1)
        pruning_kernels.tally(*flat, kind, mask, scratch, tallies)
        return seen.after

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
