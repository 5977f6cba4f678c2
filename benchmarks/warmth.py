"""The same state of the machine before everything that is measured.

On a virtual machine that gives free memory back to its host, whatever fills it again waits for
each page: a copy that comes first takes five times as long as one that follows another.
"""

import os
import shutil
import subprocess
from pathlib import Path

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
        self._cpu_seconds = min(self._copy(model) for _ in range(_MOST_COPIES))

    def restore(self, model: Path) -> None:
        """Bring a model into the page cache, free memory to hand, and leave nothing to write."""
        for _ in range(_MOST_COPIES):
            taken = self._copy(model)
            self._cpu_seconds = min(self._cpu_seconds, taken)
            if taken <= _TOLERANCE * self._cpu_seconds:
                return

    def _copy(self, model: Path) -> float:
        os.sync()
        before = os.times()
        subprocess.run(["cp", "-r", model, self._scratch], check=True)
        after = os.times()
        shutil.rmtree(self._scratch)
        # Not wall clock, in which others on the machine would show as well.
        return after.children_system - before.children_system
