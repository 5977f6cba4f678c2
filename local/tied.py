"""Run a program that ends when its parent does: `python -m local.tied PROGRAM [ARGUMENT]…`.

supervisord stops its programs when it is asked to end, but not when it is killed. A Redis that
outlived it would still write to the data folder when the next one starts.
"""

import os
import signal
import sys

from jobs.parent_death import end_with_parent

if __name__ == "__main__":
    end_with_parent(os.getppid(), by=signal.SIGTERM)
    os.execvp(sys.argv[1], sys.argv[1:])
