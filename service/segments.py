"""Bytes that are literal or lie in files, read as one sequence from anywhere to anywhere."""

import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

CHUNK_BYTES = 1024**2


@dataclass(frozen=True)
class FileSegment:
    """A whole file.

    Attributes:
        path: The file.
        nbytes: Its size.
    """

    path: Path
    nbytes: int


Segment = bytes | FileSegment


def size_of(segments: Iterable[Segment]) -> int:
    """Give how many bytes the segments have together."""
    return sum(_size(segment) for segment in segments)


def read_segments(segments: Iterable[Segment], start: int, length: int) -> Iterator[bytes]:
    """Read a part of the sequence.

    Args:
        segments: The sequence.
        start: Its first byte to read.
        length: How many bytes to read; they exist.

    Yields:
        The bytes, in pieces of at most 1 MiB.

    Raises:
        EOFError: A file became shorter.
    """
    for segment in segments:
        size = _size(segment)
        if start >= size:
            start -= size
            continue
        if not length:
            return
        wanted = min(length, size - start)
        if isinstance(segment, bytes):
            yield segment[start : start + wanted]
        else:
            yield from _read_file(segment.path, start, wanted)
        length -= wanted
        start = 0


def tar_segments(files: Iterable[tuple[str, FileSegment]]) -> tuple[Segment, ...]:
    """Lay out a tar of files.

    Args:
        files: Name inside the tar and content, in order.

    Returns:
        The tar's segments. Equal names and contents give equal bytes: owners and times are left
        out.
    """
    segments: list[Segment] = []
    for name, file in files:
        entry = tarfile.TarInfo(name)
        entry.size = file.nbytes
        entry.mode = 0o644
        segments += [
            entry.tobuf(tarfile.GNU_FORMAT),
            file,
            bytes(-file.nbytes % tarfile.BLOCKSIZE),
        ]
    segments.append(bytes(2 * tarfile.BLOCKSIZE))
    return (*segments, bytes(-size_of(segments) % tarfile.RECORDSIZE))


def _size(segment: Segment) -> int:
    return len(segment) if isinstance(segment, bytes) else segment.nbytes


def _read_file(path: Path, start: int, length: int) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while length:
            data = file.read(min(CHUNK_BYTES, length))
            if not data:
                raise EOFError(f"{path.name} became shorter")
            length -= len(data)
            yield data
