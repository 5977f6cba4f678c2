"""A service to attack, and a look at what it keeps."""

from collections.abc import Iterator
from pathlib import Path

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
    app.extensions["modelpress"].store.redis.close()
    app.extensions["modelpress"].celery.close()


@pytest.fixture
def kept(data_dir: Path):
    """Gives every path that the service keeps."""
    return lambda: {str(path.relative_to(data_dir)) for path in data_dir.rglob("*")}
