"""The bytes of a zip, checked against its directory: every byte belongs to exactly one record.

Layout (APPNOTE.TXT 6.3.10): per file a local header, the data and perhaps a descriptor; then the
directory; then its end, in a 64-bit form too where numbers are large.
"""

import struct
import zipfile
from pathlib import Path
from typing import IO, Any

from jobs.problems import Problem

_LOCAL = struct.Struct("<4s5H3I2H")
_DIRECTORY = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64_BYTES = 56
_LOCATOR_BYTES = 20
_HAS_DESCRIPTOR = 0x8
# With or without its signature, with sizes of 32 or 64 bits.
_DESCRIPTOR_BYTES = frozenset({12, 16, 20, 24})
# zipfile reads the directory in one piece.
_MAX_DIRECTORY_BYTES = 16 * 1024**2


class GuardedFile:
    """A zip's file, which refuses to be read into memory.

    Args:
        file: The open file.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.seek, self.tell, self.seekable, self.close = (
            file.seek,
            file.tell,
            file.seekable,
            file.close,
        )
        self._read = file.read

    def read(self, size: int = -1) -> bytes:
        """Read, as a file does.

        Args:
            size: How many bytes; below 0 all, up to what a directory may have.

        Returns:
            The bytes.

        Raises:
            Problem: `unsafe_archive`.
        """
        most = _MAX_DIRECTORY_BYTES + 1
        data = self._read(most if size < 0 else min(size, most))
        if len(data) == most:
            raise Problem(
                "unsafe_archive", f"The zip's directory is over {_MAX_DIRECTORY_BYTES} bytes."
            )
        return data


def check_records(path: Path, directory_start: int, members: list[zipfile.ZipInfo]) -> None:
    """Check that records and directory agree and fill the file.

    Args:
        path: The zip.
        directory_start: Where its directory starts.
        members: What zipfile read from the directory.

    Raises:
        BadZipFile: They do not.
    """
    ordered = sorted(members, key=lambda member: member.header_offset)
    starts = [*(member.header_offset for member in ordered), directory_start]
    if starts[0] != 0:
        raise zipfile.BadZipFile("there is something before its first record")
    with path.open("rb") as file:
        for member, next_start in zip(ordered, starts[1:], strict=True):
            gap = next_start - _check_local(file, member)
            if gap not in (_DESCRIPTOR_BYTES if member.flag_bits & _HAS_DESCRIPTOR else {0}):
                raise zipfile.BadZipFile(
                    f"the record of {member.filename!r} overlaps the next or leaves a gap"
                )
        _check_end(file, directory_start, len(members), path.stat().st_size)


def _check_local(file: IO[bytes], member: zipfile.ZipInfo) -> int:
    """Compare a record's own header with the directory; give where its data ends."""
    fields = _read(file, member.header_offset, _LOCAL)
    signature, _, flags, method, _, _, _, packed, unpacked, name_bytes, extra_bytes = fields
    if signature != b"PK\x03\x04":
        raise zipfile.BadZipFile(f"{member.filename!r} has no record")
    encoding = "utf-8" if flags & 0x800 else "cp437"
    name = file.read(name_bytes).decode(encoding, "replace")
    # Sizes stand behind the data where there is a descriptor, and elsewhere when over 4 GiB.
    sizes_differ = not flags & _HAS_DESCRIPTOR and (
        packed not in (member.compress_size, 0xFFFFFFFF)
        or unpacked not in (member.file_size, 0xFFFFFFFF)
    )
    differs = (flags, method, name) != (
        member.flag_bits,
        member.compress_type,
        member.orig_filename,
    )
    if differs or sizes_differ:
        raise zipfile.BadZipFile(
            f"the record of {member.filename!r} is not what the directory says"
        )
    header_bytes: int = _LOCAL.size + name_bytes + extra_bytes
    return member.header_offset + header_bytes + member.compress_size


def _check_end(file: IO[bytes], position: int, count: int, file_bytes: int) -> None:
    for _ in range(count):
        fields = _read(file, position, _DIRECTORY)
        if fields[0] != b"PK\x01\x02":
            raise zipfile.BadZipFile("its directory is damaged")
        position += _DIRECTORY.size + fields[10] + fields[11] + fields[12]
    file.seek(position)
    if file.read(4) == b"PK\x06\x06":
        position += _END64_BYTES + _LOCATOR_BYTES
    fields = _read(file, position, _END)
    if fields[0] != b"PK\x05\x06" or position + _END.size + fields[7] != file_bytes:
        raise zipfile.BadZipFile("there is something behind its directory")


def _read(file: IO[bytes], position: int, layout: struct.Struct) -> tuple[Any, ...]:
    file.seek(position)
    raw = file.read(layout.size)
    if len(raw) < layout.size:
        raise zipfile.BadZipFile("it was cut off")
    return layout.unpack(raw)
