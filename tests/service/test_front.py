"""The shipped front before the real service: what it lets through, and what it keeps off."""

import json
import re
import shutil
import socket
import time

import httpx
import pytest

from benchmarks.front import CONFIGURATION, running_front
from jobs.problems import CATALOGUE
from jobs.settings import Settings

pytestmark = pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")


@pytest.fixture
def settings(live, redis_url):
    """The test's own view of what the live service stores."""
    return Settings(data_dir=live.data, redis_url=redis_url)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("front")
    # nginx's workers are another user where it was started by root.
    for path in (folder, *folder.parents[:2]):
        path.chmod(0o755)
    return folder


@pytest.fixture
def front(live, folder):
    with running_front(folder, live.port) as front:
        yield front


def test_a_model_goes_through_and_comes_back(front, checkpoint):
    answer = httpx.post(f"{front.url}/models", content=checkpoint)

    assert answer.status_code in (200, 201), answer.text
    assert httpx.get(f"{front.url}/models/{answer.json()['id']}").json() == answer.json()


def test_an_upload_is_refused_before_it_has_come(front):
    head = b"POST /models HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999\r\n\r\n"
    with socket.create_connection(("127.0.0.1", front.port), timeout=20) as sock:
        sock.sendall(head)
        answer = sock.recv(65536)

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "too_large"


def test_an_artifact_comes_whole_and_in_ranges(front, job_id, finish):
    content = bytes(range(256)) * 40_000
    finish(job_id, {"model.safetensors": content})
    address = f"{front.url}/jobs/{job_id}/artifact"

    whole = httpx.get(address)
    part = httpx.get(address, headers={"Range": "bytes=10-19"})

    assert whole.content == content
    assert (part.status_code, part.content) == (206, content[10:20])


def test_events_arrive_as_they_happen(front, store, job_id):
    with httpx.stream("GET", f"{front.url}/jobs/{job_id}/events", timeout=20) as answer:
        lines = answer.iter_lines()
        assert any(line == "event: queued" for line in lines)
        store.cancel(job_id)
        assert any(line == "event: cancelled" for line in lines)


def test_slow_heads_do_not_reach_the_service(front):
    slow = [socket.create_connection(("127.0.0.1", front.port), timeout=20) for _ in range(500)]
    for sock in slow:
        sock.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Slow: ")

    started = time.monotonic()
    assert httpx.get(f"{front.url}/livez", timeout=5).status_code == 200
    seconds = time.monotonic() - started

    for sock in slow:
        sock.close()
    assert seconds < 5


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        (b"RUBBISH\r\n\r\n", 400, "malformed_request"),
        (b"GET /" + b"a" * 9300 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414, "address_too_long"),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 9300 + b"\r\n\r\n", 431, "headers_too_large"),
        (
            b"POST /plans HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n",
            413,
            "too_large",
        ),
    ],
)
def test_what_the_front_refuses_is_a_problem_too(front, request_bytes, status, code):
    with socket.create_connection(("127.0.0.1", front.port), timeout=20) as sock:
        sock.sendall(request_bytes)
        answer = sock.recv(65536)
    head, _, body = answer.partition(b"\r\n\r\n")

    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"application/problem+json" in head
    assert json.loads(body)["code"] == code


def test_a_service_that_does_not_answer_is_told_as_one_that_may_come_back(folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        unused = taken.getsockname()[1]
    with running_front(folder, unused) as front:
        answer = httpx.get(f"{front.url}/jobs")

    assert (answer.status_code, answer.json()["code"]) == (503, "service_unavailable")
    assert answer.headers["Retry-After"] == "5"
    assert answer.headers["Content-Type"] == "application/problem+json"


def test_its_problems_are_those_of_the_catalogue():
    found = [
        json.loads(text)
        for text in re.findall(r"return \d+ '(\{.*\})';", CONFIGURATION.read_text())
    ]

    assert len(found) == 5
    for problem in found:
        kind = CATALOGUE[problem["code"]]
        assert (problem["status"], problem["title"]) == (kind.status, kind.title)
        assert problem["retryable"] == kind.retryable
        assert problem["type"] == f"/docs/problems#{problem['code']}"
