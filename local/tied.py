"""Run a program that ends when its parent does: `python -m local.tied PROGRAM [ARGUMENT]…`.

supervisord stops its programs when it is asked to end, but not when it is killed. A Redis that
outlived it would still write to the data folder when the next one starts. Ending takes a while,
so each program also holds a share of a lock, the file that PROGRAMS_LOCK in the environment names;
it tells the next start when the last of them is gone.
"""

import fcntl
import os
import signal
import sys

from jobs.parent_death import end_with_parent

if __name__ == "__main__":
    end_with_parent(os.getppid(), by=signal.SIGTERM)
    lock = os.open(os.environ["PROGRAMS_LOCK"], os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_SH)
    os.set_inheritable(lock, True)
    os.execvp(sys.argv[1], sys.argv[1:])
