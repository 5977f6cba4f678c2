"""Writes all tensors of an artifact, or those that an attempt before this one has not written."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Literal

from engine.bookmarks import Bookmarks
from engine.crew import Bell, Crew
from engine.journal import Journal, Record, read_journal
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
_CHUNKS_BETWEEN_BOOKMARKS = 16


@dataclass(frozen=True)
class Pressed:
    """What became of the tensors.

    Attributes:
        tensors: Those that changed, by name.
        reached: How far the attempts before had come; None where this one began.
        device_memory: What the device held; None where there is none.
    """

    tensors: dict[str, TensorEntry]
    reached: Record | None
    device_memory: DeviceMemory | None


def press(
    plan: Plan,
    buffers: WorkingSet,
    device: Literal["cpu", "cuda"],
    source: Source,
    artifact_folder: Path,
    journal: tuple[Path, str] | None,
    entries: Sequence[StepEntry],
    on_progress: Callable[[Progress], None],
) -> Pressed:
    """Write all tensors.

    Args:
        plan: What to do.
        buffers: The memory to do it in.
        device: Where to compute.
        source: The model's files.
        artifact_folder: Where the artifact's files go.
        journal: Where it is written down how far that is, and what tells the job from others;
            None where that is not wanted, and then the folder is empty.
        entries: Where the cost of each step is counted, that of the attempts before included.
        on_progress: Told how far it is.

    Returns:
        What became of them; the same however many attempts it took.

    Raises:
        Problem: `non_finite_weight`, `invalid_checkpoint`, `storage_full`.
    """
    targets = list(plan.selection.targets.values())
    extents = {target.name: extent_of(target, buffers.chunk_bytes) for target in targets}
    benches = [Workbench(buffers.per_thread, kernels_for(device)) for _ in range(buffers.threads)]
    bell = Bell()
    with ExitStack() as stack:
        reached = None
        book = None
        if journal is not None:
            path, fingerprint = journal
            reached = _reached(path, fingerprint, artifact_folder, plan)
            book = stack.enter_context(Journal(path, fingerprint, reached))
        outputs = stack.enter_context(Outputs(artifact_folder, is_resumed=reached is not None))
        every_bytes = _CHUNKS_BETWEEN_BOOKMARKS * buffers.chunk_bytes
        bookmarks = Bookmarks(bell, book, reached, entries, every_bytes)
        pruning = Pruning(
            source, plan.recipe, targets, extents, entries, bell, on_progress, bookmarks
        )
        ticker = _ticker(plan, on_progress)
        ticker.advance(bookmarks.reached.passed_bytes)
        writer = Writer(source, outputs, pruning, bookmarks, entries, ticker)
        Crew(benches, bell).run(writer.tasks(plan.shards))
    return Pressed(bookmarks.tensors, reached, benches[0].kernels.memory())


def _reached(journal: Path, fingerprint: str, folder: Path, plan: Plan) -> Record | None:
    """Tell how far the job is, and take away what is in the folder and does not count."""
    reached = read_journal(journal, fingerprint)
    begun = {} if reached is None else _begun(plan, reached)
    if any(_size(folder / name) != nbytes for name, nbytes in begun.items()):
        reached, begun = None, {}
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            rmtree(path)
        elif path.name not in begun:
            path.unlink()
    return reached


def _begun(plan: Plan, reached: Record) -> dict[str, int]:
    """Give the sizes of the files that have tensors which are done, or partly done."""
    begun = {}
    first = 0
    for shard in plan.shards:
        if (first, 0) < (reached.placement, reached.chunks):
            begun[shard.source.name] = shard.nbytes
        first += len(shard.placements)
    return begun


def _size(path: Path) -> int | None:
    return path.lstat().st_size if path.is_file() and not path.is_symlink() else None


def _ticker(plan: Plan, on_progress: Callable[[Progress], None]) -> Ticker:
    total = sum(shard.source.header.data_bytes for shard in plan.shards)
    steps = len(plan.recipe.steps)
    return Ticker(on_progress, Progress("compress", steps, steps, 0, total, "bytes"))
