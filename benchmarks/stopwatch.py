"""What a measured process tells of itself to `benchmarks.watching`: when its work begins and ends.

It runs in the peers' environments too, so it needs the standard library alone.
"""

import json
import os
import time
from pathlib import Path

#: The environment variables with the descriptors to tell it through, and to be told when to begin.
PIPE, GO = "MODELPRESS_STOPWATCH", "MODELPRESS_GO"


class Stopwatch:
    """Times the work proper: what follows the imports, up to the end of saving."""

    def begin(self) -> None:
        """Start, when whoever measures has prepared the machine: imports took time."""
        status = Path("/proc/self/status").read_text()
        [anonymous] = [line.split()[1] for line in status.splitlines() if "RssAnon" in line]
        _tell({"idle_anonymous_bytes": int(anonymous) * 1024})
        if GO in os.environ:
            os.read(int(os.environ[GO]), 1)
        self._cpu_began = _cpu_seconds()
        self._began = time.perf_counter()

    def end(self) -> None:
        """Tell what passed since the beginning: wall clock, and CPU with that of children."""
        seconds = time.perf_counter() - self._began
        _tell({"seconds": seconds, "cpu_seconds": _cpu_seconds() - self._cpu_began})


def _cpu_seconds() -> float:
    return sum(os.times()[:4])


def _tell(message: dict[str, float]) -> None:
    # Standard output, for a person who runs such a script by hand.
    os.write(int(os.environ.get(PIPE, "1")), json.dumps(message).encode() + b"\n")
