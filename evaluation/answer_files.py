"""What files of answers hold, whoever writes or reads them."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jobs.inference import Column

#: What rows are called in a parquet file, where the data set has names for them.
NAMES = "name"
#: Of a group of parquet's rows, and of what is read at a time.
GROUP_BYTES = 4 * 1024**2
DTYPES = {"float32": "F32", "int64": "I64"}
ITEM_BYTES = {"float32": 4, "int64": 8}

#: Values by column, as many rows in each.
Block = Mapping[str, np.ndarray]


def row_bytes(columns: Sequence[Column]) -> int:
    """Give what a row takes in memory, and about in a file."""
    return sum(math.prod(column.shape) * ITEM_BYTES[column.dtype] for column in columns)


def arrow_type(column: Column) -> Any:  # noqa: ANN401 - pyarrow has no types
    """Give what a column is in parquet."""
    import pyarrow as pa  # noqa: PLC0415 - tens of megabytes, which safetensors need not have

    kind = pa.float32() if column.dtype == "float32" else pa.int64()
    for size in reversed(column.shape):
        kind = pa.list_(pa.field("element", kind, nullable=False), size)
    return kind


def file_metadata(classes: Mapping[int, str] | None, output: str) -> dict[str, str]:
    """Give what a file of answers says of itself: what they are, and the names of classes."""
    about = {"output": output}
    if classes:
        about["classes"] = json.dumps([classes[i] for i in sorted(classes)])
    return about
