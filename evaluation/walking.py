"""Takes many batches through a model together, one block after the other.

Every batch runs the model's own ``forward`` in a coroutine of its own, which stops wherever a block
is about to be called. When all of them stand at the same block, that is loaded, may be looked at
and changed, and is let go once all are past it. So nothing has to be known of how a model calls its
blocks, and each block is in memory once, however many batches there are. Where the activations of
all of them would take too much, they go in groups, and each block is read once for a group.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from greenlet import getcurrent, greenlet

from evaluation.faults import blamed_on
from evaluation.inputs import Batch
from evaluation.skeletons import Block, Skeleton
from jobs.problems import Problem


@dataclass(frozen=True)
class Call:
    """A batch that is about to call a block.

    Attributes:
        batch: Which batch.
        args: What the block is called with.
        kwargs: The same, by name.
    """

    batch: Batch
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def repeat(self, block: Block) -> Any:  # noqa: ANN401 - whatever the block gives
        """Call the block once more, apart from the model's own call."""
        return block.module(*self.args, **self.kwargs)


#: Looks at a loaded block, and may change its weights before any batch is taken through it.
Visit = Callable[[Block, Sequence[Call]], None]
#: Takes what the model gave for a batch.
Take = Callable[[Batch, Any], None]
#: Between blocks, what a batch stands with is held by the model's own variables too: what the first
#: block was given, or what goes around the next one.
_TIMES_HELD = 2


def walk(
    skeleton: Skeleton,
    batches: Iterable[Batch],
    visit: Visit,
    *,
    take: Take | None = None,
    blamed: str = "invalid_dataset",
    room: int | None = None,
) -> None:
    """Take all batches through a model.

    Args:
        skeleton: The model; its blocks are empty before and after.
        batches: What their activations take at a block is held for each that goes with others.
        visit: Called once for each block and group, in the order in which the model calls them.
        take: Told what the model gave; without one, what follows the last block is not run.
        blamed: The code of the problem that the batches are blamed with.
        room: About how many bytes of activations a group of batches may hold; none is smaller than
            one batch. By default all go together.

    Raises:
        Problem: What went wrong: the batches are not taken, or the model calls a block twice, or
            its blocks in another order for some batch.
    """
    name = type(skeleton.model).__name__
    waiting = iter(batches)
    is_left = True
    with torch.inference_mode(), blamed_on(blamed, f"A {name} does not take the rows"):
        while is_left:
            with _Runs(skeleton, take) as runs, _empty_weights_explained(name):
                is_left = runs.begin(waiting, room)
                _walk_together(skeleton, runs, visit, is_last=take is None)


def _walk_together(skeleton: Skeleton, runs: "_Runs", visit: Visit, *, is_last: bool) -> None:
    """Take a group of batches through all blocks, to the last one alone where that is the end."""
    name = type(skeleton.model).__name__
    seen: set[str] = set()
    while (block := runs.block()) is not None:
        if not block.weights:
            runs.go_on()
            skeleton.forget()
            continue
        if block.name in seen:
            raise _unfit(name, f"it runs {block.name} more than once for a row")
        seen.add(block.name)
        skeleton.load(block)
        visit(block, runs.calls())
        if is_last and len(seen) == len(skeleton.blocks):
            # One batch is enough to see that no block comes again.
            runs.keep_first()
        runs.go_on()
        skeleton.release(block)
        skeleton.forget()


class _Runs:
    """A coroutine for each batch, and where it stands; a context that ends them."""

    def __init__(self, skeleton: Skeleton, take: Take | None) -> None:
        self._hub = getcurrent()
        self._skeleton = skeleton
        self._take = take
        self._batches: list[Batch] = []
        self._runs: list[greenlet] = []
        self._places: list[_Place | None] = []
        self._hooks = [
            block.module.register_forward_pre_hook(partial(self._stop, block), with_kwargs=True)
            for block in skeleton.blocks
        ]
        if take is not None and skeleton.head is not None:
            # Before the head the last block is let go of: it may be larger than that.
            stop = partial(self._stop, Block("", skeleton.head, {}))
            self._hooks.append(skeleton.head.register_forward_pre_hook(stop, with_kwargs=True))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for run in self._runs:
            run.throw()
        for hook in self._hooks:
            hook.remove()

    def begin(self, waiting: Iterator[Batch], room: int | None) -> bool:
        """Take batches to their first block, as many as there is room for.

        Args:
            waiting: Those that are left.
            room: As of `walk`.

        Returns:
            Whether more may be left.
        """
        held = 0
        for batch in waiting:
            run = greenlet(self._run)
            self._runs.append(run)
            self._batches.append(batch)
            place = run.switch(batch)
            self._places.append(place)
            taken = _TIMES_HELD * _nbytes(place) if place else 0
            held += taken
            # The next one takes about as much.
            if room is not None and held + taken > room:
                break
        else:
            room = None
        self._skeleton.forget()
        return room is not None

    def keep_first(self) -> None:
        """End all batches but the first."""
        for run in self._runs[1:]:
            run.throw()
        del self._runs[1:], self._places[1:]

    def go_on(self) -> None:
        """Take every batch through the block at which it stands, to the next one or the end."""
        for i, run in enumerate(self._runs):
            # What it was called with is let go of as soon as it has gone on.
            self._places[i] = None
            self._places[i] = run.switch()

    def block(self) -> Block | None:
        """Give the block at which all batches stand; None where all have come to the end."""
        blocks = {place.block.name if place else None: place for place in self._places}
        if len(blocks) > 1:
            name = type(self._skeleton.model).__name__
            raise _unfit(name, "it takes some rows through other blocks than others")
        place = next(iter(blocks.values()), None)
        return place.block if place else None

    def calls(self) -> list[Call]:
        """Give what every batch is about to call the block with."""
        return [
            Call(batch, place.args, place.kwargs)
            for batch, place in zip(self._batches, self._places, strict=False)
            if place
        ]

    def _run(self, batch: Batch) -> None:
        output = self._skeleton.model(**batch.inputs)
        if self._take is not None:
            self._take(batch, output)

    def _stop(
        self, block: Block, _: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        # A visit calls blocks too, and is not to be stopped.
        if getcurrent() is not self._hub:
            self._hub.switch(_Place(block, args, kwargs))


@dataclass(frozen=True)
class _Place:
    """Where a batch stands: what it is about to call, and with what."""

    block: Block
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@contextmanager
def _empty_weights_explained(name: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        if "meta" not in str(error):
            raise
        raise _unfit(name, "it takes weights of a block without calling the block") from error


def _nbytes(place: _Place) -> int:
    """Give the bytes of all tensors that a block is called with, each once."""
    found: dict[int, int] = {}

    def look(value: object) -> None:
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, tuple | list):
            for member in value:
                look(member)

    look(place.args)
    look(list(place.kwargs.values()))
    return sum(found.values())


def _unfit(name: str, reason: str) -> Problem:
    return Problem("unknown_architecture", f"A {name} cannot be taken block by block: {reason}.")
