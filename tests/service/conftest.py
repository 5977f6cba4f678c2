"""The service, in the test's process and behind a real gunicorn."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import blake3
import httpx
import pytest
from flask import Flask
from flask.testing import FlaskClient

from jobs.blobs import BlobStore, now_ms
from jobs.equal_jobs import remember
from jobs.job import Artifact, ArtifactFile, JobResult
from jobs.keys import SCOPES, Key, KeyStore, Scope
from jobs.settings import Settings
from jobs.store import JobStore
from jobs.tenants import DEFAULT_TENANT, Tenants
from service import create_app
from service.parts import EXTENSION, Parts


def safetensors(shapes: dict[str, tuple[int, ...]] | None = None, fill: bytes = b"\1") -> bytes:
    """A small checkpoint in float32."""
    entries, end = {}, 0
    for name, shape in (shapes or {"fc.weight": (4, 8), "fc.bias": (4,)}).items():
        size = 4
        for dimension in shape:
            size *= dimension
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    header = json.dumps(entries).encode()
    return len(header).to_bytes(8, "little") + header + fill * end


@pytest.fixture
def settings(tmp_path: Path, redis_url: str) -> Settings:
    return Settings(data_dir=tmp_path / "data", redis_url=redis_url, port=0, reap_seconds=0.5)


@pytest.fixture
def app(settings: Settings) -> Iterator[Flask]:
    app = create_app(settings)
    yield app
    parts: Parts = app.extensions[EXTENSION]
    parts.room.close()
    parts.tenants.redis.close()
    parts.celery.close()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def tenants(app: Flask) -> Tenants:
    return app.extensions[EXTENSION].tenants


@pytest.fixture
def store(tenants: Tenants) -> JobStore:
    return tenants.stores(DEFAULT_TENANT).jobs


@pytest.fixture
def blobs(tenants: Tenants) -> BlobStore:
    return tenants.stores(DEFAULT_TENANT).blobs


@pytest.fixture
def keys(app: Flask) -> KeyStore:
    return app.extensions[EXTENSION].keys


class Asking(FlaskClient):
    """A client that sends a key.

    Attributes:
        text: The key.
        key: What is known about it.
    """

    text: str
    key: Key

    def open(self, *args, **kwargs):
        kwargs["headers"] = {**kwargs.get("headers", {}), "Authorization": f"Bearer {self.text}"}
        return super().open(*args, **kwargs)


@pytest.fixture
def ask(app: Flask, keys: KeyStore):
    """Makes a key of a tenant with some scopes, and a client that sends it."""

    def make(tenant: str, *scopes: Scope) -> Asking:
        client = Asking(app, app.response_class, use_cookies=False)
        client.text, client.key = keys.create(tenant, scopes, "test")
        return client

    return make


@pytest.fixture
def checkpoint() -> bytes:
    """A small model."""
    return safetensors()


@pytest.fixture
def make_checkpoint():
    """Makes a small model of given shapes."""
    return safetensors


@pytest.fixture
def model_id(client: FlaskClient, checkpoint: bytes) -> str:
    """The id of an uploaded model."""
    return client.post("/models", data=checkpoint).json["id"]


@pytest.fixture
def job_id(client: FlaskClient, model_id: str, recipe: dict[str, object]) -> str:
    """The id of a queued job."""
    return client.post("/jobs", json={"model": model_id, "spec": recipe}).json["id"]


@pytest.fixture
def finish(store: JobStore, blobs: BlobStore):
    """Ends a job as a worker would, with files as its artifact or with a failure."""
    return partial(_finish, store, blobs)


def _finish(store, blobs, job_id, files=None, failure=None, report=None):
    token = store.claim(job_id, "tester").token
    folder = blobs.job_folder(job_id) / f"artifact-{token}"
    folder.mkdir()
    listed = []
    for path, content in sorted((files or {}).items()):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
        digest = blake3.blake3(content).hexdigest()
        listed.append(ArtifactFile(path=path, bytes=len(content), blake3=digest))
    artifact = Artifact(
        bytes=sum(file.bytes for file in listed), digest="blake3:" + "ab" * 32, files=listed
    )
    result = JobResult(
        id=job_id,
        state="failed" if failure else "succeeded",
        attempt=1,
        artifact_folder=None if failure else folder.name,
        artifact=None if failure else artifact,
        failure=failure.to_dict() if failure else None,
        finished_ms=now_ms(),
    )
    if report:
        blobs.write_report(job_id, report)
    assert blobs.publish_result(result)
    assert store.finish(result, token) == "finished"
    if not failure:
        remember(blobs, blobs.read_spec(job_id))


@pytest.fixture(scope="session")
def report() -> dict[str, object]:
    """The report of a job whose artifact has half the bytes of its model."""
    return json.loads((Path(__file__).parents[1] / "modelpress" / "report.json").read_text())


@pytest.fixture
def recipe() -> dict[str, object]:
    return {"steps": [{"op": "quantize", "scheme": "w8a16"}]}


class Live:
    """A service behind gunicorn.

    Attributes:
        data: Its data folder.
        tenant: The default tenant's folder in it.
        process: gunicorn's arbiter.
        url: Where it listens.
        port: The same, for sockets.
    """

    def __init__(self, data: Path, redis_url: str, wait_until, **settings: str) -> None:
        self.data = data
        self.tenant = data / "tenants" / DEFAULT_TENANT
        environment = {
            "PATH": os.environ["PATH"],
            "DATA_DIR": str(data),
            "REDIS_URL": redis_url,
            "PORT": "0",
            "SERVICE_THREADS": "8",
            "MAX_LONG_POLLS": "3",
            "REAP_SECONDS": "0.5",
            **settings,
        }
        self._log = data.with_suffix(".log").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "service"],
            env=environment,
            cwd=Path(__file__).parents[2],
            stderr=self._log,
        )
        file = data / "service.url"
        wait_until(file.exists, "the service to listen")
        self.url = file.read_text().strip()
        self.port = int(self.url.rpartition(":")[2])
        wait_until(lambda: httpx.get(f"{self.url}/livez").status_code == 200, "an answer")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=60)
        self._log.close()

    def worker_pid(self) -> int:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return int(children.split()[0])


@pytest.fixture(scope="module")
def live(tmp_path_factory, redis_server: str, wait_until) -> Iterator[Live]:
    """A service that the tests of a file share; each finds it with an empty Redis.

    Those of other files share its Redis, to which it would bring back what is on its disk.
    """
    service = Live(tmp_path_factory.mktemp("live") / "data", redis_server, wait_until)
    yield service
    service.stop()


@pytest.fixture(scope="module")
def crowded(tmp_path_factory, redis_server: str, wait_until) -> Iterator[Live]:
    """A service with four threads, that the tests of a file share."""
    data = tmp_path_factory.mktemp("crowded") / "data"
    service = Live(data, redis_server, wait_until, SERVICE_THREADS="4", MAX_LONG_POLLS="200")
    yield service
    service.stop()


@pytest.fixture(scope="session")
def locked_live(tmp_path_factory, redis_server: str, wait_until) -> Iterator[tuple[Live, str]]:
    """A service that asks for keys, which may be filled with anything, and a key for all of it."""
    data = tmp_path_factory.mktemp("locked") / "data"
    text, _ = KeyStore(data).create(DEFAULT_TENANT, SCOPES, "test")
    service = Live(data, f"{redis_server}?db=2", wait_until)
    yield service, text
    service.stop()


@pytest.fixture
def make_live(redis_url: str, wait_until):
    """Starts a service of the test's own in a folder, with settings."""
    started = []

    def make(data: Path, **settings: str) -> Live:
        started.append(Live(data, redis_url, wait_until, **settings))
        return started[-1]

    yield make
    for service in started:
        service.stop()


@pytest.fixture
def own_live(tmp_path: Path, make_live) -> Live:
    """A service that the test may break."""
    return make_live(tmp_path / "own")


@pytest.fixture
def http(live: Live) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live.url, timeout=30) as client:
        yield client
