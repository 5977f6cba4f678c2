"""A job's journal: how far it is, so that after a kill the next attempt goes on from there.

A text file beside the artifact. Its first line says which job it is about and every other how far
that was; each line begins with its own checksum, so one that was cut short does not count. Nothing
is forced to the disk: what a killed process wrote is still in the kernel's page cache, its journal
and its artifact alike. That is why a journal counts only on the boot of the machine that wrote it.

Whoever writes a journal holds a lock on it, which the kernel releases when that process dies. A
journal that is still locked is not taken over: its job starts again with files of its own.
"""

import fcntl
import json
import os
import zlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from blake3 import blake3
from pydantic import BaseModel, ConfigDict, Field

from engine.ledger import TensorEntry
from engine.measurements import Threshold

_FORMAT = 1
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Record(BaseModel):
    """How far a job is: every task before this place has been done, and none after it counts.

    Attributes:
        placement: How many tensors are done.
        chunks: How many chunks of the next one are.
        passed_bytes: How many bytes of the model both have.
        steps: Seconds of each step, and the bytes that were read for it alone.
        tensors: What became of the tensors so far.
        totals: How many ties each step with a global threshold has met, by its index.
        ties: How many each step has met in the tensor that has begun.
        thresholds: What each look at a step's keys found, by the step's index and the tensor's
            name, which is empty where it is all tensors.
    """

    model_config = ConfigDict(extra="forbid")

    placement: int = 0
    chunks: int = 0
    passed_bytes: int = 0
    steps: list[tuple[float, int]] = Field(default_factory=list)
    tensors: dict[str, TensorEntry] = Field(default_factory=dict)
    totals: dict[int, int] = Field(default_factory=dict)
    ties: dict[int, int] = Field(default_factory=dict)
    thresholds: dict[int, dict[str, list[Threshold]]] = Field(default_factory=dict)

    @property
    def bytes_read(self) -> int:
        """How many bytes were read to come so far."""
        return self.passed_bytes + sum(nbytes for _, nbytes in self.steps)


class Journal:
    """A journal that is being written; a context that ends with it closed and unlocked.

    Args:
        path: Where; replaced where it exists, so that whoever still writes to the old one cannot
            reach this one.
        fingerprint: Tells jobs apart; see `fingerprint_of`.
        reached: How far the job is already; None where it begins.
    """

    def __init__(self, path: Path, fingerprint: str, reached: Record | None) -> None:
        draft = path.with_name(f"{path.name}.new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(draft, flags, 0o600)
        self._is_whole = True
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._append(json.dumps(_heading(fingerprint)))
            if reached is not None:
                self.write(reached)
            draft.rename(path)
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._file)

    def write(self, record: Record) -> None:
        """Say how far the job is.

        Of tensors and thresholds only those are needed that are new or changed since the last
        record. A disk without room ends the journal, not the job.
        """
        if self._is_whole:
            with suppress(OSError):
                self._append(record.model_dump_json())
                return
            self._is_whole = False

    def _append(self, text: str) -> None:
        line = _checked(text)
        if os.write(self._file, line) < len(line):
            raise OSError("A line of the journal was cut short.")


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


def read_journal(path: Path, fingerprint: str) -> Record | None:
    """Read how far an attempt that is gone had come.

    Args:
        path: Its journal.
        fingerprint: The job that is to go on.

    Returns:
        All that is known; None where the job has to begin again: there is no journal, it is
        another job's, its machine was started anew since, or its writer still lives.
    """
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lines = file.read().split(b"\n")
    except (FileNotFoundError, BlockingIOError):
        return None
    texts = []
    for line in lines:
        text = line[9:].decode(errors="replace")
        if _checked(text) != line + b"\n":
            break
        texts.append(text)
    if len(texts) < 2 or json.loads(texts[0]) != _heading(fingerprint):
        return None
    tensors: dict[str, TensorEntry] = {}
    thresholds: dict[int, dict[str, list[Threshold]]] = {}
    for text in texts[1:]:
        record = Record.model_validate_json(text)
        tensors |= record.tensors
        for index, found in record.thresholds.items():
            thresholds.setdefault(index, {}).update(found)
    return record.model_copy(update={"tensors": tensors, "thresholds": thresholds})


def _heading(fingerprint: str) -> dict[str, object]:
    return {"format": _FORMAT, "boot": _BOOT_ID.read_text().strip(), "job": fingerprint}


def _checked(text: str) -> bytes:
    data = text.encode()
    return b"%08x %b\n" % (zlib.crc32(data), data)
