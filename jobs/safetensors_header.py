"""Read, check and write safetensors headers, without torch and without reading a tensor.

A header is hostile until checked: the safetensors library accepts duplicate names (the last one
wins), names like ``../../x`` and a hundred thousand dimensions. This reader does not. What it
accepts is a file in which every byte belongs to exactly one tensor.

Format: 8 bytes little-endian header length N, N bytes of JSON, then the tensors' data. Offsets in
the JSON are relative to the data's first byte.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.problems import Detail, Problem

MAX_HEADER_BYTES = 16 * 1024**2
MAX_TENSORS = 100_000
MAX_RANK = 8
MAX_NAME_LENGTH = 512

#: Bytes per element of every dtype that the format knows and we let pass.
DTYPE_BYTES: dict[str, int] = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
    "C64": 8,
}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor's entry in a header.

    Attributes:
        name: The tensor's name in the state dict.
        dtype: The safetensors name of the dtype, such as ``BF16``.
        shape: The dimensions; empty for a scalar.
        start: Offset of the first byte, relative to the data's first byte.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def elements(self) -> int:
        """How many elements the tensor holds (1 for a scalar)."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """How many bytes the tensor takes in the file."""
        return self.elements * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class Header:
    """A checked header.

    Attributes:
        tensors: Every tensor, in the order of its bytes in the file.
        metadata: The ``__metadata__`` member, empty where absent.
        data_start: Where in the file the data's first byte lies.
    """

    tensors: tuple[TensorSpec, ...]
    metadata: Mapping[str, str]
    data_start: int

    @property
    def data_bytes(self) -> int:
        """How many bytes of data follow the header."""
        return sum(tensor.nbytes for tensor in self.tensors)


def read_header(path: Path) -> Header:
    """Read and check the header of a file.

    Args:
        path: A safetensors file.

    Returns:
        The header. Every byte of the file behind it belongs to exactly one tensor.

    Raises:
        Problem: The header is damaged, too large or describes another file than this one; the
            detail names the tensor and the byte offset.
    """
    size = os.path.getsize(path)
    with path.open("rb") as file:
        prefix = file.read(8)
        length = header_length(prefix, size)
        return parse_header(file.read(length), size - 8 - length)


def header_length(prefix: bytes, file_bytes: int) -> int:
    """Decode the length prefix and refuse one that cannot be true.

    Args:
        prefix: The first 8 bytes of the file.
        file_bytes: The size of the whole file.

    Returns:
        The length of the JSON header in bytes.

    Raises:
        Problem: The file is too short for a header, or the header is larger than the limit.
    """
    if len(prefix) < 8:
        raise Problem(
            "invalid_header",
            f"The file has {file_bytes} bytes; a safetensors file starts with 8 bytes that hold "
            "the length of its header.",
        )
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER_BYTES:
        raise Problem(
            "header_too_large",
            f"Bytes 0 to 7 announce a header of {length} bytes; the limit is {MAX_HEADER_BYTES}. "
            "Is this a safetensors file?",
        )
    if length + 8 > file_bytes:
        raise Problem(
            "invalid_header",
            f"Bytes 0 to 7 announce a header of {length} bytes, but only {file_bytes - 8} follow.",
        )
    return length


def parse_header(raw: bytes, data_bytes: int) -> Header:
    """Check the JSON of a header against the bytes that follow it.

    Args:
        raw: The JSON header.
        data_bytes: How many bytes follow the header in the file.

    Returns:
        The header, its tensors in the order of their bytes.

    Raises:
        Problem: The header does not describe exactly those bytes.
    """
    try:
        members = json.loads(raw, object_pairs_hook=_refuse_duplicates)
    except (ValueError, RecursionError) as error:
        raise Problem("invalid_header", f"The header is not JSON: {error}.") from error
    header = check_members(members, 8 + len(raw))
    if header.data_bytes != data_bytes:
        _check_layout(header.tensors, data_bytes)
    return header


def check_members(members: object, data_start: int | None = None) -> Header:
    """Check a header that was already read from JSON, apart from its file.

    Args:
        members: The members of the JSON header.
        data_start: Where in the file the data's first byte lies; by default behind a header of
            these members without spaces.

    Returns:
        The header, its tensors in the order of their bytes.

    Raises:
        Problem: It describes no file in which every byte belongs to exactly one tensor.
    """
    if not isinstance(members, dict):
        raise Problem("invalid_header", "The header is not a JSON object.")
    entries = {name: entry for name, entry in members.items() if name != "__metadata__"}
    metadata = _check_metadata(members.get("__metadata__", {}))
    if len(entries) > MAX_TENSORS:
        raise Problem(
            "invalid_header",
            f"The header names {len(entries)} tensors; the limit is {MAX_TENSORS}.",
        )
    tensors = [_parse_tensor(name, entry) for name, entry in entries.items()]
    # Empty tensors share an offset with their successor: the smaller one goes first.
    tensors.sort(key=lambda tensor: (tensor.start, tensor.nbytes))
    _check_layout(tensors, sum(tensor.nbytes for tensor in tensors))
    start = data_start or len(encode_header(tensors, metadata))
    return Header(tuple(tensors), metadata, start)


def encode_header(tensors: Iterable[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    """Write a header, length prefix included, padded with spaces to a multiple of 8 bytes.

    Args:
        tensors: The tensors, in the order of their bytes, their offsets without gaps.
        metadata: The ``__metadata__`` member; left out where empty.

    Returns:
        The bytes that stand before the data. Equal input gives equal bytes.
    """
    members: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for tensor in tensors:
        members[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [tensor.start, tensor.start + tensor.nbytes],
        }
    raw = json.dumps(members, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            raise Problem("duplicate_tensor", f"The header names {name!r} twice.")
        members[name] = value
    return members


def _check_metadata(metadata: object) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise Problem("invalid_header", "__metadata__ is not an object of strings.")
    return metadata


def _parse_tensor(name: str, entry: object) -> TensorSpec:
    if not name or len(name) > MAX_NAME_LENGTH or not name.isprintable():
        raise _invalid(name, f"a name is 1 to {MAX_NAME_LENGTH} printable characters")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _invalid(name, "an entry has exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise _invalid(name, f"dtype {dtype!r} is not one of {', '.join(DTYPE_BYTES)}")
    if not _is_list_of_sizes(shape) or len(shape) > MAX_RANK:
        raise _invalid(name, f"shape {shape!r} is not a list of at most {MAX_RANK} sizes")
    if not _is_list_of_sizes(offsets) or len(offsets) != 2:
        raise _invalid(name, f"data_offsets {offsets!r} is not a pair of offsets")
    spec = TensorSpec(name, dtype, tuple(shape), offsets[0])
    if offsets[1] - offsets[0] != spec.nbytes:
        raise _invalid(
            name,
            f"data_offsets {offsets} span {offsets[1] - offsets[0]} bytes, "
            f"but {dtype} of shape {shape} takes {spec.nbytes}",
        )
    return spec


def _is_list_of_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 2**63 for v in value)


def _invalid(name: str, reason: str) -> Problem:
    shown = name if len(name) <= 80 else name[:77] + "..."
    pointer = "/" + name[:MAX_NAME_LENGTH].replace("~", "~0").replace("/", "~1")
    detail = f"Tensor {shown!r}: {reason}."
    return Problem("invalid_tensor", detail, errors=[Detail(pointer, "invalid_tensor", detail)])


def _check_layout(tensors: Sequence[TensorSpec], data_bytes: int) -> None:
    end = 0
    previous = "the header"
    for tensor in tensors:
        if tensor.start < end:
            raise Problem(
                "tensor_overlap",
                f"Tensor {tensor.name!r} starts at data byte {tensor.start}, inside {previous!r}, "
                f"which ends at {end}.",
            )
        if tensor.start > end:
            raise Problem(
                "tensor_gap",
                f"Data bytes {end} to {tensor.start - 1}, before tensor {tensor.name!r}, "
                "belong to no tensor.",
            )
        end = tensor.start + tensor.nbytes
        previous = tensor.name
        if end > data_bytes:
            raise Problem(
                "tensor_out_of_bounds",
                f"Tensor {tensor.name!r} ends at data byte {end}, but the file holds {data_bytes}.",
            )
    if end != data_bytes:
        raise Problem(
            "tensor_gap", f"Data bytes {end} to {data_bytes - 1}, at the end, belong to no tensor."
        )
