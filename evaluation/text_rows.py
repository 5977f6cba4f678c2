"""Rows of text with their labels, from JSON lines or parquet."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from evaluation.limits import refuse_large, unreadable
from jobs.problems import Problem

#: One row of text; longer ones are no rows of text.
_MOST_LINE_BYTES = 4 * 1024**2
#: Of a group of parquet's rows in memory, which is read at once.
_MOST_GROUP_BYTES = 512 * 1024**2
_KEYS = frozenset({"text", "label"})


@dataclass(frozen=True)
class TextRows:
    """Some rows of text.

    Attributes:
        texts: The texts.
        labels: Their labels, numbers or names; None where the rows have none.
    """

    texts: list[str]
    labels: list[Any] | None


def read_parquet(path: Path, batch: int, most: int) -> Iterator[TextRows]:
    """Read a parquet file with a column `text` and perhaps one `label`, some rows at a time.

    Args:
        path: The file.
        batch: How many rows at a time.
        most: How many rows at most; the first of them.

    Yields:
        The rows.

    Raises:
        Problem: `invalid_dataset`, with the column or the row.
    """
    from pyarrow import parquet  # noqa: PLC0415 - most data sets are no parquet

    try:
        file = parquet.ParquetFile(path, memory_map=True, pre_buffer=False)
        _check_parquet(file)
        columns = sorted(_KEYS & set(file.schema_arrow.names))
        done = 0
        for part in file.iter_batches(batch, columns=columns):
            members = part.slice(0, most - done).to_pydict()
            if not members["text"]:
                return
            _check_texts(members["text"], done)
            refuse_large(sum(map(len, members["text"])), batch)
            yield TextRows(members["text"], members.get("label"))
            done += len(members["text"])
    except Problem:
        raise
    except Exception as error:
        # A damaged page raises whatever its decompressor does.
        raise unreadable(f"It is no parquet file: {str(error)[:200]}.") from error


def _check_texts(texts: list[Any], done: int) -> None:
    for row, text in enumerate(texts, start=done + 1):
        if not isinstance(text, str):
            raise unreadable(f"Row {row} has no text.")


def _check_parquet(file: Any) -> None:  # noqa: ANN401 - pyarrow has no types
    import pyarrow as pa  # noqa: PLC0415 - as above

    schema = file.schema_arrow
    if unknown := sorted(set(schema.names) - _KEYS):
        raise unreadable(f"It has the column {unknown[0][:80]!a}; text and label are read.")
    kind = schema.field("text").type if "text" in schema.names else None
    if kind is None or not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise unreadable("It has no column text of strings.")
    sizes = [file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups)]
    if max(sizes, default=0) > _MOST_GROUP_BYTES:
        raise unreadable(
            f"A group of its rows takes {max(sizes)} bytes in memory, and {_MOST_GROUP_BYTES} are "
            "allowed. Write it with a smaller row_group_size."
        )


def read_lines(path: Path, batch: int, most: int) -> Iterator[TextRows]:
    """Read JSON lines, some at a time.

    Args:
        path: The file.
        batch: How many rows at a time.
        most: How many rows at most; the first of them.

    Yields:
        The rows.

    Raises:
        Problem: `invalid_dataset`, with the line.
    """
    with path.open("rb") as file:
        rows = islice(_parsed(file), most)
        first: bool | None = None
        while chunk := list(islice(rows, batch)):
            labels = ["label" in row for _, row in chunk]
            first = labels[0] if first is None else first
            if any(has_label != first for has_label in labels):
                line = chunk[labels.index(not first)][0]
                raise unreadable(
                    f"Line {line} has {'no' if first else 'a'} label, unlike the lines before."
                )
            texts = [row["text"] for _, row in chunk]
            refuse_large(sum(map(len, texts)), batch)
            yield TextRows(texts, [row["label"] for _, row in chunk] if first else None)


def _parsed(file: IO[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    while line := file.readline(_MOST_LINE_BYTES + 1):
        number += 1
        if len(line) > _MOST_LINE_BYTES:
            raise unreadable(f"Line {number} is longer than {_MOST_LINE_BYTES} bytes.")
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise unreadable(f"Line {number} is not JSON: {error}.") from error
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise unreadable(f"Line {number} is no object with a text.")
        if unknown := sorted(row.keys() - _KEYS):
            raise unreadable(
                f"Line {number} has the member {unknown[0][:80]!a}; text and label are."
            )
        yield number, row
