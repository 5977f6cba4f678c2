"""From the bytes of an upload to the files of a model or a data set, in constant memory."""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import blake3

from jobs.checkpoint import SINGLE_NAME, open_checkpoint
from jobs.problems import Problem
from jobs.program_archive import PROGRAM_NAME
from service.entries import Entries
from service.formats import SNIFF_BYTES, sniff
from service.program_upload import convert as convert_program
from service.program_upload import is_exported
from service.receive import CHUNK_BYTES
from service.state_dict import convert, is_torch_save
from service.state_dict_folder import convert_folder
from service.tar_archive import unpack_tar
from service.zip_archive import open_zip, unpack_zip

Pieces = Iterable[bytes | memoryview]


@dataclass(frozen=True)
class Received:
    """An upload whose files lie in its staged folder.

    Attributes:
        digest: The blake3 hex digest of the uploaded bytes.
        meta: What is known about it.
    """

    digest: str
    meta: dict[str, Any]


class _Source:
    """The upload's bytes, hashed and counted as they pass."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = iter(pieces)
        self._hasher = blake3.blake3()
        self._rest = memoryview(b"")
        self.nbytes = 0

    @property
    def digest(self) -> str:
        return self._hasher.hexdigest()

    def peek(self, size: int) -> bytes:
        start = bytes(self._rest)
        while len(start) < size and (piece := self._next()):
            start += piece
        self._rest = memoryview(start)
        return start[:size]

    def read(self, size: int) -> bytes:
        """Give as many bytes as asked for, fewer only at the end."""
        parts: list[memoryview] = []
        missing = size
        while missing:
            piece = self._rest or self._next()
            if not piece:
                break
            parts.append(piece[:missing])
            self._rest = piece[missing:]
            missing -= len(parts[-1])
        return b"".join(parts)

    def pieces(self) -> Iterator[memoryview]:
        while piece := self._rest or self._next():
            self._rest = memoryview(b"")
            yield piece

    def _next(self) -> memoryview:
        for piece in self._pieces:
            if len(piece):
                self._hasher.update(piece)
                self.nbytes += len(piece)
                return memoryview(piece)
        return memoryview(b"")


def receive_model(pieces: Pieces, staged: Path, max_extracted: int) -> Received:
    """Store a model's upload in a staged folder and check that it is one model.

    Args:
        pieces: The uploaded bytes.
        staged: A folder with an empty ``files`` folder in it.
        max_extracted: The most bytes that may come out of an archive.

    Returns:
        The digest of the uploaded bytes, and what its headers tell.

    Raises:
        Problem: The upload is no model that is accepted.
    """
    source = _Source(pieces)
    files = staged / "files"
    ignored: list[str] = []
    facts: dict[str, Any] | None = None
    container = sniff(source.peek(SNIFF_BYTES))
    if container == "safetensors":
        _write(source.pieces(), files / SINGLE_NAME)
    else:
        entries = Entries(files, max_extracted)
        if container == "tar":
            unpack_tar(source.read, entries)
        else:
            ignored, facts = _unzip(source, staged, entries)
        is_torch_saved = entries.finish()
        ignored += entries.ignored
        if is_torch_saved:
            ignored += convert_folder(files, max_extracted)
    meta = {**_common("mdl_", source), **(facts or _facts(files)), "ignored_files": ignored}
    return Received(source.digest, meta)


def _facts(files: Path) -> dict[str, Any]:
    checkpoint = open_checkpoint(files)
    is_quantized = bool((checkpoint.config or {}).get("quantization_config"))
    return {**checkpoint.facts(), "is_quantized": is_quantized}


def receive_dataset(pieces: Pieces, staged: Path) -> Received:
    """Store a data set's upload in a staged folder as it was sent.

    Args:
        pieces: The uploaded bytes.
        staged: A folder with an empty ``files`` folder in it.

    Returns:
        The digest of the uploaded bytes and their number.

    Raises:
        Problem: `empty_upload`.
    """
    source = _Source(pieces)
    _write(source.pieces(), staged / "files" / "data")
    if not source.nbytes:
        raise Problem("empty_upload", "The upload has no bytes.")
    return Received(source.digest, _common("ds_", source))


def _unzip(
    source: _Source, staged: Path, entries: Entries
) -> tuple[list[str], dict[str, Any] | None]:
    """Unpack a zip; give what of it is ignored, and the facts where it is a program."""
    path = staged / "upload.zip"
    _write(source.pieces(), path)
    ignored: list[str] = []
    facts = None
    with open_zip(path) as archive:
        if is_torch_save(archive):
            target = staged / "files" / SINGLE_NAME
            ignored = convert(archive, path, target, entries.max_bytes)
        elif is_exported(archive):
            target = staged / "files" / PROGRAM_NAME
            ignored, facts = convert_program(archive, target, entries.max_bytes)
            facts["is_quantized"] = False
        else:
            unpack_zip(archive, entries)
    path.unlink()
    return ignored, facts


def require_space(folder: Path, nbytes: int | None, reserve: int) -> None:
    """Refuse what would fill the disk before it has begun.

    Args:
        folder: On the disk in question.
        nbytes: The announced size, if there is one.
        reserve: What is to stay free.

    Raises:
        Problem: `storage_full`.
    """
    free = shutil.disk_usage(folder).free
    if (nbytes or 0) + reserve > free:
        wanted = f"the upload has {nbytes} bytes" if nbytes else "nothing more is taken"
        raise Problem(
            "storage_full",
            f"{free} bytes of the disk are free, and {reserve} are to stay so: {wanted}. Remove "
            "jobs or models that are no longer needed.",
            extra={"free_bytes": free, "reserve_bytes": reserve},
        )


def _common(prefix: str, source: _Source) -> dict[str, Any]:
    return {
        "id": prefix + source.digest,
        "bytes": source.nbytes,
        "created_at": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
    }


def _write(pieces: Iterator[memoryview], path: Path) -> None:
    # Pieces are about a megabyte but for those beside a multipart boundary.
    with path.open("wb", buffering=CHUNK_BYTES) as file:
        for piece in pieces:
            file.write(piece)
