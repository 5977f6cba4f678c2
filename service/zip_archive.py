"""A zip unpacked, after its directory and its records were found to tell the same story.

Readers of zips differ in what they believe, the directory or the records, and attackers live from
the difference. Here both must agree, byte for byte of the file, or the zip is refused.
"""

import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from jobs.problems import Problem
from jobs.zip_records import GuardedFile, check_records
from service.entries import MAX_ENTRIES, Entries, unsafe
from service.formats import refuse_foreign_zip
from service.receive import CHUNK_BYTES

# Weights shrink by a tenth, or by ten times where most are zero. Beyond that it is a bomb.
_MAX_RATIO = 100
_FREE_BYTES = 64 * 1024**2

_UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError)


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip whose directory and records agree; what cannot be read in it is a problem too.

    Args:
        path: The zip.

    Yields:
        The zip.

    Raises:
        Problem: `invalid_archive`, `unsafe_archive`, or `unsupported_format` where the zip is a
            format of its own.
    """
    try:
        with (
            path.open("rb") as file,
            zipfile.ZipFile(cast("IO[bytes]", GuardedFile(file))) as archive,
        ):
            members = archive.infolist()
            if len(members) > MAX_ENTRIES:
                raise Problem("unsafe_archive", f"The zip has more than {MAX_ENTRIES} entries.")
            refuse_foreign_zip([member.filename for member in members])
            check_records(path, archive.start_dir, members)
            yield archive
    except _UNREADABLE as error:
        raise Problem("invalid_archive", f"The zip cannot be read: {error}.") from error


def unpack_zip(archive: zipfile.ZipFile, entries: Entries) -> None:
    """Unpack a zip.

    Args:
        archive: The zip, from `open_zip`.
        entries: Where the files go.

    Raises:
        Problem: `unsafe_archive`, `too_large`.
        BadZipFile: It is damaged.
    """
    for member in archive.infolist():
        _store(archive, member, entries)


def _store(archive: zipfile.ZipFile, member: zipfile.ZipInfo, entries: Entries) -> None:
    check_member(member)
    if member.is_dir():
        entries.add_folder(member.filename)
        return
    target = entries.add_file(member.filename, member.file_size)
    if target is None:
        return
    written = 0
    with archive.open(member) as content, target.open("wb") as file:
        while data := content.read(CHUNK_BYTES):
            written += file.write(data)
    if written != member.file_size:
        raise zipfile.BadZipFile(f"{member.filename!r} is shorter than announced")


def check_member(member: zipfile.ZipInfo) -> None:
    """Refuse an entry that is not stored or deflated as a plain file or a folder.

    Args:
        member: The entry.

    Raises:
        Problem: `unsafe_archive`.
    """
    name = member.orig_filename
    if member.flag_bits & 0x1:
        raise unsafe(name, "it is encrypted")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise unsafe(name, "it is neither stored nor deflated")
    mode = member.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise unsafe(name, "it is neither a plain file nor a folder")
    if "\0" in name:
        raise unsafe(name, "its name holds a NUL")
    if member.file_size > _FREE_BYTES + _MAX_RATIO * member.compress_size:
        raise unsafe(
            name,
            f"{member.compress_size} bytes unpack to {member.file_size}, more than {_MAX_RATIO} to "
            "one; store it uncompressed",
        )
