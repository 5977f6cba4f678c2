import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.queue import make_celery, ring
from jobs.settings import Settings
from jobs.store import connect
from worker.watchdog import Watchdog

QUEUE = "watched"
# A process without a consumer: as idle as one that takes nothing.
IDLE = """
import sys, time
from jobs.store import connect
from worker.watchdog import Watchdog
Watchdog(connect(sys.argv[1]), "watched", stall_seconds=0.5).start()
time.sleep(30)
"""


@pytest.fixture
def doorbell(redis_url):
    celery = make_celery(Settings(redis_url=redis_url, queue=QUEUE))
    ring(celery, "default", "job_" + "0" * 32)
    celery.close()


def test_a_consumer_that_lets_doorbells_wait_is_ended(redis_url, doorbell):
    ended = subprocess.run(
        [sys.executable, "-c", IDLE, redis_url],
        cwd=Path(__file__).parents[2],
        check=False,
        timeout=25,
    )

    assert ended.returncode == 1


def test_a_consumer_for_which_nothing_waits_is_left_alone(redis_url, monkeypatch, wait_until):
    looks = []
    monkeypatch.setattr(os, "_exit", lambda _: looks.append("ended"))
    monkeypatch.setattr("worker.watchdog._LOOK_SECONDS", 0.01)
    redis = connect(redis_url)
    watchdog = Watchdog(redis, QUEUE, stall_seconds=0)
    look = watchdog._doorbells_wait
    monkeypatch.setattr(watchdog, "_doorbells_wait", lambda: looks.append("look") or look())

    watchdog.start()
    wait_until(lambda: len(looks) > 5, "some looks")
    watchdog.stop()
    redis.close()

    assert set(looks) == {"look"}
