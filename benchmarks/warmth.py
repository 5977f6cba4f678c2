"""The same state of the machine before everything that is measured.

On a virtual machine that gives free memory back to its host, whatever fills it again waits for
each page: a copy that comes first takes five times as long as one that follows another.
"""

import os
import shutil
import subprocess
import time
from pathlib import Path

#: Where a kernel counts how often it has given free memory back. It does so every two seconds while
#: memory becomes free, so right after one time there is a while in which it does not.
_PASSES = Path("/sys/module/page_reporting/parameters/passes")
_MOST_SECONDS_BETWEEN_PASSES = 8
_MOST_COPIES = 4
#: Warm copies differ by less, cold ones by more.
_TOLERANCE = 1.4


class Warmth:
    """Knows what a copy takes when free memory is at hand.

    Args:
        model: The folder that is copied; others that are restored are equally large.
        scratch: A folder that does not exist, on the disk that is measured.
    """

    def __init__(self, model: Path, scratch: Path) -> None:
        self._scratch = scratch
        self._cpu_seconds = float("inf")
        for _ in range(_MOST_COPIES):
            self._cpu_seconds = min(self._cpu_seconds, self._copy(model))
            shutil.rmtree(scratch)

    def restore(self, model: Path) -> None:
        """Bring a model into the page cache, free memory to hand, and leave nothing to write."""
        for copies in range(1, _MOST_COPIES + 1):
            taken = self._copy(model)
            self._cpu_seconds = min(self._cpu_seconds, taken)
            if taken <= _TOLERANCE * self._cpu_seconds or copies == _MOST_COPIES:
                break
            shutil.rmtree(self._scratch)
        os.sync()
        _wait_for_a_pass()
        shutil.rmtree(self._scratch)

    def _copy(self, model: Path) -> float:
        os.sync()
        before = os.times()
        subprocess.run(["cp", "-r", model, self._scratch], check=True)
        after = os.times()
        # Not wall clock, in which others on the machine would show as well.
        return after.children_system - before.children_system


def _wait_for_a_pass() -> None:
    if not _PASSES.exists():
        return
    seen, began = _PASSES.read_text(), time.monotonic()
    while _PASSES.read_text() == seen and time.monotonic() - began < _MOST_SECONDS_BETWEEN_PASSES:
        time.sleep(0.005)
