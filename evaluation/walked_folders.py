"""A transformers folder as something that can be run although it is larger than memory may be."""

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from evaluation.freed_memory import give_freed_memory_back
from evaluation.inputs import Batch, Span, batches_of
from evaluation.outputs import Answers, read_answers
from evaluation.skeletons import Block, Skeleton
from evaluation.subjects import OnRows, Take
from evaluation.walking import Call, walk
from jobs.checkpoint import Checkpoint
from jobs.recipe import Evaluate
from planning.module_kinds import ModuleKinds


class WalkedSubject:
    """A model of a transformers folder, run block by block, one of which is in memory.

    Args:
        checkpoint: The original, or an artifact.
        kinds: What its own code says about its modules.
        original: The original's folder, for its tokenizer.
        room: How many bytes the activations of rows may take that go through it together.

    Attributes:
        name: What it is called in problems.
    """

    name: str

    def __init__(
        self, checkpoint: Checkpoint, kinds: ModuleKinds, original: Path, room: int
    ) -> None:
        give_freed_memory_back()
        self._skeleton = Skeleton(checkpoint, kinds)
        self._original = original
        self._room = room
        self._blamed = "invalid_dataset"
        self.name = f"A {type(self._skeleton.model).__name__}"

    @property
    def weight_bytes(self) -> int:
        """What its weights take in memory, at most."""
        return self._skeleton.weight_bytes

    @property
    def blocks(self) -> int:
        """How many blocks it has."""
        return len(self._skeleton.blocks)

    def batches(self, dataset: Path | None, wanted: Evaluate | Span) -> Iterator[Batch]:
        """Give its inputs, batch by batch, the same each time."""
        self._blamed = "evaluation_failed" if dataset is None else "invalid_dataset"
        return batches_of(self._skeleton.model, self._original, dataset, wanted)

    def run(self, batches: Iterable[Batch], take: Take, on_rows: OnRows) -> float:
        """Run it over as many batches at a time as there is room for.

        Args:
            batches: Its inputs.
            take: Given what it gave, in the order of the batches.
            on_rows: Told how many rows are done; of those on their way, as many as their share of
                the blocks.

        Returns:
            The seconds in which it ran, reading its blocks included.
        """
        watched = _Watched(take, on_rows, self.blocks)
        started = time.perf_counter()
        walk(
            self._skeleton,
            watched.batches(batches),
            watched.visit,
            take=watched.take,
            blamed=self._blamed,
            room=self._room,
        )
        on_rows(watched.rows)
        return time.perf_counter() - started - watched.seconds_aside

    def read(self, batch: Batch, output: Any) -> Answers:  # noqa: ANN401 - transformers has no types
        """Take what is compared out of what it gave."""
        return read_answers(self._skeleton.model, batch, output)

    def latency(self, _batch: Batch, _most: int) -> dict[str, float]:
        """Give nothing: no forward has all of the model, so none tells how long it takes."""
        return {}


class _Watched:
    """What goes through a model and comes out, counted and timed.

    Args:
        take: Given what comes out.
        on_rows: Told how many rows are done.
        blocks: How many blocks there are.

    Attributes:
        rows: How many are done.
        seconds_aside: What reading rows and taking what came out has taken so far.
    """

    rows: int
    seconds_aside: float

    def __init__(self, take: Take, on_rows: OnRows, blocks: int) -> None:
        self._take = take
        self._on_rows = on_rows
        self._blocks = blocks
        self._passed: set[str] = set()
        self.rows = 0
        self.seconds_aside = 0.0

    def batches(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Give the batches themselves."""
        waiting = iter(batches)
        while True:
            started = time.perf_counter()
            batch = next(waiting, None)
            self.seconds_aside += time.perf_counter() - started
            if batch is None:
                return
            yield batch

    def visit(self, block: Block, calls: Sequence[Call]) -> None:
        """Tell how far the rows are that go together."""
        if block.name in self._passed:
            self._passed.clear()
        together = sum(call.batch.rows for call in calls)
        self._on_rows(self.rows + together * len(self._passed) // self._blocks)
        self._passed.add(block.name)

    def take(self, batch: Batch, output: Any) -> None:  # noqa: ANN401 - as above
        """Have what came out taken."""
        started = time.perf_counter()
        self._take(batch, output)
        self.rows += batch.rows
        self.seconds_aside += time.perf_counter() - started
