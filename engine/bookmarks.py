"""The places in the stream of tasks from which a job can go on after a kill.

A bookmark is a task that does nothing. Because tasks are settled in the order of the stream, all
tasks before it are done when it is settled and none after it has been counted, whatever the threads
are at. What it writes down is therefore the same in every run.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from engine.crew import Bell, Settlement, Task
from engine.journal import Journal, OpenLook, Record, steps_of
from engine.ledger import StepEntry, TensorEntry
from engine.measurements import Measurement, Threshold
from engine.relays import Relay, Relays
from engine.workbench import Workbench

#: A step's index and the name of the tensor it counts over; no name stands for all.
Stream = tuple[int, str]

#: Within a look bookmarks are this many times as far apart.
_TALLY_FACTOR = 8


@dataclass(frozen=True)
class _Place:
    """Somewhere in the artifact: how many tensors, chunks of the next one and bytes are before."""

    placement: int
    chunks: int
    passed_bytes: int


class Bookmarks:
    """Leaves bookmarks in the stream, and knows the last one of the attempts before.

    Args:
        bell: What tasks that wait for others wait at.
        journal: Where the last one is found and others are left; None where the job cannot go on.
        entries: What is counted by step, set to what was counted up to there.
        every_bytes: How many bytes are read between two bookmarks at least.

    Attributes:
        reached: Where the job goes on.
        tensors: What became of every changed tensor, by its name.
        totals: The ties of global steps in the tensors before, by the step's index.
    """

    reached: Record
    tensors: dict[str, TensorEntry]
    totals: Relays

    def __init__(
        self,
        bell: Bell,
        journal: Journal | None,
        entries: Sequence[StepEntry],
        every_bytes: int,
    ) -> None:
        self.reached = (journal and journal.reached) or Record()
        self.tensors = dict(self.reached.tensors)
        self.totals = {index: Relay(bell, ties) for index, ties in self.reached.totals.items()}
        self._journal = journal
        self._entries = entries
        self._every_bytes = every_bytes
        self._unmarked_bytes = 0
        self._open_looks = 0
        self._counted = 0
        self._here = _Place(self.reached.placement, 0, self.reached.passed_bytes)
        self._files: dict[str, int] = {}
        self._touched: list[str] = []
        self._learnt: dict[Stream, tuple[Measurement, int]] = {}
        for entry, (seconds, bytes_read) in zip(entries, self.reached.steps, strict=False):
            entry.seconds, entry.bytes_read = seconds, bytes_read

    def ties(self, index: int) -> int:
        """Give the ties that a step has met in the tensor in which the job goes on."""
        return self.reached.ties.get(index, 0)

    def found(self, stream: Stream) -> list[Threshold]:
        """Give what the looks at a stream found that are done."""
        index, name = stream
        return self.reached.thresholds.get(index, {}).get(name, [])

    def begin(self, placement: int) -> int:
        """Come to a tensor that is not done yet.

        Args:
            placement: How many tensors are before it.

        Returns:
            How many of its chunks are done.
        """
        done = self.reached.chunks if placement == self.reached.placement else 0
        self._here = _Place(placement, done, self._here.passed_bytes)
        return done

    def open_file(self, name: str, nbytes: int) -> None:
        """Come to a file of the artifact."""
        self._files[name] = nbytes

    def entry(self, tensor: str) -> TensorEntry:
        """Give the entry of a tensor that is about to change."""
        self._touched.append(tensor)
        return self.tensors.setdefault(tensor, TensorEntry())

    def pass_by(self, chunks: int, nbytes: int, ties: Relays) -> Iterator[Task]:
        """Come to a place in a tensor from which the job could go on.

        Args:
            chunks: How many chunks lie between the last such place and this one.
            nbytes: How many bytes these have.
            ties: The ties of each step in the tensor so far.

        Yields:
            A bookmark, where the last one is far.
        """
        here = self._here
        self._here = _Place(here.placement, here.chunks + chunks, here.passed_bytes + nbytes)
        self._unmarked_bytes += nbytes
        if self._unmarked_bytes >= self._every_bytes:
            yield from self._leave(ties)

    def begun(self, stream: Stream) -> OpenLook | None:
        """Give what is known of a look at a stream that had begun and not ended."""
        look = self.reached.open_look
        return look if look is not None and look.stream == stream else None

    def open_look(self, stream: Stream, look: int) -> int:
        """Come to the beginning of a look at a stream.

        Args:
            stream: What is looked at.
            look: Which look it is.

        Returns:
            How many of its chunks are counted.
        """
        begun = self.begun(stream)
        self._open_looks += 1
        self._counted = begun.chunks if begun is not None and begun.look == look else 0
        return self._counted

    def count(
        self, stream: Stream, measurement: Measurement, look: int, nbytes: int
    ) -> Iterator[Task]:
        """Come to the end of a chunk in a look in which nothing but the count has to be known.

        Args:
            stream: What is looked at.
            measurement: What for.
            look: Which look it is.
            nbytes: How many bytes the chunk has.

        Yields:
            A bookmark, where the last one is very far, because there is much to write down, and no
            other look is open: what that one has counted would be counted again.
        """
        self._counted += 1
        self._unmarked_bytes += nbytes
        is_far = self._unmarked_bytes >= _TALLY_FACTOR * self._every_bytes
        if is_far and self._open_looks == 1 and self._journal is not None:
            part, chunks = measurement.end_part(look), self._counted

            def describe() -> OpenLook:
                tally = measurement.counted(look, part)
                return OpenLook(stream=stream, look=look, chunks=chunks, tally=tally)

            yield from self._leave({}, describe)

    def learn(
        self, stream: Stream, measurement: Measurement, look: int, nbytes: int
    ) -> Iterator[Task]:
        """Come to the end of the look that was opened last, all of which can be kept.

        Args:
            stream: What was looked at.
            measurement: What it was looked at for; told of the end.
            look: Which look it was.
            nbytes: How many bytes it read.

        Yields:
            A bookmark, where the last one is far and no other look is open.
        """
        self._open_looks -= 1
        self._learnt[stream] = measurement, look + 1
        self._unmarked_bytes += nbytes
        if not self._open_looks and self._unmarked_bytes >= self._every_bytes:
            yield from self._leave({})

    def end(self) -> Iterator[Task]:
        """Come to the end of the stream, and yield a bookmark."""
        yield from self._leave({})

    def _leave(
        self, ties: Relays, describe: Callable[[], OpenLook | None] = lambda: None
    ) -> Iterator[Task]:
        self._unmarked_bytes = 0
        journal, here, files, learnt = self._journal, self._here, self._files, self._learnt
        if journal is None:
            return
        tensors = {name: self.tensors[name] for name in self._touched}
        # The last one may go on to change.
        self._files, self._touched, self._learnt = {}, self._touched[-1:], {}
        total_forks, tie_forks = (
            {index: relay.fork() for index, relay in relays.items()}
            for relays in (self.totals, ties)
        )

        def settle() -> None:
            thresholds: dict[int, dict[str, list[Threshold]]] = {}
            for (index, name), (measurement, looks) in learnt.items():
                thresholds.setdefault(index, {})[name] = measurement.found[:looks]
            record = Record(
                files=files,
                placement=here.placement,
                chunks=here.chunks,
                passed_bytes=here.passed_bytes,
                steps=steps_of(self._entries),
                tensors=tensors,
                totals={index: relay.total() for index, relay in total_forks.items()},
                ties={index: relay.total() for index, relay in tie_forks.items()},
                thresholds=thresholds,
                open_look=describe(),
            )
            journal.write(record)

        yield _Bookmark(settle)


@dataclass(frozen=True)
class _Bookmark:
    settle: Settlement

    def run(self, _: Workbench) -> Settlement:
        return self.settle
