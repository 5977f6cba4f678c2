"""What of a data set is wanted: some rows, by their numbers, or all without their labels."""

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

from evaluation.datasets import Rows
from evaluation.image_rows import ImageRows
from evaluation.text_rows import TextRows


def pick(blocks: Iterator[Rows], numbers: Collection[int]) -> Iterator[Rows]:
    """Leave out all rows but some.

    Args:
        blocks: The rows of a data set, some at a time.
        numbers: Which ones are wanted, counted from 0.

    Yields:
        Those of each block that has any.
    """
    first = 0
    for block in blocks:
        count = _count(block)
        wanted = [number - first for number in sorted(numbers) if first <= number < first + count]
        first += count
        if wanted:
            yield _some(block, wanted)


def without_first(blocks: Iterator[Rows], rows: int) -> Iterator[Rows]:
    """Leave the first rows out.

    Args:
        blocks: The rows of a data set, some at a time.
        rows: How many, which is as many as the first blocks have.

    Yields:
        The blocks that follow.
    """
    for block in blocks:
        if rows > 0:
            rows -= _count(block)
        else:
            yield block


def without_labels(blocks: Iterator[Rows]) -> Iterator[Rows]:
    """Leave labels out, whatever they are.

    Args:
        blocks: The rows of a data set, some at a time.

    Yields:
        The same without labels.
    """
    for block in blocks:
        if isinstance(block, dict):
            yield {name: tensor for name, tensor in block.items() if name != "labels"}
        else:
            yield replace(block, labels=None)


def _count(block: Rows) -> int:
    if isinstance(block, TextRows):
        return len(block.texts)
    if isinstance(block, ImageRows):
        return len(block.names)
    return len(next(iter(block.values())))


def _some(block: Rows, wanted: list[int]) -> Rows:
    if isinstance(block, dict):
        return {name: tensor[wanted] for name, tensor in block.items()}
    labels = _listed(block.labels, wanted)
    if isinstance(block, TextRows):
        return TextRows([block.texts[i] for i in wanted], labels)
    names = [block.names[i] for i in wanted]
    return replace(block, names=names, contents=[block.contents[i] for i in wanted], labels=labels)


def _listed(values: list[Any] | None, wanted: list[int]) -> list[Any] | None:
    return None if values is None else [values[i] for i in wanted]
