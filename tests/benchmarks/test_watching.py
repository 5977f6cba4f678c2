import sys

import pytest

from benchmarks.watching import watch

MEGABYTE = 1024**2


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


def test_memory_from_before_the_work_began_is_not_added_by_it():
    program = """
import time
from benchmarks.stopwatch import Stopwatch
before = bytearray(b"x") * (64 * 1024**2)
stopwatch = Stopwatch()
stopwatch.begin()
during = bytearray(b"x") * (96 * 1024**2)
time.sleep(0.2)
stopwatch.end()
"""

    watched = watch(python(program))

    # Python needs a little itself, and the kernel's counters are some pages behind per thread.
    assert watched.added_anonymous_bytes == pytest.approx(96 * MEGABYTE, abs=4 * MEGABYTE)
    assert watched.anonymous_bytes >= 160 * MEGABYTE
    assert watched.resident_bytes >= watched.anonymous_bytes
    assert 0.2 <= watched.seconds < watched.process_seconds


def test_work_that_begins_again_leaves_out_what_was_before():
    program = """
import time
from benchmarks.stopwatch import Stopwatch
stopwatch = Stopwatch()
stopwatch.begin()
began = time.process_time()
while time.process_time() - began < 0.5: pass
stopwatch.begin()
stopwatch.end()
"""

    watched = watch(python(program))

    assert watched.process_seconds >= 0.5
    assert watched.seconds < 0.5
    assert watched.cpu_seconds < 0.5


def test_the_machine_is_prepared_just_before_the_work(tmp_path):
    begun, worked = tmp_path / "begun", tmp_path / "worked"
    program = f"""
from pathlib import Path
from benchmarks.stopwatch import Stopwatch
Path({str(begun)!r}).touch()
stopwatch = Stopwatch()
stopwatch.begin()
Path({str(worked)!r}).touch()
stopwatch.end()
"""
    seen = []

    watch(python(program), lambda: seen.append((begun.exists(), worked.exists())))

    assert seen == [(True, False)]
    assert worked.exists()


def test_the_machine_is_prepared_before_a_program_that_does_not_tell_when_its_work_begins(tmp_path):
    begun = tmp_path / "begun"
    seen = []

    watch(["touch", begun], lambda: seen.append(begun.exists()), has_stopwatch=False)

    assert seen == [False]
    assert begun.exists()


def test_children_count_in_memory_and_in_cpu_time():
    child = "import time; kept = bytearray(b'x') * (64 * 1024**2); time.sleep(0.3)"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"

    watched = watch(python(program))

    assert watched.anonymous_bytes >= 64 * MEGABYTE
    assert watched.added_anonymous_bytes < 64 * MEGABYTE
    assert watched.cpu_seconds > 0


def test_a_program_that_tells_nothing_is_timed_as_a_whole():
    watched = watch(["true"])

    assert watched.seconds == watched.process_seconds


def test_a_program_that_fails_is_refused_with_what_it_said():
    with pytest.raises(RuntimeError, match="ended with 3:\nthe disk is full"):
        watch(["sh", "-c", "echo the disk is full >&2; exit 3"])


def test_a_program_that_is_killed_is_refused():
    with pytest.raises(RuntimeError, match="ended with -9"):
        watch(["sh", "-c", "kill -9 $$"])
