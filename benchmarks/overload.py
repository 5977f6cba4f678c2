"""The service among many clients that want little: `python -m benchmarks.overload`.

The claim: clients that send their heads byte by byte, long polls and event streams cost no threads;
readiness and submits stay fast, with nginx in front and without, also while all who wait are told
something at once.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import psutil
from safetensors.numpy import save

from benchmarks.front import running_front
from benchmarks.idle_clients import IdleClients
from benchmarks.machine import describe_machine, describe_program
from benchmarks.page import p99, publish, read_arguments, table
from benchmarks.processes import peak_bytes
from jobs.settings import Settings
from local.processes import redis_command

ROOT = Path(__file__).parents[1]
SLOW, POLLS, STREAMS = 500, 1000, 1000
_JOBS = 50
_RECIPE = {"steps": [{"op": "quantize", "scheme": "w8a16"}]}
_PACE_SECONDS = 0.02
_GATHER_SECONDS = 90.0

Row = tuple[str, ...]


def main() -> None:
    arguments = read_arguments("Many clients that want little", size="", rounds=300)
    machine = describe_machine("gunicorn", "flask", "redis")
    rows: list[Row] = []
    # A socket's path is limited to about 100 bytes, and nginx's own user has to get there.
    with tempfile.TemporaryDirectory(prefix="modelpress-overload-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        with running_service(folder / "alone") as service:
            rows += measure("the service alone", service.port, service, arguments.rounds)
        if shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin"):
            (folder / "front").mkdir()
            with (
                running_service(folder / "behind") as service,
                running_front(folder / "front", service.port) as front,
            ):
                rows += measure("behind the shipped nginx", front.port, service, arguments.rounds)
    head = ("milliseconds: median, p99, max", "GET /readyz", "POST /jobs")
    note = (
        f"{describe_program('nginx', '-v')}. {arguments.rounds} of each request in each row, one "
        f"every {1000 * _PACE_SECONDS:.0f} ms, each on a connection of its own; clients and "
        f"servers share the machine. The polls and streams are about {_JOBS} jobs."
    )
    publish(arguments.page, "overload", f"{machine} {note}\n\n{table(head, rows)}")


class Service:
    """A service with a Redis and without workers, so that jobs wait.

    Args:
        url: Its root.
        process: gunicorn's arbiter.
    """

    def __init__(self, url: str, process: psutil.Process) -> None:
        self.url = url
        self.port = int(url.rpartition(":")[2])
        self.process = process

    def worker(self) -> psutil.Process:
        """Give the process that serves."""
        return self.process.children()[0]


@contextmanager
def running_service(folder: Path) -> Iterator[Service]:
    """Run Redis and the service for the block.

    Args:
        folder: Where their data goes; made here.

    Yields:
        The service; it answers.
    """
    folder.mkdir()
    settings = Settings(data_dir=folder / "data")
    settings.data_dir.mkdir()
    # An open connection is an open file for whoever holds it.
    environment = os.environ | {"DATA_DIR": str(settings.data_dir), "PORT": "0"}
    with (folder / "log").open("wb") as log:
        commands = [redis_command(settings, folder / "redis"), [sys.executable, "-m", "service"]]
        programs = [
            subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
            for command in commands
        ]
        try:
            address = settings.data_dir / "service.url"
            wait_for(address.exists)
            url = address.read_text().strip()
            wait_for(lambda: _is_ready(url))
            yield Service(url, psutil.Process(programs[1].pid))
        finally:
            for program in reversed(programs):
                program.terminate()
                program.wait(60)


def measure(way: str, port: int, service: Service, rounds: int) -> Iterator[Row]:
    """Measure in a crowd that grows, and yield the rows.

    Args:
        way: What is asked.
        port: Where.
        service: What is behind it.
        rounds: How many requests of each kind.
    """
    url = f"http://127.0.0.1:{port}"
    weight = np.ones((64, 64), np.float32)
    with httpx.Client(base_url=service.url, timeout=60) as http:
        model = http.post("/models", content=save({"weight": weight})).raise_for_status()
        model_id = model.json()["id"]
        job_ids = [_submit(http, model_id) for _ in range(_JOBS)]
    yield (f"{way}: nobody else", *probe(url, model_id, rounds))
    crowd = IdleClients(port, job_ids)
    try:
        crowd.start(slow=SLOW, polls=POLLS)
        wait_for(lambda: crowd.open["slow"] > 0.9 * SLOW and crowd.open["polls"] == POLLS)
        row = probe(url, model_id, rounds)
        yield (f"… with {SLOW:,} slow heads and {POLLS:,} long polls", *row)
        crowd.start(streams=STREAMS)
        wait_for(lambda: crowd.open["streams"] == STREAMS)
        yield (f"… and {STREAMS:,} event streams", *probe(url, model_id, rounds))
        with ThreadPoolExecutor(1) as aside:
            told = aside.submit(_tell_all, crowd, service.url, job_ids)
            row = probe(url, model_id, rounds)
        yield (f"… while all {POLLS + STREAMS:,} are told, in {told.result():.1f} s", *row)
        yield (f"… connections that broke: {crowd.failures.total()}",)
        yield (f"… peak memory of the process: {peak_bytes(service.worker()) / 1e6:.0f} MB",)
    finally:
        crowd.stop()


def probe(url: str, model_id: str, rounds: int) -> tuple[str, str]:
    """Ask as a health check and as a submitter do, at a steady pace.

    Args:
        url: Whom.
        model_id: A model to submit jobs for.
        rounds: How many requests of each kind.

    Returns:
        Median, p99 and maximum of both, in milliseconds.
    """
    ready, submits = [], []
    for _ in range(rounds):
        for seconds, ask in (
            (ready, lambda http: http.get("/readyz").raise_for_status()),
            (submits, lambda http: _submit(http, model_id)),
        ):
            began = time.perf_counter()
            with httpx.Client(base_url=url, timeout=60, verify=False) as http:
                opened = time.perf_counter()
                ask(http)
            # What making a client of httpx takes is not the service's.
            seconds.append(time.perf_counter() - opened)
            time.sleep(max(0.0, _PACE_SECONDS - (time.perf_counter() - began)))
    return _figures(ready), _figures(submits)


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until something is so.

    Raises:
        TimeoutError: It was not for too long.
    """
    deadline = time.monotonic() + _GATHER_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited for {_GATHER_SECONDS:g} s")
        time.sleep(0.05)


def _tell_all(crowd: IdleClients, url: str, job_ids: list[str]) -> float:
    """End every job, and give the seconds until all who waited know."""
    began = time.monotonic()
    with httpx.Client(base_url=url, timeout=60) as http:
        for job_id in job_ids:
            http.post(f"/jobs/{job_id}/cancel").raise_for_status()
    wait_for(lambda: crowd.answers["polls"] >= POLLS and crowd.answers["streams"] >= STREAMS)
    return time.monotonic() - began


def _submit(http: httpx.Client, model_id: str) -> str:
    headers = {"Cache-Control": "no-cache"}
    answer = http.post("/jobs", json={"model": model_id, "spec": _RECIPE}, headers=headers)
    return str(answer.raise_for_status().json()["id"])


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).is_success
    except httpx.HTTPError:
        return False


def _figures(seconds: list[float]) -> str:
    milliseconds = [1000 * one for one in seconds]
    middle, most = statistics.median(milliseconds), max(milliseconds)
    return f"{middle:.1f}, {p99(milliseconds):.1f}, {most:.1f}"


if __name__ == "__main__":
    main()
