"""A service to attack, and a look at what it keeps."""

import gc
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from flask.testing import FlaskClient

from jobs.settings import Settings
from service import create_app


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def client(data_dir: Path, redis_url: str) -> Iterator[FlaskClient]:
    """A service with small limits."""
    app = create_app(
        Settings(data_dir=data_dir, redis_url=redis_url, max_upload="64MiB", max_extracted="8MiB")
    )
    yield app.test_client()
    app.extensions["modelpress"].tenants.redis.close()
    app.extensions["modelpress"].celery.close()


@pytest.fixture
def kept(data_dir: Path):
    """Gives every path that the service keeps."""
    return lambda: {str(path.relative_to(data_dir)) for path in data_dir.rglob("*")}


@pytest.fixture(autouse=True)
def bounded(request: pytest.FixtureRequest) -> Iterator[None]:
    """See that whatever a file says, it takes under a second, under 200 MB, and leaves no process.

    The second is of the processor, which does not pass faster where a machine is busy, and what
    other tests have left in memory is not for the service to sweep.
    """
    for name in {"client", "kept"} & set(request.fixturenames):
        request.getfixturevalue(name)
    # The kernel forgets the peak so far.
    Path("/proc/self/clear_refs").write_text("5")
    resident_bytes, started = psutil.Process().memory_info().rss, time.process_time()
    children = {child.pid for child in psutil.Process().children(recursive=True)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    gc.freeze()
    yield
    seconds = time.process_time() - started
    gc.unfreeze()
    peak_bytes = _peak_bytes()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert seconds < 1
    assert peak_bytes - resident_bytes < 200 * 10**6
    assert {child.pid for child in psutil.Process().children(recursive=True)} == children
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


def _peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024
