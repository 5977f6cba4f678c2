"""The resident memory of this process, and how to have less of it."""

import ctypes
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

_UNNEEDED = ("scipy", "sklearn")
#: `MADV_DONTNEED` of sys/mman.h.
_DONT_NEED = 4
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \d+\s*(\S.*)?")
#: Setting the peak back to the level of now (Documentation/filesystems/proc.rst).
_RESET_PEAK = "5"


class PeakMeter:
    """Tells resident peaks one after the other, and the largest of all.

    Attributes:
        most_bytes: The largest peak, since the process began.
    """

    most_bytes: int

    def __init__(self) -> None:
        self.most_bytes = _status("VmHWM")
        self._reset()

    def take(self) -> int:
        """Give the peak since the last time, where the kernel tells it; else since the start."""
        peak = _status("VmHWM")
        self.most_bytes = max(self.most_bytes, peak)
        self._reset()
        return peak

    def _reset(self) -> None:
        # A kernel that does not let it keeps the largest peak, which is then everybody's.
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text(_RESET_PEAK)


def level_bytes() -> int:
    """Give the resident memory of this process as it is now."""
    return _status("VmRSS")


def anonymous_bytes() -> int:
    """Give what of the resident memory is no file's."""
    return _status("RssAnon")


def free_bytes() -> int:
    """Give how much memory the machine could still hand out."""
    return _field("/proc/meminfo", "MemAvailable")


def writable_bytes() -> int:
    """Give how much memory this process may write to, touched or not, as RLIMIT_DATA counts it."""
    return _status("VmData")


def leave_out_libraries() -> None:
    """Have no library import others that running a model needs nothing of, where they are there.

    Of these, transformers takes losses and the scores of a way to generate text; with what they
    import in turn they are 40 MB.
    """
    loaded: dict[str, Any] = sys.modules
    for name in _UNNEEDED:
        # What Python reads as that there is none.
        loaded.setdefault(name, None)


def let_go_of_libraries() -> None:
    """Let the kernel take back pages of libraries; those that are used again come from its cache.

    Starting torch and transformers touches far more of their files than running a model does.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for start, length in _clean_library_pages():
        libc.madvise(start, length, _DONT_NEED)


def _clean_library_pages() -> list[tuple[int, int]]:
    """Give where files are mapped that nobody may write and none of whose pages was changed."""
    found = []
    place: tuple[int, int] | None = None
    with suppress(OSError):
        for line in Path("/proc/self/smaps").read_text(errors="replace").splitlines():
            match = _MAPPING.fullmatch(line)
            if match is not None:
                start, end = int(match[1], 16), int(match[2], 16)
                is_library = "w" not in match[3] and ".so" in os.path.basename(match[4] or "")
                place = (start, end - start) if is_library else None
            # The linker's own pages are read-only too, but changed, and would be lost.
            elif line.startswith("Anonymous:") and place is not None and line.split()[1] == "0":
                found.append(place)
    return found


def _status(name: str) -> int:
    return _field("/proc/self/status", name)


def _field(path: str, name: str) -> int:
    with open(path, encoding="ascii", errors="replace") as lines:
        for line in lines:
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    return 0
