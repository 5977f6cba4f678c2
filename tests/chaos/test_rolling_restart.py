"""New versions are rolled out under load: nothing accepted is lost, no attempt is counted."""

import os
import signal
import tempfile
import threading
import time
from pathlib import Path

import httpx
import pytest

from benchmarks.chaos.materials import RECIPES, Materials
from benchmarks.chaos.stack import running, wait_until_ready
from modelpress import Client
from modelpress.backoff import Backoff
from modelpress.errors import ModelpressError

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(300)]

WORKERS = 2
CLIENTS = 4
PATIENT = Backoff(attempts=20, first_seconds=0.1, cap_seconds=1.0)


@pytest.fixture
def stack():
    # A socket's path is limited to about 100 bytes.
    with (
        tempfile.TemporaryDirectory(prefix="modelpress-roll-", dir="/tmp") as name,
        running(Path(name), WORKERS, seed=1) as stack,
    ):
        yield stack


class Submitters:
    """Clients that submit jobs and wait for them until told to stop."""

    def __init__(self, stack, folder):
        self.ended, self.wrong = [], []
        self._stop = threading.Event()
        self._stack = stack
        self._model = Materials(folder / "models", seed=1).model("6 MB")
        self._threads = [threading.Thread(target=self._submit) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _submit(self):
        with Client(self._stack.url, timeout=30, backoff=PATIENT) as client:
            model = client.upload_model(self._model).id
            while not self._stop.is_set():
                try:
                    job = client.submit(model, RECIPES["50 %, w8a16"], use_cache=False)
                    self.ended.append(client.wait(job.id, timeout=60))
                except ModelpressError as error:
                    self.wrong.append(error)

    def wait_for_more(self, count):
        wanted, deadline = len(self.ended) + count, time.monotonic() + 60
        while len(self.ended) < wanted:
            assert time.monotonic() < deadline, self.wrong
            time.sleep(0.05)

    def stop(self):
        self._stop.set()
        for thread in self._threads:
            thread.join()


class Asker:
    """A client that never asks twice, and keeps what became of each request."""

    def __init__(self, url):
        self.refused, self.cut, self.answered = 0, [], 0
        self._url = url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def _ask(self):
        kept = httpx.Client(base_url=self._url, timeout=30)
        while not self._stop.wait(0.01):
            for get in (kept.get, self._get_once):
                try:
                    status = get("/jobs?limit=1").status_code
                except httpx.ConnectError:
                    self.refused += 1
                except httpx.HTTPError as error:
                    self.cut.append(repr(error))
                else:
                    if status != 200:
                        self.cut.append(str(status))
                    self.answered += 1
        kept.close()

    def _get_once(self, path):
        return httpx.get(self._url + path, timeout=30)

    def wait_for_more(self, count):
        wanted, deadline = self.answered + count, time.monotonic() + 60
        while self.answered < wanted:
            assert time.monotonic() < deadline, self.cut
            time.sleep(0.01)

    def stop(self):
        self._stop.set()
        self._thread.join()


def restart(program, stack):
    """End a program politely; it is started again."""
    before = program.pid
    os.kill(before, signal.SIGTERM)
    deadline = time.monotonic() + 60
    while program.pid == before:
        assert time.monotonic() < deadline, f"{program.name} did not end"
        time.sleep(0.02)
    wait_until_ready(stack)


def test_a_rolling_restart_loses_no_job_and_counts_no_attempt(stack, tmp_path):
    submitters = Submitters(stack, tmp_path)
    try:
        submitters.wait_for_more(CLIENTS)
        for worker in stack.workers:
            restart(worker, stack)
            submitters.wait_for_more(CLIENTS)
        restart(stack.service, stack)
        submitters.wait_for_more(CLIENTS)
    finally:
        submitters.stop()

    assert submitters.wrong == []
    assert {job.state for job in submitters.ended} == {"succeeded"}
    # Whoever was at work when its worker was told to end has a second row, and one counted attempt.
    assert {job.raw["attempt"] for job in submitters.ended} == {1}
    with Client(stack.url) as client:
        known = {job.id: job.state for job in client.jobs(page_size=200)}
    assert set(known.values()) == {"succeeded"}
    assert {job.id for job in submitters.ended} <= set(known)


def test_a_service_that_is_reloaded_refuses_and_cuts_no_request(stack):
    asker = Asker(stack.url)
    try:
        for _ in range(3):
            asker.wait_for_more(20)
            served = children(stack.service.pid)
            os.kill(stack.service.pid, signal.SIGHUP)
            deadline = time.monotonic() + 60
            while children(stack.service.pid) & served:
                assert time.monotonic() < deadline, "the old process did not end"
                time.sleep(0.02)
    finally:
        asker.stop()

    assert (asker.refused, asker.cut) == (0, [])


def test_a_service_that_is_told_to_end_answers_what_it_has_accepted(stack):
    asker = Asker(stack.url)
    try:
        for _ in range(3):
            asker.wait_for_more(20)
            restart(stack.service, stack)
        asker.wait_for_more(20)
    finally:
        asker.stop()

    assert asker.cut == []


def children(pid):
    return set(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
