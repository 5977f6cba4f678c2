"""A tar unpacked while it arrives: regular files and folders, nothing else, nothing behind them."""

import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Self, cast

from jobs.problems import Problem
from service.entries import Entries, unsafe
from service.receive import CHUNK_BYTES

# What an entry's headers may take, long names and pax records included: tarfile keeps them in
# memory. Generous, because the stream is read ahead by a block.
_MAX_HEADER_BYTES = 4 * CHUNK_BYTES


class _StrictEntry(tarfile.TarInfo):
    """An entry whose damaged header is an error rather than the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str | None, errors: str) -> Self:
        try:
            entry = super().frombuf(buf, encoding, errors)  # type: ignore[arg-type] # typeshed
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined] # not in typeshed
            raise
        except tarfile.HeaderError as error:
            raise _invalid(f"{error}; a tar ends with two empty blocks") from error
        if entry.size < 0:
            raise _invalid("an entry has a negative size")
        return entry


class _Metered:
    """Lets tarfile read, but not without end where it looks for an entry's header."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self.allowance: int | None = _MAX_HEADER_BYTES

    def read(self, size: int) -> bytes:
        data = self._read(size)
        if self.allowance is not None:
            self.allowance -= len(data)
            if self.allowance < 0:
                raise Problem("unsafe_archive", "The headers of an entry of the tar are too long.")
        return data


def unpack_tar(read: Callable[[int], bytes], entries: Entries) -> None:
    """Unpack a tar.

    Args:
        read: Gives the next bytes of the tar, as many as asked for unless it ends.
        entries: Where the files go.

    Raises:
        Problem: `invalid_archive`, `unsafe_archive` or `too_large`.
    """
    source = _Metered(read)
    try:
        with tarfile.open(
            fileobj=cast("IO[bytes]", source), mode="r|", bufsize=CHUNK_BYTES, tarinfo=_StrictEntry
        ) as tar:
            while (entry := tar.next()) is not None:
                source.allowance = None
                _store(tar, entry, entries)
                source.allowance = _MAX_HEADER_BYTES
            source.allowance = None
            _refuse_trailing(cast("IO[bytes]", tar.fileobj))
    except (tarfile.TarError, ValueError, RecursionError, OverflowError) as error:
        raise _invalid(str(error)) from error


def _store(tar: tarfile.TarFile, entry: tarfile.TarInfo, entries: Entries) -> None:
    if entry.isdir():
        entries.add_folder(entry.name)
        return
    if not entry.isreg() or entry.issparse():
        raise unsafe(entry.name, "it is neither a plain file nor a folder")
    target = entries.add_file(entry.name, entry.size)
    content = cast("IO[bytes]", tar.extractfile(entry))
    with (target or Path(os.devnull)).open("wb") as file:
        left = entry.size
        while left:
            data = content.read(min(CHUNK_BYTES, left))
            if not data:
                raise _invalid(f"it ends inside {entry.name!r}")
            file.write(data)
            left -= len(data)


def _refuse_trailing(rest: Any) -> None:  # noqa: ANN401 - tarfile's own stream
    while data := rest.read(CHUNK_BYTES):
        if data.strip(b"\0"):
            raise _invalid("there is something behind its end")


def _invalid(reason: str) -> Problem:
    return Problem("invalid_archive", f"The tar cannot be read: {reason}.")
