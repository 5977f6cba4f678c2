"""wrk's measurement of one address, by several clients at once."""

import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

import httpx

from benchmarks.machine import find_program
from benchmarks.nginx import Nginx

_MILLISECONDS = {"us": 0.001, "ms": 1.0, "s": 1000.0}


@dataclass(frozen=True)
class Polls:
    """What wrk saw.

    Attributes:
        what: The request.
        clients: How many connections sent it, each as soon as it had its answer.
        per_second: Answers.
        p50_ms: Half of the answers took no longer.
        p99_ms: 99 of 100 took no longer.
    """

    what: str
    clients: int
    per_second: float
    p50_ms: float
    p99_ms: float


def poll(
    url: str, job_id: str, nginx: Nginx | None, clients: Iterable[int], seconds: int
) -> list[Polls]:
    """Load the service with polls, and its peers with the same.

    Args:
        url: The service.
        job_id: The job that is polled.
        nginx: It serves the same bytes, where it is installed.
        clients: How many at once, in turn.
        seconds: How long each takes.

    Returns:
        One entry for each request and number of clients; none where wrk is not installed.

    Raises:
        RuntimeError: Something answered with an error.
    """
    address = f"{url}/jobs/{job_id}"
    answer = httpx.get(address).raise_for_status()
    requests = [
        ("GET /jobs/{id}", address, {}),
        ("… If-None-Match: 304", address, {"If-None-Match": answer.headers["ETag"]}),
        ("GET /livez", f"{url}/livez", {}),
    ]
    if nginx is not None:
        (nginx.root / "job.json").write_bytes(answer.content)
        requests.append(("nginx, the same bytes", f"{nginx.url}/job.json", {}))
    program = find_program("wrk")
    if program is None:
        return []
    return [
        _load(program, what, where, headers, number, seconds)
        for what, where, headers in requests
        for number in clients
    ]


def _load(
    program: str, what: str, url: str, headers: dict[str, str], clients: int, seconds: int
) -> Polls:
    command = [program, "-t1", f"-c{clients}", f"-d{seconds}s", "--latency", url]
    for name, value in headers.items():
        command += ["-H", f"{name}: {value}"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    # wrk tells of answers that are neither 2xx nor 3xx, and of connections that broke.
    if "Non-2xx" in said or "Socket errors" in said:
        raise RuntimeError(f"{what}, {clients} clients:\n{said}")
    [rate] = re.findall(r"Requests/sec:\s+([\d.]+)", said)
    return Polls(what, clients, float(rate), _percentile(said, 50), _percentile(said, 99))


def _percentile(said: str, percent: int) -> float:
    [(number, unit)] = re.findall(rf"{percent}%\s+([\d.]+)(us|ms|s)\n", said)
    return float(number) * _MILLISECONDS[unit]
