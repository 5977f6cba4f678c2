"""A parquet file of answers, which grows by groups of rows and can be gone on with after a kill.

Only its end says where the groups are, so a file that was cut off tells nothing. But nothing that
is said there depends on a value: no statistics, no dictionary, no compression, no null. So whoever
goes on writes groups of zeros first, as many and as long ones, to a file that passes over the bytes
it has. Answers that make no group yet are held in a file of their own.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from evaluation.answer_files import GROUP_BYTES, NAMES, Block, arrow_type
from evaluation.answer_journal import AnswerJournal, Written
from jobs.inference import Column


class ParquetWriter:
    """A file of answers in parquet that is being written.

    Args:
        path: Where.
        columns: What a row holds.
        about: What the file says of itself.
        journal: How far an attempt before this one had come, if there was one.
        has_names: Whether rows have names.
    """

    def __init__(
        self,
        path: Path,
        columns: Sequence[Column],
        about: Mapping[str, str],
        journal: AnswerJournal,
        *,
        has_names: bool,
    ) -> None:
        import pyarrow as pa  # noqa: PLC0415 - tens of megabytes, which safetensors need not have
        from pyarrow import parquet  # noqa: PLC0415

        self._columns = columns
        # Its own pools keep what was freed.
        self._pool = pa.system_memory_pool()
        fields = [pa.field(NAMES, pa.string(), nullable=False)] if has_names else []
        fields += [pa.field(c.name, arrow_type(c), nullable=False) for c in columns]
        self._schema = pa.schema(fields, metadata=dict(about))
        reached = journal.reached.written if journal.reached else Written(nbytes=0)
        self._sink = _Sink(path, reached.nbytes)
        self._writer = parquet.ParquetWriter(
            pa.PythonFile(self._sink, mode="w"),
            self._schema,
            compression="none",
            use_dictionary=False,
            write_statistics=False,
            memory_pool=self._pool,
        )
        self._blocks: list[tuple[Block, list[str] | None]] = []
        self._block_bytes = 0
        self._held = journal.held.open("r+b" if reached.held_bytes else "w+b", buffering=0)
        self._is_group_complete = False
        self._take_up(journal, reached)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self._flush()
        self._writer.close()
        self._sink.close()
        self._held.close()

    def append(self, block: Block, names: list[str] | None) -> Written:
        """Write the next rows."""
        if self._is_group_complete:
            # Not before the journal knew of the group: until then these were all there was.
            self._held.seek(0)
            self._held.truncate()
            self._is_group_complete = False
        for column in self._columns:
            self._hold(block[column.name])
        self._add(block, names)
        held_bytes = self._held.tell()
        if self._block_bytes < GROUP_BYTES:
            return Written(nbytes=self._sink.tell(), held_bytes=held_bytes)
        group = self._flush()
        self._is_group_complete = True
        return Written(nbytes=self._sink.tell(), group=group)

    def _hold(self, values: np.ndarray) -> None:
        view = memoryview(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
        while view.nbytes:
            view = view[self._held.write(view) :]

    def _take_up(self, journal: AnswerJournal, reached: Written) -> None:
        """Come to where an attempt before this one was, by what its journal says."""
        rows = 0
        held: list[tuple[int, list[str] | None]] = []
        for window in journal.windows() if journal.reached else ():
            held.append((window.rows - rows, window.names))
            rows = window.rows
            if window.written.group:
                self._write([(self._zeros(count), names) for count, names in held])
                held = []
        if journal.reached and self._sink.tell() != reached.nbytes:
            raise RuntimeError("The file of answers has other groups than its journal says.")
        for count, names in held:
            self._add(self._held_block(count), names)
        self._held.truncate(reached.held_bytes)

    def _zeros(self, rows: int) -> Block:
        return {c.name: np.zeros((rows, *c.shape), c.dtype) for c in self._columns}

    def _held_block(self, rows: int) -> Block:
        block = {}
        for column in self._columns:
            dtype = np.dtype(column.dtype)
            raw = self._held.read(rows * math.prod(column.shape) * dtype.itemsize)
            block[column.name] = np.frombuffer(raw, dtype).reshape(rows, *column.shape)
        return block

    def _add(self, block: Block, names: list[str] | None) -> None:
        self._blocks.append((block, names))
        self._block_bytes += sum(values.nbytes for values in block.values())

    def _flush(self) -> int:
        """Write a group of what is held, and say how many rows it has."""
        blocks, self._blocks, self._block_bytes = self._blocks, [], 0
        return self._write(blocks)

    def _write(self, blocks: list[tuple[Block, list[str] | None]]) -> int:
        import pyarrow as pa  # noqa: PLC0415 - as above

        if not blocks:
            return 0
        arrays = []
        if NAMES in self._schema.names:
            names = [name for _, some in blocks for name in some or ()]
            arrays.append(pa.array(names, pa.string(), memory_pool=self._pool))
        for column in self._columns:
            flat = np.concatenate([block[column.name].reshape(-1) for block, _ in blocks])
            arrays.append(_nested(pa.array(flat), column))
        table = pa.Table.from_arrays(arrays, schema=self._schema)
        self._writer.write_table(table, row_group_size=len(table))
        return len(table)


class _Sink:
    """A file that passes over the bytes that it has, and takes those that follow.

    Args:
        path: The file.
        known_bytes: How many of its bytes count.
    """

    def __init__(self, path: Path, known_bytes: int) -> None:
        self._file = path.open("r+b" if known_bytes else "xb", buffering=0)
        self._file.truncate(known_bytes)
        self._file.seek(known_bytes)
        self._known_bytes = known_bytes
        self._place = 0

    @property
    def closed(self) -> bool:
        """Whether it is closed; pyarrow asks."""
        return self._file.closed

    def write(self, data: Any) -> int:  # noqa: ANN401 - a buffer of pyarrow
        """Write what is not there yet."""
        view = memoryview(data).cast("B")
        nbytes = view.nbytes
        view = view[min(nbytes, max(0, self._known_bytes - self._place)) :]
        self._place += nbytes
        while view.nbytes:
            view = view[self._file.write(view) :]
        return nbytes

    def tell(self) -> int:
        """Give how much was written, or was there."""
        return self._place

    def flush(self) -> None:
        """Do nothing: nothing is held back."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _nested(flat: Any, column: Column) -> Any:  # noqa: ANN401 - pyarrow has no types
    import pyarrow as pa  # noqa: PLC0415 - as above

    for i in reversed(range(len(column.shape))):
        kind = arrow_type(column.model_copy(update={"shape": column.shape[i:]}))
        flat = pa.FixedSizeListArray.from_arrays(flat, type=kind)
    return flat
