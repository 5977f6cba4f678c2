"""How far a data set is answered, on disk, so that after a kill the next attempt goes on there.

A text file whose first line says what is answered and every other what a window of rows came to;
each begins with its own checksum, so one that was cut short does not count. Nothing is forced to
the disk: what a killed process wrote is still in the kernel's page cache, its answers alike. So a
journal counts only on the boot that wrote it, and while nobody else holds it locked.
"""

import errno
import fcntl
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from shutil import rmtree
from types import TracebackType
from typing import Self

from pydantic import BaseModel

from evaluation.batch_sizes import SizerState

_FORMAT = 1
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NAME = "journal"


class Written(BaseModel, extra="forbid"):
    """How far a file of answers is.

    Attributes:
        nbytes: How much of the file counts.
        group: Rows of the group that was completed last by these rows; 0 where none was.
        held_bytes: Of the answers that came after the last group, in a file of their own.
    """

    nbytes: int
    group: int = 0
    held_bytes: int = 0


class Reached(BaseModel, extra="forbid"):
    """How far a data set is answered, after one of its windows.

    Attributes:
        rows: Rows so far.
        tokens: Tokens so far; None where rows have none.
        batches: Batches so far.
        peak_bytes: The resident peak so far.
        sizer: What was learned of how many rows fit.
        names: What the window's rows are called; None where they have no names.
        written: Where their answers are.
    """

    rows: int
    tokens: int | None
    batches: int
    peak_bytes: int
    sizer: SizerState
    names: list[str] | None
    written: Written


class AnswerJournal:
    """A journal that is being written; a context that ends with it closed and unlocked.

    Args:
        folder: Where; made where it is missing. It has the held answers too.
        job: Tells what is answered from everything else.
        answers: The file of answers, in a folder of its own.

    Attributes:
        reached: How far attempts before this one had come. None where all has to begin: then the
            answers' folder and this one were emptied.
        held: The file of held answers.
    """

    reached: Reached | None
    held: Path

    def __init__(self, folder: Path, job: str, answers: Path) -> None:
        self.held = folder / "held"
        self._path = folder / _NAME
        heading = {"format": _FORMAT, "boot": _BOOT_ID.read_text().strip(), "job": job}
        text = json.dumps(heading)
        self._file: int | None = _locked(self._path)
        self._lines_end = 0
        self.reached = None
        for reached in self.windows(text):
            self.reached = reached
        if self.reached is None or not self._is_there(self.reached.written, answers):
            self.reached = None
            self._begin(text, answers)
        elif self._file is not None:
            os.ftruncate(self._file, self._lines_end)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    def windows(self, heading: str | None = None) -> Iterator[Reached]:
        """Read the journal again.

        Args:
            heading: What the first line has to be; None for whatever it is.

        Yields:
            How far it was after each window, in order.
        """
        if self._file is None:
            return
        self._lines_end = 0
        with open(os.dup(self._file), "rb") as lines:
            lines.seek(0)
            texts = self._whole(lines)
            first = next(texts, None)
            if first is None or heading not in (None, first):
                return
            for text in texts:
                yield Reached.model_validate_json(text)

    def write(self, reached: Reached) -> None:
        """Say how far it is. A disk without room ends the journal, not the answers."""
        if self._file is None:
            return
        try:
            _append(self._file, reached.model_dump_json())
        except OSError:
            self._close()

    def _whole(self, lines: Iterable[bytes]) -> Iterator[str]:
        for line in lines:
            text = line[9:-1].decode(errors="replace")
            if line != _checked(text):
                return
            self._lines_end += len(line)
            yield text

    def _is_there(self, written: Written, answers: Path) -> bool:
        return all(
            nbytes == 0 or _size(path) >= nbytes
            for path, nbytes in ((answers, written.nbytes), (self.held, written.held_bytes))
        )

    def _begin(self, heading: str, answers: Path) -> None:
        """Begin with files of its own: whoever still writes to old ones reaches none of these."""
        self._close()
        for folder in (self._path.parent, answers.parent):
            if folder.is_symlink():
                folder.unlink()
            rmtree(folder, ignore_errors=True)
            folder.mkdir()
        try:
            self._file = _opened(self._path, os.O_CREAT | os.O_EXCL)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _append(self._file, heading)
        except OSError:
            self._close()

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _locked(path: Path) -> int | None:
    """Open a journal that nobody writes any more; None where there is none."""
    try:
        file = _opened(path, 0)
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        return None
    return file


def _opened(path: Path, flags: int) -> int:
    return os.open(path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o600)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() and not path.is_symlink() else -1


def _append(file: int, text: str) -> None:
    line = _checked(text)
    if os.write(file, line) < len(line):
        raise OSError(errno.ENOSPC, "A line of the journal was cut short.")


def _checked(text: str) -> bytes:
    data = text.encode()
    return b"%08x %b\n" % (zlib.crc32(data), data)
