"""How much memory a job will hold, and how to fit it into less.

The engine takes its threads and chunks from here and the service predicts with the same numbers.
What a process holds before it touches a model depends on the machine and on what is installed, so
that is measured: a worker tells the service, and the engine asks its own process.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from jobs.recipe import Budget, Recipe
from planning.device_memory import device_bytes
from planning.selection import Target
from planning.working_set import WorkingSet, working_set

#: Smaller chunks cost a system call too often; larger ones than this only help the disk.
_GOOD_CHUNK_BYTES = 128 * 1024
_LEAST_CHUNK_BYTES = 16 * 1024
#: Pages of the interpreter and its libraries that a job touches for the first time, whatever it is.
_FIRST_TOUCH_BYTES = 8 * 1024**2
#: Headers, the plan and the report, as Python's objects: for each tensor that comes in, for each
#: that goes out, and for each that changes.
_BYTES_PER_TENSOR_READ = 2048
_BYTES_PER_TENSOR_WRITTEN = 512
_BYTES_PER_TENSOR_CHANGED = 2560
#: The same for what a rehearsal found of a tensor, and the plans that are made of it.
_BYTES_PER_TENSOR_TRIED = 2048
#: What is known of each head or channel that a shrink step chooses from: which are kept, as numbers
#: for the engine and as text for the report.
_BYTES_PER_UNIT = 24
#: The stack and the allocator's share of one more thread.
_BYTES_PER_THREAD = 256 * 1024
#: What one run of the same job holds more than another, so that a budget that fits always does.
#: Most of it are pages of libraries: the kernel maps neighbours too, where it has them cached.
_MARGIN_BYTES = 6 * 1024**2
#: The same for the process that asks transformers: a thirty-second of what it holds.
_INSPECTION_MARGIN = 32


@dataclass(frozen=True)
class Levels:
    """What is known of the processes that run jobs, as measured where they run.

    Attributes:
        idle_bytes: Resident memory of a runner before it touches a model.
        inspection_bytes: Resident peak of the process that asks transformers which module is which;
            0 where none is needed.
        threads: On how many threads a runner works, unless its budget wants fewer.
        is_inspected: Whether that process has ended, so that its peak is a fact.
        has_device: Whether it computes on a GPU.
    """

    idle_bytes: int
    inspection_bytes: int
    threads: int
    is_inspected: bool = False
    has_device: bool = False


#: For where no worker was seen: Python 3.11, numba 0.65, torch 2.13 for CPUs, two cores.
DEFAULT_LEVELS = Levels(idle_bytes=76 * 1024**2, inspection_bytes=400 * 1024**2, threads=2)


def levels_of(measured: Mapping[str, int]) -> Levels:
    """Give what workers measured, and the defaults for what they did not."""
    return Levels(
        idle_bytes=measured.get("idle_bytes", DEFAULT_LEVELS.idle_bytes),
        inspection_bytes=measured.get("inspection_bytes", DEFAULT_LEVELS.inspection_bytes),
        threads=measured.get("threads", DEFAULT_LEVELS.threads),
        has_device=bool(measured.get("has_device", DEFAULT_LEVELS.has_device)),
    )


@dataclass(frozen=True)
class TensorCounts:
    """How many tensors a job has to do with.

    Attributes:
        read: In the checkpoint.
        written: In the artifact, scales and shapes of packed weights included.
        changed: Of those in the checkpoint.
        tried: Of those, how many are rounded on trial first.
        chosen_from: Heads and channels that a shrink step chooses from, in all layers.
    """

    read: int
    written: int
    changed: int
    tried: int
    chosen_from: int = 0


@dataclass(frozen=True)
class MemoryModel:
    """What a job's memory is made of.

    Attributes:
        levels: What was measured.
        tensors: How many tensors it has to do with.
        targets: The tensors that change, one of each kind of treatment and shape.
        recipe: What is done to them.
        chunk_bytes: The largest chunk of a tensor that a thread may have in memory.
    """

    levels: Levels
    tensors: TensorCounts
    targets: tuple[Target, ...]
    recipe: Recipe
    chunk_bytes: int

    @classmethod
    def of(
        cls,
        targets: Iterable[Target],
        recipe: Recipe,
        levels: Levels,
        *,
        tensors: TensorCounts,
        chunk_bytes: int,
    ) -> "MemoryModel":
        """Make the model of a job.

        Args:
            targets: The tensors that it changes.
            recipe: What it does to them.
            levels: What was measured where it runs.
            tensors: How many tensors it has to do with.
            chunk_bytes: The largest chunk of a tensor that a thread may have in memory.

        Returns:
            The model. Targets that need equal buffers are in it once.
        """
        kinds = {_treatment(target): target for target in targets}
        return cls(levels, tensors, tuple(kinds.values()), recipe, chunk_bytes)

    def fit(self, budget: Budget) -> WorkingSet:
        """Choose threads and chunks: the fastest that fit a budget, or the smallest if none does.

        Args:
            budget: What the job's processes may hold together, and on the device.

        Returns:
            The buffers.
        """
        for found in self._choices():
            on_host, on_device = self._least_budget(found), self.device_bytes(found) or 0
            fits_host = budget.host_memory is None or on_host <= budget.host_memory
            if fits_host and (budget.device_memory is None or on_device <= budget.device_memory):
                break
        return found

    def peak_bytes(self, buffers: WorkingSet) -> int:
        """Predict the most that the job's processes hold together, with the buffers given."""
        return self.levels.idle_bytes + max(self._work(buffers), self.levels.inspection_bytes)

    def device_bytes(self, buffers: WorkingSet) -> int | None:
        """Predict the most that is reserved on the device; None where there is none."""
        return device_bytes(buffers) if self.levels.has_device else None

    @property
    def least_bytes(self) -> int:
        """The smallest budget of host memory in which the job can run."""
        return self._least_budget(self._smallest)

    @property
    def least_device_bytes(self) -> int | None:
        """The smallest budget of device memory in which it can; None where there is no device."""
        return self.device_bytes(self._smallest)

    @property
    def _smallest(self) -> WorkingSet:
        *_, smallest = self._choices()
        return smallest

    def _choices(self) -> Iterator[WorkingSet]:
        for threads, chunk_bytes in _paces(self.levels.threads, self.chunk_bytes):
            yield working_set(self.targets, self.recipe, threads=threads, chunk_bytes=chunk_bytes)

    def _work(self, buffers: WorkingSet) -> int:
        return (
            _FIRST_TOUCH_BYTES
            + self.tensors.read * _BYTES_PER_TENSOR_READ
            + self.tensors.written * _BYTES_PER_TENSOR_WRITTEN
            + self.tensors.changed * _BYTES_PER_TENSOR_CHANGED
            + self.tensors.tried * _BYTES_PER_TENSOR_TRIED
            + self.tensors.chosen_from * _BYTES_PER_UNIT
            + buffers.threads * _BYTES_PER_THREAD
            + buffers.nbytes
        )

    def _least_budget(self, buffers: WorkingSet) -> int:
        levels = self.levels
        spread = 0 if levels.is_inspected else levels.inspection_bytes // _INSPECTION_MARGIN
        work = self._work(buffers) + _MARGIN_BYTES
        return levels.idle_bytes + max(work, levels.inspection_bytes + spread)


def _treatment(target: Target) -> tuple[object, ...]:
    """Give what a target's buffers depend on."""
    matrix = target.matrix
    return (
        matrix.tensor.dtype,
        matrix.tensor.shape,
        matrix.is_transposed,
        target.prune_steps,
        target.scheme,
        target.is_packed,
        target.group_size,
        target.groups,
        target.whole_channels,
        target.cut and (target.cut.source.shape, target.cut.axis),
    )


def _paces(threads: int, chunk_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield threads and chunk sizes, the fastest first, the smallest last."""
    yield threads, chunk_bytes
    while chunk_bytes > _GOOD_CHUNK_BYTES:
        chunk_bytes //= 2
        yield threads, chunk_bytes
    while threads > 1:
        threads -= 1
        yield threads, chunk_bytes
    while chunk_bytes > _LEAST_CHUNK_BYTES:
        chunk_bytes //= 2
        yield threads, chunk_bytes
