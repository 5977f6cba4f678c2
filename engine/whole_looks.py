"""What a step must look at whole tensors for, or at all of them, before anything is written."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from engine.bookmarks import Bookmarks, Stream
from engine.chunks import sections
from engine.compilation import Bits
from engine.crew import Bell, Task
from engine.gatherings import Gathering
from engine.ledger import StepEntry
from engine.looks import Look, Measuring
from engine.measurements import Measurement
from engine.progress import Progress, Ticker
from engine.prune_steps import PruneSteps
from engine.rankings import Draws, Ranking
from engine.relays import Relays
from engine.source import Source
from engine.workbench import Workbench
from planning.extents import Extent
from planning.selection import Target

#: Makes the task of a chunk, given the peaks of its section where it needs them.
MakeTask = Callable[[Look, Gathering | None], Task]


class LookAt(Protocol):
    """Makes the tasks of a tensor, pruned by the steps before a limit: `Pruning.look_at`."""

    def __call__(
        self, target: Target, limit: int, totals: Relays, make: MakeTask
    ) -> Iterator[Task]:
        """Look at it."""
        ...


class WholeLooks:
    """Finds the thresholds that count over a tensor, or over all.

    Args:
        source: The model's files.
        steps: What the thresholds are for.
        extents: How each tensor is cut, by its name, in the order of the files.
        entries: Where the cost of each step is counted.
        bell: What tasks that wait for others wait at.
        report: Told how far a look at all tensors is.
        bookmarks: What is known from attempts before.
        look_at: Looks at a tensor as the steps before leave it.
    """

    def __init__(
        self,
        source: Source,
        steps: PruneSteps,
        extents: Mapping[str, Extent],
        entries: Sequence[StepEntry],
        bell: Bell,
        report: Callable[[Progress], None],
        bookmarks: Bookmarks,
        look_at: LookAt,
    ) -> None:
        self._source = source
        self._steps = steps
        self._extents = extents
        self._entries = entries
        self._bell = bell
        self._report = report
        self._bookmarks = bookmarks
        self._look_at = look_at
        self._measured: dict[Stream, Measurement] = {}

    def measurement(self, index: int, target: Target) -> Measurement:
        """Give what finds a step's threshold for a tensor, of which `measure` made the tasks."""
        return self._measured[self._steps.stream(index, target)]

    def measure(self, index: int, target: Target, earlier: Relays) -> Iterator[Task]:
        """Find a step's threshold for a tensor, unless it has been found or is being found.

        Args:
            index: The step.
            target: The tensor.
            earlier: The ties of the steps before it, up to the tensor's beginning.

        Yields:
            The looks.
        """
        stream = self._steps.stream(index, target)
        if stream in self._measured:
            return
        found, begun = self._bookmarks.found(stream), self._bookmarks.begun(stream)
        measurement = self._measured[stream] = Measurement(
            self._bell,
            self._steps.count(index, target),
            self._steps.ranking(index, target).key_bits,
            found,
            begun.tally if begun else "",
        )
        is_global = self._steps.is_global(index)
        targets = self._steps.measured_with(index, target)
        nbytes = sum(chosen.matrix.tensor.nbytes for chosen in targets)
        looks = range(len(found), measurement.looks)
        ticker = self._ticker(index, len(looks) * nbytes) if is_global else None
        for look in looks:
            done = self._bookmarks.open_look(stream, look)
            if self._steps.is_counted_alone(index, target):
                yield from self._count_alone(stream, targets, measurement, look, done, ticker)
            else:
                totals = {} if is_global else {i: relay.fork() for i, relay in earlier.items()}
                for chosen in self._steps.targets if is_global else targets:
                    yield from self._count(index, chosen, measurement, look, totals, ticker)
            measurement.close(look)
            yield from self._bookmarks.learn(stream, measurement, look, nbytes)

    def _count_alone(
        self,
        stream: Stream,
        targets: Sequence[Target],
        measurement: Measurement,
        look: int,
        done: int,
        ticker: Ticker | None,
    ) -> Iterator[Task]:
        """Count the keys of tensors, of which the first `done` chunks are counted."""
        index, _ = stream
        for target in targets:
            extent, ranking = self._extents[target.name], self._steps.ranking(index, target)
            for chunk in (chunk for section in sections(extent) for chunk in section.chunks()):
                seen = Look(self._source, target, extent, chunk, ())
                if done:
                    done -= 1
                    if ticker is not None:
                        ticker.advance(seen.nbytes)
                    continue
                yield counting(ranking, self._entries[index], measurement, look, seen, ticker)
                yield from self._bookmarks.count(stream, measurement, look, seen.nbytes)

    def _count(
        self,
        index: int,
        target: Target,
        measurement: Measurement,
        look: int,
        totals: Relays,
        ticker: Ticker | None,
    ) -> Iterator[Task]:
        is_counted = index in target.prune_steps
        # An earlier global step must see every tensor, to know where among them it is.
        if is_counted or any(self._steps.is_global(i) for i in target.prune_steps if i < index):
            ranking = self._steps.ranking(index, target) if is_counted else None
            entry = self._entries[index]

            def make(seen: Look, _: Gathering | None) -> Task:
                if ranking is None:
                    return Measuring(seen, lambda *_: None, lambda _: None)
                return counting(ranking, entry, measurement, look, seen, ticker)

            yield from self._look_at(target, index, totals, make)

    def _ticker(self, index: int, total: int) -> Ticker | None:
        progress = Progress("measure", index + 1, len(self._entries), 0, total, "bytes")
        return Ticker(self._report, progress) if total else None


def counting(
    ranking: Ranking,
    entry: StepEntry,
    measurement: Measurement,
    look: int,
    seen: Look,
    ticker: Ticker | None = None,
) -> Measuring:
    """Make the task that counts the keys of a chunk.

    Args:
        ranking: Gives its keys.
        entry: Where the cost is counted.
        measurement: What counts them.
        look: Which of its looks this belongs to.
        seen: The chunk.
        ticker: Told when that is done.

    Returns:
        The task.
    """
    is_read = not isinstance(ranking, Draws)
    part = measurement.enlist(look)

    def count(bits: Bits, bench: Workbench) -> None:
        measurement.add(look, part, *ranking.keys(bits, seen.chunk, bench), bench)

    def settle(seconds: float) -> None:
        entry.seconds += seconds
        entry.bytes_read += seen.nbytes if is_read else 0
        if ticker is not None:
            ticker.advance(seen.nbytes)

    return Measuring(seen, count, settle, is_read)
