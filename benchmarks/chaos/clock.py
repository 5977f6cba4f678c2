"""A clock that can be set for one program and leaves the machine's alone: libfaketime's."""

from pathlib import Path

import psutil

_HOUR_SECONDS = 3600
#: Where Debian and Ubuntu put it, whatever the processor.
_LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
#: How long the program may go by what the clock said before.
_LAG_SECONDS = 1


class Clock:
    """The wall clock of a program that is started with its environment.

    What counts seconds from no particular moment goes on as ever, as it does where a person or a
    time server sets a clock. Redis can be such a program; Python's sleep fails under libfaketime.

    Args:
        folder: Where its setting is kept.

    Attributes:
        is_settable: Whether libfaketime is installed; without it the program has the machine's.
    """

    is_settable = bool(_LIBRARIES)

    def __init__(self, folder: Path) -> None:
        self._setting = folder / "clock"
        self._write(0)

    @property
    def environment(self) -> dict[str, str]:
        """What a program is started with."""
        if not _LIBRARIES:
            return {}
        return {
            "LD_PRELOAD": str(_LIBRARIES[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self._setting),
            "FAKETIME_CACHE_DURATION": str(_LAG_SECONDS),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, hours: int) -> None:
        """Set it.

        Args:
            hours: How much later than the machine's it is.

        Raises:
            FileNotFoundError: libfaketime is not installed.
        """
        if not _LIBRARIES:
            raise FileNotFoundError("libfaketime is missing: apt-get install libfaketime")
        self._write(hours)

    def clean(self) -> None:
        """Remove the shared memory that a killed program kept it in."""
        for path in Path("/dev/shm").glob("*faketime_*"):
            if not psutil.pid_exists(int(path.name.rpartition("_")[2])):
                path.unlink(missing_ok=True)

    def _write(self, hours: int) -> None:
        draft = self._setting.with_suffix(".tmp")
        draft.write_text(f"{hours * _HOUR_SECONDS:+d}\n")
        draft.replace(self._setting)


def undo(moment: float, near: float) -> float:
    """Give when something was by the machine's own clock.

    Args:
        moment: When it was by a clock that is some whole hours off, in seconds since the epoch.
        near: A moment by the machine's clock, less than half an hour from it.
    """
    return moment - _HOUR_SECONDS * round((moment - near) / _HOUR_SECONDS)
