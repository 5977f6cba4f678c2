"""The artifact's files while they are written, laid out before."""

import errno
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from engine.write_back import begin_write_back
from jobs.problems import Problem


class Output:
    """One file, written at any place in any order.

    Args:
        path: Where.
        nbytes: Its size. Bytes that are never written are 0.
        may_exist: Whether it goes on where it is there already.
        on_complete: Told the descriptor, which it closes, when the last holder has let go.
    """

    def __init__(
        self, path: Path, nbytes: int, *, may_exist: bool, on_complete: Callable[[int], object]
    ) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = os.open(path, flags | (0 if may_exist else os.O_EXCL), 0o644)
        self._on_complete = on_complete
        self._holders = 1
        self._lock = threading.Lock()
        self._is_closed = False
        try:
            os.posix_fallocate(self._file, 0, nbytes)
        except OSError as error:
            # What was found of the room is given back at once: others are at work on the same disk.
            os.ftruncate(self._file, 0)
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
        """Say that nothing more will be written by one holder."""
        with self._lock:
            self._holders -= 1
            if self._holders:
                return
            self._is_closed = True
        self._on_complete(self._file)

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
        writes_back: Whether the disk begins with each file when that is complete.
    """

    def __init__(self, folder: Path, *, is_resumed: bool, writes_back: bool) -> None:
        self._folder = folder
        self._is_resumed = is_resumed
        self._made: list[Output] = []
        # A thread of its own, because a disk that is busy takes no more for a while.
        self._disk = ThreadPoolExecutor(1, "engine-disk") if writes_back else None

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
        output = Output(
            self._folder / name, nbytes, may_exist=self._is_resumed, on_complete=self._complete
        )
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
        if self._disk is not None:
            self._disk.shutdown(wait=False)

    def _complete(self, file: int) -> None:
        if self._disk is None:
            os.close(file)
        else:
            self._disk.submit(begin_write_back, file)
