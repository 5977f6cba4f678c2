"""The artifact's files while they are written, laid out before."""

import errno
import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from jobs.problems import Problem


class Output:
    """One file, written at any place in any order.

    Args:
        path: Where.
        nbytes: Its size. Bytes that are never written are 0.
        may_exist: Whether it goes on where it is there already.
    """

    def __init__(self, path: Path, nbytes: int, *, may_exist: bool) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = os.open(path, flags | (0 if may_exist else os.O_EXCL), 0o644)
        self._holders = 1
        self._lock = threading.Lock()
        self._is_closed = False
        try:
            os.posix_fallocate(self._file, 0, nbytes)
        except OSError as error:
            self.close()
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            raise Problem(
                "storage_full", f"There is no room for {nbytes} bytes of {path.name}."
            ) from error

    def hold(self) -> None:
        """Keep it open until one more has let go."""
        with self._lock:
            self._holders += 1

    def let_go(self) -> None:
        """Say that nothing more will be written by one holder; the last one closes it."""
        with self._lock:
            self._holders -= 1
            if self._holders:
                return
        self.close()

    def write(self, values: npt.NDArray[np.generic], offset: int) -> None:
        """Write all of an array's bytes at an offset."""
        view = values.reshape(-1).view(np.uint8).data
        while view.nbytes:
            written = os.pwrite(self._file, view, offset)
            view, offset = view[written:], offset + written

    def close(self) -> None:
        """Close it, whoever holds it."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                os.close(self._file)


class Outputs:
    """The files of an artifact; a context that closes them.

    Nobody waits for the disk here: whoever publishes an artifact does, while it is verified.

    Args:
        folder: Where they go.
        is_resumed: Whether some may be there already, as far as an attempt before wrote them.
    """

    def __init__(self, folder: Path, *, is_resumed: bool) -> None:
        self._folder = folder
        self._is_resumed = is_resumed
        self._made: list[Output] = []

    def create(self, name: str, nbytes: int) -> Output:
        """Begin a file.

        Args:
            name: Its name.
            nbytes: Its size.

        Returns:
            The file, held once.

        Raises:
            Problem: `storage_full`: there is no room for it.
        """
        output = Output(self._folder / name, nbytes, may_exist=self._is_resumed)
        self._made.append(output)
        return output

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for output in self._made:
            output.close()
