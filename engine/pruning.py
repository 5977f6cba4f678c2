"""The prune steps of a recipe over a checkpoint that is never in memory.

An eraser that needs a threshold has it measured first: by looks at the one tensor just before that
is compressed, at a row that is longer than a chunk, or at all tensors for ``scope: global``. Every
look applies the earlier steps on the way, so each step sees what those before it left.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice

from engine.bookmarks import Bookmarks
from engine.chunks import Chunk, Section, sections
from engine.crew import Bell, Task
from engine.erasers import ChosenEraser, Eraser, GroupEraser, RowEraser, ThresholdEraser
from engine.ledger import StepEntry
from engine.looks import Look
from engine.measurements import Measurement
from engine.progress import Progress
from engine.prune_steps import PruneSteps
from engine.relays import Relay, Relays
from engine.section_looks import SectionLooks, Strand
from engine.source import Source
from engine.whole_looks import MakeTask, WholeLooks, counting
from jobs.recipe import Recipe
from planning.extents import Extent
from planning.matrices import pruned_count
from planning.selection import Target


class Pruning:
    """Makes the tasks that look at tensors, measuring what they need to know.

    Args:
        source: The model's files.
        recipe: Whose prune steps.
        targets: What they prune, in the order of the files.
        extents: How each is cut, by its name.
        entries: Where the cost of each step is counted.
        bell: What tasks that wait for others wait at.
        report: Told how far a look at all tensors is.
        bookmarks: What is known from attempts before; None where there are none to know.
    """

    def __init__(
        self,
        source: Source,
        recipe: Recipe,
        targets: Sequence[Target],
        extents: Mapping[str, Extent],
        entries: Sequence[StepEntry],
        bell: Bell,
        report: Callable[[Progress], None],
        bookmarks: Bookmarks | None = None,
    ) -> None:
        self._source = source
        self._steps = PruneSteps(recipe, targets, extents)
        self._extents = extents
        self._entries = entries
        self._bell = bell
        self._bookmarks = bookmarks or Bookmarks(bell, None, entries, 0)
        self._whole_looks = WholeLooks(
            source, self._steps, extents, entries, bell, report, self._bookmarks, self.look_at
        )

    def look_at(
        self,
        target: Target,
        limit: int,
        totals: Relays,
        make: MakeTask,
        *,
        with_peaks: bool = False,
        done: int | None = None,
    ) -> Iterator[Task]:
        """Look at a tensor from its beginning to its end, pruned by the steps before `limit`.

        Args:
            target: The tensor; tensors are looked at in their order.
            limit: Steps from this one on are left out.
            totals: The ties of global steps in the tensors before; added to.
            make: Makes the task of each chunk.
            with_peaks: Whether that needs the peaks of a section before its first chunk.
            done: How many of its first chunks an attempt before has done, where the job could go on
                from the others; None where it could not.

        Yields:
            The tasks, and before them those that measure what they need to know.
        """
        relays: Relays = {}
        steps = [i for i in target.prune_steps if i < limit and not self._steps[i].is_calibrated]
        for index in steps:
            if self._steps.is_measured_whole(index):
                yield from self._whole_looks.measure(index, target, relays)
                fresh = Relay(self._bell, self._bookmarks.ties(index) if done else 0)
                is_global = self._steps.is_global(index)
                relays[index] = totals.setdefault(index, fresh) if is_global else fresh
        skipped = done or 0
        for section in sections(self._extents[target.name]):
            if skipped >= section.count:
                skipped -= section.count
                continue
            strand = self._chosen(target)
            for index in steps:
                eraser = yield from self._eraser(index, target, section, strand, relays)
                strand.append((index, eraser))
            peaks = None
            if with_peaks:
                looks = self._looks_at(len(self._entries) - 1, target, section, strand)
                peaks = yield from looks.find_peaks(target)
            for chunk in islice(section.chunks(), skipped, None):
                yield make(self._look(target, chunk, strand), peaks)
                if done is not None and section.is_one_stream:
                    yield from self._bookmarks.pass_by(1, chunk.elements * target.itemsize, relays)
            skipped = 0
            if done is not None and not section.is_one_stream:
                nbytes = section.rows * section.width * target.itemsize
                yield from self._bookmarks.pass_by(section.count, nbytes, relays)

    def _chosen(self, target: Target) -> list[tuple[int, Eraser]]:
        """Give what comes before all other steps, where data decided about a tensor."""
        if not target.is_calibrated:
            return []
        eraser = ChosenEraser(self._source, target, self._extents[target.name])
        # Only the first prune step can be the one that did, and else it was the last step.
        return [(target.prune_steps[0] if target.prune_steps else len(self._entries) - 1, eraser)]

    def _looks_at(
        self, index: int, target: Target, section: Section, strand: Strand
    ) -> SectionLooks:
        look = partial(self._look, target)
        return SectionLooks(self._bell, section, strand, look, self._entries[index])

    def _look(self, target: Target, chunk: Chunk, strand: Strand) -> Look:
        erasures = tuple((index, eraser.enlist(chunk)) for index, eraser in strand)
        return Look(self._source, target, self._extents[target.name], chunk, erasures)

    def _eraser(
        self,
        index: int,
        target: Target,
        section: Section,
        strand: Strand,
        relays: Relays,
    ) -> Generator[Task, None, Eraser]:
        """Make a step's eraser of a section, measuring what the section alone can tell."""
        step, ranking = self._steps[index], self._steps.ranking(index, target)
        if step.structure != "unstructured":
            is_transposed = target.matrix.is_transposed
            positions = None if is_transposed else target.matrix.positions
            return GroupEraser(ranking, int(step.structure[-1]), positions)
        if step.scope != "row":
            measurement = self._whole_looks.measurement(index, target)
            if section.extent.shape != "panel":
                return ThresholdEraser(ranking, measurement, relays[index])
            looks = self._looks_at(index, target, section, strand)
            return (yield from looks.share_ties(ranking, measurement, relays[index]))
        count = pruned_count(step.sparsity or 0.0, target.matrix.inputs)
        if section.extent.shape == "rows":
            return RowEraser(ranking, count)
        if section.extent.shape == "panel":
            looks = self._looks_at(index, target, section, strand)
            return (yield from looks.halve(ranking, count))
        measurement = Measurement(self._bell, count, ranking.key_bits)
        for look in range(measurement.looks):
            forks = [(i, eraser.fork()) for i, eraser in strand]
            for chunk in section.chunks():
                seen = self._look(target, chunk, forks)
                yield counting(ranking, self._entries[index], measurement, look, seen)
            measurement.close(look)
        return ThresholdEraser(ranking, measurement, Relay(self._bell, 0))
