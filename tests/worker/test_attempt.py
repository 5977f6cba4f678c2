import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from jobs.job import Progress
from worker.attempt import Pace, watch
from worker.lease import Lease
from worker.limits import Limits
from worker.runner_process import Runner


class Held:
    """A lease that nobody takes away."""

    verdict = None

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe()

    def fileno(self) -> int:
        return self._reading

    def tell(self, progress) -> None:
        pass

    def close(self) -> None:
        os.close(self._reading)
        os.close(self._writing)


@pytest.fixture
def lease() -> Lease:
    held = Held()
    yield held
    held.close()


@pytest.fixture
def start(tmp_path):
    """Start a program as a runner, in a session of its own, whose end is told as an agent would."""
    started = []

    def act(code: str) -> tuple[Runner, subprocess.Popen]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        reading, writing = os.pipe()
        process = subprocess.Popen(
            [sys.executable, "-c", f"PIPE = {writing}\n{code}"],
            cwd=tmp_path,
            start_new_session=True,
            pass_fds=[writing],
        )
        os.close(writing)

        def tell() -> None:
            theirs.send(json.dumps({"exit": process.wait()}).encode())

        thread = threading.Thread(target=tell)
        thread.start()
        started.append((thread, ours, theirs))
        return Runner(process.pid, reading, ours), process

    yield act
    for thread, ours, theirs in started:
        thread.join()
        ours.close()
        theirs.close()


def limits(folder: Path, **changed) -> Limits:
    roomy = {"runtime_seconds": 60.0, "host_memory_bytes": None, "disk_bytes": 10**9}
    return Limits(**(roomy | changed), work_folder=folder)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os, time; [os.fork() for _ in range(7)]; time.sleep(60)", "processes"),
        ("open('big', 'wb').write(bytes(2 * 10**6)); import time; time.sleep(60)", "bytes"),
        (
            "for i in range(10_002): open(str(i), 'w')\nimport time; time.sleep(60)",
            "bytes",
        ),
    ],
    ids=["too many processes", "too many bytes", "too many files"],
)
def test_a_runner_that_takes_more_than_any_job_needs_is_stopped(start, lease, tmp_path, code, said):
    runner, process = start(code)

    outcome = watch(runner, lease, limits(tmp_path, disk_bytes=10**6), None)

    assert (outcome.kind, outcome.problem.code) == ("failed", "runner_overreached")
    assert said in outcome.problem.detail
    assert process.wait() < 0


def test_a_runner_that_ends_and_leaves_a_child_with_its_pipe_is_not_waited_for(
    start, lease, tmp_path
):
    runner, _ = start("import os, time; os.fork() or time.sleep(1000)")

    outcome = watch(runner, lease, limits(tmp_path), None)

    assert outcome.problem.code == "runner_died"


@pytest.mark.parametrize(
    "said",
    [
        b'{"progress":' + b"[" * 50_000,
        b'{"progress": {"phase": "x", "step": 1, "steps": 1, "done": 1, "unit": "b", "total": 1'
        + b"0" * 400 + b"}}",
        b"\xff\xfe", b"[]", b'{"a": 1, "b": 2}', b'{"problem": 3}', b'{"progress": {}}', b"null",
    ],
)  # fmt: skip
def test_whatever_a_runner_says_its_attempt_ends(start, lease, tmp_path, said):
    (tmp_path / "said").write_bytes(said + b"\n")
    runner, _ = start("import os, time; os.write(PIPE, open('said', 'rb').read()); time.sleep(60)")

    outcome = watch(runner, lease, limits(tmp_path), None)

    assert (outcome.kind, outcome.problem.code) == ("failed", "runner_died")


def at(done, phase="compress"):
    return Progress(phase=phase, step=1, steps=1, done=done, total=100, unit="bytes")


def test_the_eta_is_what_is_left_at_the_recent_pace():
    pace = Pace()

    first = pace.estimate(at(0), now=10.0)
    second = pace.estimate(at(20), now=12.0)

    assert first.eta_seconds is None
    assert second.eta_seconds == 8.0


def test_old_reports_do_not_count():
    pace = Pace()
    for second in range(20):
        pace.estimate(at(second), now=float(second))
    for step in range(10):
        eta = pace.estimate(at(20 + 8 * step), now=20.0 + step).eta_seconds

    assert eta == (100 - 92) / 8


def test_a_new_phase_starts_a_new_estimate():
    pace = Pace()
    pace.estimate(at(0, "measure"), now=0.0)
    pace.estimate(at(90, "measure"), now=1.0)

    assert pace.estimate(at(1, "compress"), now=2.0).eta_seconds is None


def test_a_runner_that_talks_much_is_not_looked_at_for_every_word(lease, start, tmp_path):
    # A look reads the processes of the whole machine, on a processor that the runner wants.
    runner, _ = start(
        "import json, os, time\n"
        "told = {'phase': 'p', 'step': 1, 'steps': 1, 'total': 9, 'unit': 'bytes'}\n"
        "for done in range(200):\n"
        "    os.write(PIPE, json.dumps({'progress': {**told, 'done': done}}).encode() + b'\\n')\n"
        "    time.sleep(0.002)\n"
        "os.write(PIPE, b'{\"done\": true}\\n')\n"
    )
    looks, told, ask = [], [], runner.usage
    runner.usage = lambda: looks.append(1) or ask()
    lease.tell = told.append

    outcome = watch(runner, lease, limits(tmp_path), None)

    assert (outcome.kind, len(told)) == ("done", 200)
    assert 1 <= len(looks) <= 5
