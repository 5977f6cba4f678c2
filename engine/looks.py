"""One look at a chunk: read, and pruned as far as the steps before have it."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from engine.chunks import Chunk
from engine.compilation import Bits
from engine.crew import Settlement
from engine.erasers import Erasure
from engine.source import Source
from engine.workbench import Workbench
from planning.extents import Extent
from planning.selection import Target
from planning.working_set import PRUNED


@dataclass(frozen=True)
class Seen:
    """A chunk in memory.

    Attributes:
        before: Its bit patterns as they came in.
        after: The same after pruning; `before` itself where nothing prunes it.
        seconds: What each step took, by its index.
    """

    before: Bits
    after: Bits
    seconds: dict[int, float]


@dataclass(frozen=True)
class Look:
    """A chunk that is still to be read.

    Attributes:
        source: Where from.
        target: Its tensor.
        extent: How that is cut.
        chunk: Which part of it.
        erasures: What prunes it, with the index of the step.
    """

    source: Source
    target: Target
    extent: Extent
    chunk: Chunk
    erasures: tuple[tuple[int, Erasure], ...]

    def take(self, bench: Workbench) -> Seen:
        """Read and prune it."""
        before = after = self.source.read(self.target, self.extent, self.chunk, bench)
        seconds = {}
        for turn, (index, erase) in enumerate(self.erasures):
            started = time.perf_counter()
            # Each step takes what the last one left from its memory into other memory, because
            # loops that do not change what they read run in vectors.
            left: Bits = bench.take(PRUNED[turn % 2], before.shape, before.dtype)
            erase(after, left, bench)
            after = left
            seconds[index] = time.perf_counter() - started
        return Seen(before, after, seconds)

    @property
    def nbytes(self) -> int:
        """How many bytes it reads."""
        return self.chunk.elements * self.target.itemsize


@dataclass(frozen=True)
class Measuring:
    """A task that looks at a chunk and writes nothing.

    Attributes:
        look: The chunk.
        use: What is done with the pruned bit patterns; they are zeros where none are read.
        settle: Told the seconds that it took.
        is_read: Whether the weights matter at all.
    """

    look: Look
    use: Callable[[Bits, Workbench], None]
    settle: Callable[[float], None]
    is_read: bool = True

    def run(self, bench: Workbench) -> Settlement:
        """Do it; see `crew.Task`."""
        after = self.look.take(bench).after if self.is_read else np.empty((0, 0), np.uint16)
        started = time.perf_counter()
        self.use(after, bench)
        seconds = time.perf_counter() - started
        return lambda: self.settle(seconds)
