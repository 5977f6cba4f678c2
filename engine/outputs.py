"""The artifact's files while they are written: laid out before, kept by the disk after."""

import errno
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from jobs.problems import Problem

_BUFFER_BYTES = 1024**2
_NO_COPY_IN_KERNEL = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}


class Output:
    """One file, written at any place in any order.

    Args:
        path: Where.
        nbytes: Its size. Bytes that are never written are 0.
        on_done: Told when the last holder has let go.
        may_exist: Whether it goes on where it is there already.
    """

    def __init__(
        self, path: Path, nbytes: int, on_done: Callable[["Output"], None], *, may_exist: bool
    ) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = os.open(path, flags | (0 if may_exist else os.O_EXCL), 0o644)
        self._on_done = on_done
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
        """Say that nothing more will be written by one holder."""
        with self._lock:
            self._holders -= 1
            if self._holders:
                return
        self._on_done(self)

    def write(self, values: npt.NDArray[np.generic], offset: int) -> None:
        """Write all of an array's bytes at an offset."""
        view = values.reshape(-1).view(np.uint8).data
        while view.nbytes:
            written = os.pwrite(self._file, view, offset)
            view, offset = view[written:], offset + written

    def copy(self, source: int, start: int, offset: int, nbytes: int) -> None:
        """Copy bytes of another file, in the kernel where it can.

        Args:
            source: Descriptor of that file.
            start: Where in it.
            offset: Where to.
            nbytes: How many.

        Raises:
            Problem: `invalid_checkpoint`: that file ended early.
        """
        while nbytes:
            copied = self._copy_some(source, start, offset, nbytes)
            if copied == 0:
                raise Problem("invalid_checkpoint", f"A file ended at byte {start}.")
            start, offset, nbytes = start + copied, offset + copied, nbytes - copied

    def sync_and_close(self) -> None:
        """Wait until the disk keeps it, and close it."""
        try:
            os.fsync(self._file)
        finally:
            self.close()

    def close(self) -> None:
        """Close it, as it is."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                os.close(self._file)

    def _copy_some(self, source: int, start: int, offset: int, nbytes: int) -> int:
        try:
            return os.copy_file_range(source, self._file, nbytes, start, offset)
        except OSError as error:
            if error.errno not in _NO_COPY_IN_KERNEL:
                raise
        block = os.pread(source, min(nbytes, _BUFFER_BYTES), start)
        return os.pwrite(self._file, block, offset)


class Outputs:
    """The files of an artifact; a context that ends when the disk keeps all of them.

    A thread of its own waits for the disk, so that nobody who computes does.

    Args:
        folder: Where they go.
        is_resumed: Whether some may be there already, as far as an attempt before wrote them.
    """

    def __init__(self, folder: Path, *, is_resumed: bool) -> None:
        self._folder = folder
        self._is_resumed = is_resumed
        self._disk = ThreadPoolExecutor(1, "engine-disk")
        self._open: list[Output] = []
        self._kept: list[Future[None]] = []

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
        output = Output(self._folder / name, nbytes, self._keep, may_exist=self._is_resumed)
        self._open.append(output)
        return output

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._disk.shutdown(wait=True, cancel_futures=error is not None)
        for output in self._open:
            output.close()
        for kept in self._kept:
            if error is None:
                kept.result()

    def _keep(self, output: Output) -> None:
        self._kept.append(self._disk.submit(output.sync_and_close))
