"""Writes all tensors of an artifact, or those that an attempt before this one has not written."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine.bookmarks import Bookmarks
from engine.crew import Bell, Crew
from engine.journal import Journal
from engine.kernels import kernels_for
from engine.ledger import StepEntry, TensorEntry
from engine.outputs import Outputs
from engine.progress import Progress, Ticker
from engine.pruning import Pruning
from engine.source import Source
from engine.workbench import Workbench
from engine.writer import Writer
from jobs.report import DeviceMemory
from planning.extents import extent_of
from planning.plan import Plan
from planning.working_set import WorkingSet

#: A bookmark lies this many chunks behind the last one, so a kill costs little more than that.
_CHUNKS_BETWEEN_BOOKMARKS = 8


@dataclass(frozen=True)
class Pressed:
    """What became of the tensors.

    Attributes:
        tensors: Those that changed, by name.
        device_memory: What the device held; None where there is none.
    """

    tensors: dict[str, TensorEntry]
    device_memory: DeviceMemory | None


def press(
    plan: Plan,
    buffers: WorkingSet,
    device: Literal["cpu", "cuda"],
    folders: tuple[Source, Path],
    journal: Journal,
    entries: Sequence[StepEntry],
    on_progress: Callable[[Progress], None],
    *,
    writes_back: bool,
) -> Pressed:
    """Write all tensors.

    Args:
        plan: What to do.
        buffers: The memory to do it in.
        device: Where to compute.
        folders: The model's files, and where the artifact's files go.
        journal: Knows what attempts before have written, and is told how far this one is.
        entries: Where the cost of each step is counted, that of the attempts before included.
        on_progress: Told how far it is.
        writes_back: Whether the disk begins with each file when that is complete.

    Returns:
        What became of them; the same however many attempts it took.

    Raises:
        Problem: `non_finite_weight`, `invalid_checkpoint`, `storage_full`.
    """
    source, artifact_folder = folders
    targets = list(plan.selection.targets.values())
    extents = {target.name: extent_of(target, buffers.chunk_bytes) for target in targets}
    limit = plan.recipe.budget.device_memory
    benches = [
        Workbench(buffers.per_thread, kernels_for(device, limit)) for _ in range(buffers.threads)
    ]
    bell = Bell()
    every_bytes = _CHUNKS_BETWEEN_BOOKMARKS * buffers.chunk_bytes
    bookmarks = Bookmarks(bell, journal, entries, every_bytes)
    pruning = Pruning(source, plan.recipe, targets, extents, entries, bell, on_progress, bookmarks)
    ticker = _ticker(plan, on_progress)
    ticker.advance(bookmarks.reached.passed_bytes)
    is_resumed = journal.reached is not None
    with Outputs(artifact_folder, is_resumed=is_resumed, writes_back=writes_back) as outputs:
        writer = Writer(source, outputs, pruning, bookmarks, entries, ticker, buffers.chunk_bytes)
        Crew(benches, bell).run(writer.tasks(plan.shards))
    return Pressed(bookmarks.tensors, benches[0].kernels.memory())


def _ticker(plan: Plan, on_progress: Callable[[Progress], None]) -> Ticker:
    total = sum(shard.source.header.data_bytes for shard in plan.shards)
    steps = len(plan.recipe.steps)
    return Ticker(on_progress, Progress("compress", steps, steps, 0, total, "bytes"))
