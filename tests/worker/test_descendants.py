import subprocess
import sys

import psutil

from worker.descendants import descendants

_NESTED = """
import subprocess, sys, threading
def start():
    subprocess.Popen([sys.executable, "-c", "input()"], stdin=sys.stdin).wait()
threads = [threading.Thread(target=start) for _ in range(2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


def test_what_any_thread_of_a_process_started_is_found_and_nothing_else(wait_until):
    command = [sys.executable, "-c", _NESTED]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        wait_until(lambda: len(descendants(process.pid)) == 3, "both children to be there")

        found = descendants(process.pid)

        expected = {c.pid for c in psutil.Process(process.pid).children(recursive=True)}
        assert found.keys() == expected | {process.pid}
        for pid in expected:
            psutil.Process(pid).kill()
    assert descendants(process.pid) == {}
