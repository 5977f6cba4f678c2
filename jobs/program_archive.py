"""The archive of an exported program as this project keeps it: a zip that holds nothing else.

torch.export.save's own layout (torch/export/pt2_archive of torch 2.13), with entries in one order,
none of them compressed, each beginning at a multiple of 64 bytes, and without sample inputs, which
are a pickle. Equal programs have equal bytes.
"""

import re
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, cast

from jobs.problems import Problem
from jobs.zip_records import GuardedFile, check_records

PROGRAM_NAME = "model.pt2"
ROOT = "model/"
WEIGHTS, CONSTANTS = "data/weights/", "data/constants/"
WEIGHTS_CONFIG = f"{WEIGHTS}model_weights_config.json"
CONSTANTS_CONFIG = f"{CONSTANTS}model_constants_config.json"
GRAPH = "models/model.json"
SAMPLE_INPUTS = "data/sample_inputs/model.pt"
#: Entries that say what the archive is, with all that they hold.
FIXED: Mapping[str, bytes] = {
    SAMPLE_INPUTS: b"",
    "archive_format": b"pt2",
    "archive_version": b"0",
    ".data/version": b"6\n",
    "byteorder": b"little",
}
PAYLOAD = re.compile(r"data/weights/weight_\d{1,6}|data/constants/tensor_\d{1,6}")
MAX_ENTRIES = 100_000

_ALIGNMENT = 64
_LOCAL_BYTES = 30
#: Above it zipfile writes sizes of 64 bits, which take 20 bytes of the extra field.
_LARGE_BYTES = 2**31 - 1
_LARGE_FIELD_BYTES = 20
_DIRECTORY_BYTES, _END_BYTES, _LARGE_END_BYTES, _MOST_PLAIN_ENTRIES = 46, 22, 76, 65_535
_PADDING_ID = 0x4246
_EPOCH = (1980, 1, 1, 0, 0, 0)


class ArchiveWriter:
    """Adds the entries of a program's archive.

    Args:
        file: The file that is being made.
        archive: The zip that is being made in it.
    """

    def __init__(self, file: IO[bytes], archive: zipfile.ZipFile) -> None:
        self._file = file
        self._zip = archive

    def add(self, name: str, pieces: Iterable[bytes | memoryview], nbytes: int) -> None:
        """Add an entry.

        Args:
            name: Its name, without the root.
            pieces: What it holds.
            nbytes: How many bytes these are.
        """
        info = zipfile.ZipInfo(ROOT + name, _EPOCH)
        info.file_size = nbytes
        info.extra = _padding(self._file.tell(), info.filename, nbytes)
        with self._zip.open(info, "w", force_zip64=nbytes > _LARGE_BYTES) as entry:
            for piece in pieces:
                entry.write(piece)


def write_archive(path: Path, fill: Callable[[ArchiveWriter], None]) -> None:
    """Write the archive of a program.

    Args:
        path: The file to make.
        fill: Adds the entries that differ between programs.
    """
    with path.open("wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        writer = ArchiveWriter(file, archive)
        fill(writer)
        for name, content in FIXED.items():
            writer.add(name, [content], len(content))


def archive_bytes(sizes: Mapping[str, int]) -> int:
    """Give the size of an archive before it is written.

    Args:
        sizes: How many bytes each entry has, in the order in which they will be added.

    Returns:
        Bytes, exactly.
    """
    position = directory = 0
    entries = {**sizes, **{name: len(content) for name, content in FIXED.items()}}
    for name, nbytes in entries.items():
        extra = len(_padding(position, ROOT + name, nbytes))
        fields = (16 if nbytes > _LARGE_BYTES else 0) + (8 if position > _LARGE_BYTES else 0)
        directory += _DIRECTORY_BYTES + len(ROOT + name) + extra + (4 + fields if fields else 0)
        position += _LOCAL_BYTES + len(ROOT + name) + extra + nbytes
        position += _LARGE_FIELD_BYTES if nbytes > _LARGE_BYTES else 0
    is_large = position > _LARGE_BYTES or len(entries) > _MOST_PLAIN_ENTRIES
    return position + directory + _END_BYTES + (_LARGE_END_BYTES if is_large else 0)


def read_archive(path: Path) -> dict[str, tuple[int, int]]:
    """Find the entries of an archive that this project wrote.

    Args:
        path: The file.

    Returns:
        By the name of each entry, without the root, where its bytes begin in the file, and how many
        they are. No other byte of the file can be mistaken for one of an entry.

    Raises:
        Problem: `invalid_program`: it is not such an archive.
    """
    try:
        with (
            path.open("rb") as file,
            zipfile.ZipFile(cast("IO[bytes]", GuardedFile(file))) as archive,
        ):
            members = archive.infolist()
            _require(0 < len(members) <= MAX_ENTRIES, "it has no entries, or too many")
            check_records(path, archive.start_dir, members)
            spans = dict(_span(file, member) for member in members)
            _require(len(spans) == len(members), "an entry stands in it twice")
            for name, content in FIXED.items():
                start, nbytes = spans.get(name, (0, -1))
                file.seek(start)
                is_right = nbytes == len(content) and file.read(nbytes) == content
                _require(is_right, f"{name} is not what it should be")
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, OSError) as error:
        raise Problem("invalid_program", f"{path.name}: {error}.") from error
    return spans


def _require(holds: bool, fault: str) -> None:
    if not holds:
        raise zipfile.BadZipFile(fault)


def _span(file: IO[bytes], member: zipfile.ZipInfo) -> tuple[str, tuple[int, int]]:
    """Give an entry's name, where its bytes begin, and how many they are."""
    name = _plain_name(member)
    file.seek(member.header_offset + _LOCAL_BYTES - 4)
    lengths = struct.unpack("<2H", file.read(4))
    return name, (member.header_offset + _LOCAL_BYTES + sum(lengths), member.file_size)


def _plain_name(member: zipfile.ZipInfo) -> str:
    name = member.orig_filename.removeprefix(ROOT)
    known = {GRAPH, WEIGHTS_CONFIG, CONSTANTS_CONFIG, *FIXED}
    if not member.orig_filename.startswith(ROOT) or not (name in known or PAYLOAD.fullmatch(name)):
        raise zipfile.BadZipFile(f"{member.orig_filename[:80]!a} does not belong into it")
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits:
        raise zipfile.BadZipFile(f"{name} is not stored as it is")
    return name


def _padding(position: int, name: str, nbytes: int) -> bytes:
    """Give the extra field that puts the bytes of an entry at a multiple of the alignment."""
    taken = position + _LOCAL_BYTES + len(name.encode()) + 4
    taken += _LARGE_FIELD_BYTES if nbytes > _LARGE_BYTES else 0
    length = -taken % _ALIGNMENT
    return struct.pack("<2H", _PADDING_ID, length) + bytes(length)
