"""A job's journal: how far it is, so that after a kill the next attempt goes on from there.

A text file beside the artifact. Its first line says which job it is about and every other how far
that was; each line begins with its own checksum, so one that was cut short does not count. Nothing
is forced to the disk: what a killed process wrote is still in the kernel's page cache, its journal
and its artifact alike. That is why a journal counts only on the boot of the machine that wrote it.

Whoever writes a journal holds a lock on it, which the kernel releases when that process dies. A
journal that is still locked is not taken over: its job starts again with files of its own.
"""

import errno
import fcntl
import json
import os
import zlib
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from shutil import rmtree
from types import TracebackType
from typing import Self

from blake3 import blake3
from pydantic import BaseModel, Field

from engine.ledger import StepEntry, TensorEntry
from engine.measurements import Tally, Threshold

_FORMAT = 1
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class OpenLook(BaseModel, extra="forbid"):
    """A look at a step's keys that has not ended.

    Attributes:
        stream: The step's index and the tensor's name, which is empty where it is all tensors.
        look: Which look at them it is.
        chunks: How many chunks it has counted.
        tally: What it has counted.
    """

    stream: tuple[int, str]
    look: int
    chunks: int
    tally: Tally


class Record(BaseModel, extra="forbid"):
    """How far a job is: every task before this place has been done, and none after it counts.

    Attributes:
        files: The size of each file of the artifact so far.
        errors: What rounding each weight would lose, where the recipe had that measured first.
        placement: How many tensors are done.
        chunks: How many chunks of the next one are.
        passed_bytes: How many bytes of the model both have.
        steps: Seconds of each step, and the bytes that were read for it alone.
        tensors: What became of the tensors so far.
        totals: How many ties each step with a global threshold has met, by its index.
        ties: How many each step has met in the tensor that has begun.
        thresholds: What each look at a step's keys found, by the step's index and the tensor's
            name, which is empty where it is all tensors.
        open_look: How far the look is that is being taken.
    """

    files: dict[str, int] = Field(default_factory=dict)
    errors: dict[str, float] = Field(default_factory=dict)
    placement: int = 0
    chunks: int = 0
    passed_bytes: int = 0
    steps: list[tuple[float, int]] = Field(default_factory=list)
    tensors: dict[str, TensorEntry] = Field(default_factory=dict)
    totals: dict[int, int] = Field(default_factory=dict)
    ties: dict[int, int] = Field(default_factory=dict)
    thresholds: dict[int, dict[str, list[Threshold]]] = Field(default_factory=dict)
    open_look: OpenLook | None = None

    @property
    def bytes_read(self) -> int:
        """How many bytes were read to come so far."""
        return self.passed_bytes + sum(nbytes for _, nbytes in self.steps)


class Journal:
    """A journal that is being written; a context that ends with it closed and unlocked.

    Args:
        path: Where; None writes none. One that is there is replaced, so that whoever still writes
            to the old one cannot reach this one.
        job: Tells the job from others; see `fingerprint_of`.
        folder: The artifact. Where there is a journal, what is in there and does not belong to what
            it says is removed.

    Attributes:
        reached: How far attempts before this one had come. None where the job has to begin: there
            is no journal, it is another job's, its machine was started anew since, its writer still
            lives, or a file that it speaks of is not there.
    """

    reached: Record | None

    def __init__(self, path: Path | None, job: str, folder: Path) -> None:
        self.reached = None
        self._file: int | None = None
        if path is None:
            return
        heading = {"format": _FORMAT, "boot": _BOOT_ID.read_text().strip(), "job": job}
        self.reached = _read(path, heading, folder)
        _clear(folder, self.reached.files if self.reached else {})
        self._file = _begin(path, heading, self.reached)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    def write(self, record: Record) -> None:
        """Say how far the job is.

        A disk without room ends the journal, not the job.

        Args:
            record: That. Of files, tensors, errors and thresholds it has those that are new or
                changed since the last record.
        """
        if self._file is None:
            return
        try:
            _append(self._file, record.model_dump_json(exclude_defaults=True))
        except OSError:
            self._close()

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def fingerprint_of(parts: Iterable[object]) -> str:
    """Tell jobs apart by everything that decides their tasks and the bytes that these write.

    Args:
        parts: Values whose `repr` says all about them.

    Returns:
        A digest: equal for equal parts.
    """
    hasher = blake3()
    for part in parts:
        hasher.update(f"{part!r}\n".encode())
    return hasher.hexdigest()


def steps_of(entries: Iterable[StepEntry]) -> list[tuple[float, int]]:
    """Give what a record says of the steps."""
    return [(entry.seconds, entry.bytes_read) for entry in entries]


def _read(path: Path, heading: dict[str, object], folder: Path) -> Record | None:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            texts = _whole_lines(file)
            if json.loads(next(texts, "{}")) != heading:
                return None
            reached = _put_together(Record.model_validate_json(text) for text in texts)
    except (FileNotFoundError, BlockingIOError):
        return None
    if any(_size(folder / name) != nbytes for name, nbytes in reached.files.items()):
        return None
    return reached if reached.bytes_read else None


def _whole_lines(file: Iterable[bytes]) -> Iterator[str]:
    for line in file:
        text = line[9:-1].decode(errors="replace")
        if line != _checked(text):
            return
        yield text


def _put_together(records: Iterable[Record]) -> Record:
    whole = last = Record()
    for last in records:
        whole.files |= last.files
        whole.errors |= last.errors
        whole.tensors |= last.tensors
        for index, found in last.thresholds.items():
            whole.thresholds.setdefault(index, {}).update(found)
    sums = {name: getattr(whole, name) for name in ("files", "errors", "tensors", "thresholds")}
    return last.model_copy(update=sums)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() and not path.is_symlink() else None


def _clear(folder: Path, kept: Container[str]) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            rmtree(path)
        elif path.name not in kept:
            path.unlink()


def _begin(path: Path, heading: dict[str, object], reached: Record | None) -> int:
    draft = path.with_name(f"{path.name}.new")
    draft.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
    file = os.open(draft, flags, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _append(file, json.dumps(heading))
        if reached is not None:
            _append(file, reached.model_dump_json(exclude_defaults=True))
        draft.rename(path)
    except BaseException:
        os.close(file)
        raise
    return file


def _append(file: int, text: str) -> None:
    line = _checked(text)
    if os.write(file, line) < len(line):
        raise OSError(errno.ENOSPC, "A line of the journal was cut short.")


def _checked(text: str) -> bytes:
    data = text.encode()
    return b"%08x %b\n" % (zlib.crc32(data), data)
