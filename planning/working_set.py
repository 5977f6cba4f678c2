"""The buffers that compressing a checkpoint holds at one time, to the byte, from headers alone.

The engine allocates from these numbers, so that what is planned and what is held cannot drift
apart. Nothing in here grows with the number or the size of a model's tensors.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from jobs.recipe import Recipe
from jobs.steps import PruneStep
from planning.extents import Extent, extent_of
from planning.selection import Target

#: How much of a tensor one thread works on at one time, unless a budget wants less.
CHUNK_BYTES = 1024**2
#: More threads than this wait for one another rather than compute.
MOST_THREADS = 8
#: How many values a loop keeps in the fastest cache.
RUN = 1024
#: float32 values of a run: the weights, their errors, their scales.
SCRATCH_BYTES = 3 * RUN * 4
#: Magnitudes by their place in a group of at most eight, and how many beat each.
PLANES_BYTES = 2 * 8 * 512 * 4
#: What the prune steps of a tensor write to in turn, each from what the last one left.
PRUNED = ("pruned", "pruned again")
#: What is read of a tensor at a time to take kept columns from it, or to sum its squares: always as
#: much, because sums depend on where they are cut.
CUT_BYTES = 256 * 1024
#: Magnitudes of 16-bit floats have 15 bits; longer ones are counted by their upper 16 first.
NARROW_BINS = 2**15
WIDE_BINS = 2**16


@dataclass(frozen=True)
class WorkingSet:
    """Buffers by their use, in bytes.

    Attributes:
        threads: How many threads work.
        chunk_bytes: How much of a tensor each reads at one time.
        per_thread: What every thread has one of.
        shared: What the threads have together, at most.
    """

    threads: int
    chunk_bytes: int
    per_thread: Mapping[str, int]
    shared: Mapping[str, int]

    @property
    def nbytes(self) -> int:
        """Everything, over all threads."""
        return self.threads * sum(self.per_thread.values()) + sum(self.shared.values())


def working_set(
    targets: Iterable[Target], recipe: Recipe, *, threads: int, chunk_bytes: int = CHUNK_BYTES
) -> WorkingSet:
    """Tell what buffers a job needs.

    Args:
        targets: The tensors that it changes, as in `Selection.targets`.
        recipe: What it does.
        threads: How many threads work.
        chunk_bytes: How much of a tensor each may read at one time. What N:M pruning or a scale's
            group takes together is never split, so a buffer may be larger than that.

    Returns:
        The buffers.
    """
    chosen = list(targets)
    per_thread = {"scratch": SCRATCH_BYTES, "read": chunk_bytes}
    bins = 0
    columns = 0
    for target in chosen:
        extent = extent_of(target, chunk_bytes)
        for use, nbytes in _chunk_buffers(target, extent, recipe, chosen).items():
            per_thread[use] = max(per_thread.get(use, 0), nbytes)
        bins = max(bins, *(_bins(target, extent, recipe, i, chosen) for i in target.prune_steps), 0)
        if extent.shape == "panel":
            columns = max(columns, extent.width)
    if bins:
        per_thread["histogram"] = bins * 4
    # A thread may still end one count while the others are at the next ones.
    shared = {"histograms": (threads + 1) * bins * 8} if bins else {}
    return WorkingSet(threads, chunk_bytes, per_thread, shared)


def is_wide(index: int, recipe: Recipe, targets: Iterable[Target]) -> bool:
    """Say whether a global step compares weights of several dtypes, which takes float32's order."""
    step = recipe.steps[index]
    if not isinstance(step, PruneStep) or step.scope != "global":
        return False
    return len({t.matrix.tensor.dtype for t in targets if index in t.prune_steps}) > 1


def written_row_bytes(target: Target, columns: int) -> int:
    """Give the bytes that a row of `columns` values takes in the artifact, padding included."""
    if target.scheme is None:
        return columns * target.itemsize
    return 4 * -(-columns // 4) if target.is_packed else columns


def _chunk_buffers(
    target: Target, extent: Extent, recipe: Recipe, targets: list[Target]
) -> dict[str, int]:
    buffers = {"read": extent.elements * target.itemsize}
    if target.cut is not None:
        buffers |= {"cut": CUT_BYTES, "widened": CUT_BYTES // target.itemsize * 4}
        buffers["squares"] = 8 * max(target.cut.source.shape)
    steps = [(i, recipe.steps[i]) for i in target.prune_steps]
    # What data decided about is read beside what came in.
    written = len(steps) + (target.is_calibrated and not any(s.is_calibrated for _, s in steps))
    buffers |= dict.fromkeys(PRUNED[:written], buffers["read"])
    if any(
        (isinstance(step, PruneStep) and step.method == "random") or is_wide(i, recipe, targets)
        for i, step in steps
    ):
        buffers["keys"] = 4 * extent.elements
    if target.groups:
        buffers["planes"] = PLANES_BYTES
    if target.scheme is not None:
        is_full = extent.width == extent.file_columns
        row_bytes = written_row_bytes(target, extent.width) if is_full else extent.width
        buffers["rounded"] = extent.rows * row_bytes
        groups = extent.rows * max(1, extent.width // (target.group_size or extent.width or 1))
        if extent.shape == "panel":
            groups = extent.width
            buffers["column scales"] = 4 * groups
        buffers["scales"] = target.itemsize * groups
    return buffers


def _bins(target: Target, extent: Extent, recipe: Recipe, index: int, targets: list[Target]) -> int:
    step = recipe.steps[index]
    if not isinstance(step, PruneStep) or step.structure != "unstructured":
        return 0
    if step.is_calibrated or (step.scope == "row" and extent.shape == "rows"):
        return 0
    is_narrow = step.method == "magnitude" and target.itemsize == 2
    return NARROW_BINS if is_narrow and not is_wide(index, recipe, targets) else WIDE_BINS
