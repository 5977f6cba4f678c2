"""What needs sockets: a real gunicorn, and clients that misbehave."""

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import blake3
import httpx
import pytest

from jobs.job import Progress
from jobs.keys import SCOPES, KeyStore
from jobs.problems import Problem
from jobs.settings import Settings
from service.http_worker import HEAD_SECONDS

MIB = 1024**2


def files_under(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def exchange(port: int, *pieces: bytes, close_writing: bool = False) -> bytes:
    """Send bytes as they are and read until the service closes or has answered."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        for piece in pieces:
            sock.sendall(piece)
        if close_writing:
            sock.shutdown(socket.SHUT_WR)
        received = b""
        while data := sock.recv(65536):
            received += data
        return received


def post(path: str, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def problem_of(raw: bytes) -> str:
    return json.loads(raw.partition(b"\r\n\r\n")[2])["code"]


FORM = (
    b'--b\r\nContent-Disposition: form-data; name="model"; filename="m"\r\n\r\n',
    b"\r\n--b--\r\n",
)


@pytest.fixture
def settings(live, redis_url):
    """The test's own view of what the live service stores."""
    return Settings(data_dir=live.data, redis_url=redis_url)


@pytest.mark.parametrize("shape", ["raw", "multipart", "tar"])
def test_a_cut_upload_is_an_error_and_leaves_nothing(live, make_checkpoint, shape):
    before = files_under(live.data)
    model = make_checkpoint({"w": (512, 512)})
    kind = "multipart/form-data; boundary=b" if shape == "multipart" else "application/octet-stream"
    entry = tarfile.TarInfo("model.safetensors")
    entry.size = len(model)
    body = {
        "raw": model,
        "multipart": FORM[0] + model + FORM[1],
        "tar": entry.tobuf() + model + bytes(-len(model) % 512 + 1024),
    }[shape]
    head = post("/models", f"Content-Type: {kind}", f"Content-Length: {len(body)}")

    raw = exchange(live.port, head, body[: len(body) // 2], close_writing=True)

    assert b" 400 " in raw.split(b"\r\n")[0]
    assert problem_of(raw) == "upload_truncated"
    assert files_under(live.data) == before


@pytest.mark.parametrize(
    "body",
    [
        b"64\r\nabc",
        b"zz\r\n",
        b"5\r\nabcdeXX",
        b"5\r\nabcde\r\n",
        b"3\r\nabc\r\n0\r\nbad trailer\r\n\r\n",
    ],
)
def test_a_damaged_chunked_upload_is_an_error_and_leaves_nothing(live, body):
    before = files_under(live.data)

    raw = exchange(
        live.port, post("/datasets", "Transfer-Encoding: chunked"), body, close_writing=True
    )

    assert b" 400 " in raw.split(b"\r\n")[0]
    assert problem_of(raw) == "upload_truncated"
    assert files_under(live.data) == before


def test_a_chunked_upload_is_taken(live, http, checkpoint):
    answer = http.post("/models", content=(checkpoint[i : i + 7] for i in range(0, 999, 7)))

    assert answer.status_code in (200, 201)
    assert answer.json()["id"] == "mdl_" + blake3.blake3(checkpoint).hexdigest()


def test_a_client_may_ask_before_it_sends(live, checkpoint):
    head = post("/models", f"Content-Length: {len(checkpoint)}", "Expect: 100-continue")
    with socket.create_connection(("127.0.0.1", live.port), timeout=20) as sock:
        sock.sendall(head)
        interim = sock.recv(65536)
        sock.sendall(checkpoint)
        final = sock.recv(65536)

    assert interim.startswith(b"HTTP/1.1 100 ")
    assert final.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 201 "))


def test_equal_uploads_at_once_make_one_model(live, http, make_checkpoint):
    models = len(list((live.tenant / "models").iterdir()))
    model = make_checkpoint({"w": (1024, 1024)})

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: http.post("/models", content=model), range(4)))

    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 201]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(list((live.tenant / "models").iterdir())) == models + 1
    assert list((live.tenant / "staging").iterdir()) == []


@pytest.fixture
def artifact(live, http, job_id, finish):
    """A job on the live service whose artifact is 64 MiB."""
    content = hashlib.shake_128(b"artifact").digest(MIB) * 64
    finish(job_id, {"model.safetensors": content})
    return job_id, content


@pytest.mark.parametrize("span", [None, (0, 1), (12345, 50 * MIB), (64 * MIB - 7, 64 * MIB)])
def test_files_and_ranges_are_sent_whole(http, artifact, span):
    job_id, content = artifact
    start, stop = span or (0, len(content))
    headers = {"Range": f"bytes={start}-{stop - 1}"} if span else {}

    answer = http.get(f"/jobs/{job_id}/artifact", headers=headers)

    assert answer.status_code == (206 if span else 200)
    assert answer.content == content[start:stop]


def test_a_client_that_hangs_up_frees_its_thread(live, http, artifact):
    job_id, _ = artifact
    request = f"GET /jobs/{job_id}/artifact HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    for _ in range(16):
        with socket.create_connection(("127.0.0.1", live.port)) as sock:
            sock.sendall(request)
            sock.recv(100)

    assert http.get("/livez").status_code == 200


def test_the_events_of_a_running_job_arrive_as_they_happen(http, store, job_id):
    token = store.claim(job_id, "w").token
    seen = []

    with http.stream("GET", f"/jobs/{job_id}/events") as stream:
        for line in stream.iter_lines():
            if line.startswith("event: "):
                seen.append(line.removeprefix("event: "))
                if seen[-1] == "running":
                    step = Progress(phase="x", step=1, steps=1, done=1, total=2, unit="bytes")
                    store.renew(job_id, token, step)
                if seen[-1] == "progress":
                    store.cancel(job_id)
                    store.release(job_id, token, Problem("drained", "stopped"))

    assert seen == ["queued", "running", "progress", "cancel_requested", "cancelled"]


def test_more_long_polls_than_seats_are_answered_at_once(live, http, store, job_id):
    def poll(_):
        started = time.monotonic()
        headers = {"Prefer": "wait=20", "If-None-Match": '"1"'}
        status = http.get(f"/jobs/{job_id}", headers=headers).status_code
        return status, time.monotonic() - started

    with ThreadPoolExecutor(6) as pool:
        polls = [pool.submit(poll, i) for i in range(6)]
        quick = [next_done(polls, n) for n in (1, 2, 3)]
        assert http.get("/livez").status_code == 200
        store.claim(job_id, "w")
        answers = [p.result() for p in polls]

    assert all(quick)
    assert sorted(status for status, _ in answers) == [200, 200, 200, 304, 304, 304]
    assert all(seconds < 10 for _, seconds in answers)


def next_done(futures, count):
    deadline = time.monotonic() + 10
    while sum(future.done() for future in futures) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return True


def test_a_stop_ends_a_stream_and_removes_the_address(own_live, redis_url, checkpoint, recipe):
    with httpx.Client(base_url=own_live.url, timeout=30) as http:
        model = http.post("/models", content=checkpoint).json()["id"]
        job_id = http.post("/jobs", json={"model": model, "spec": recipe}).json()["id"]
        with http.stream("GET", f"/jobs/{job_id}/events") as stream:
            lines = stream.iter_lines()
            first = [next(lines) for _ in range(4)]
            started = time.monotonic()
            own_live.process.send_signal(signal.SIGTERM)
            rest = list(lines)
    own_live.process.wait(timeout=30)

    assert "event: queued" in first
    assert rest == ["data: " + rest[0].removeprefix("data: "), ""]
    assert time.monotonic() - started < 10
    assert not (own_live.data / "service.url").exists()


def test_what_a_dead_process_left_staged_is_swept(own_live, wait_until):
    staged = own_live.tenant / "staging" / "0123456789abcdef"
    (staged / "files").mkdir(parents=True)
    (staged / "files" / "model.safetensors").write_bytes(b"half")
    (staged / "lock").touch()

    os.kill(own_live.worker_pid(), signal.SIGKILL)

    wait_until(lambda: not staged.exists(), "the new worker to sweep")
    assert httpx.get(f"{own_live.url}/livez").status_code == 200


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414, "address_too_long"),
        (b"GET /livez HTTP/1.1\r\nX: " + b"a" * 9000 + b"\r\n\r\n", 431, "headers_too_large"),
        (b"GET /livez HTTP/1.1\r\n" + b"X: a\r\n" * 101 + b"\r\n", 431, "headers_too_large"),
        (b"RUBBISH\r\n\r\n", 400, "malformed_request"),
        (b"GET /livez HTTP/9.1\r\nHost: localhost\r\n\r\n", 400, "malformed_request"),
        (b"POST /jobs HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400, "malformed_request"),
        (b"GET /livez HTTP/1.1\r\nExpect: more\r\n\r\n", 400, "malformed_request"),
    ],
)
def test_what_is_no_request_gets_a_problem_too(live, request_bytes, status, code):
    answer = exchange(live.port, request_bytes)
    head, _, body = answer.partition(b"\r\n\r\n")

    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"Content-Type: application/problem+json" in head
    assert json.loads(body)["code"] == code


def test_a_query_of_8000_bytes_is_read(live):
    answer = httpx.get(f"{live.url}/jobs", params={"label": "a:" + "b" * 7900})

    assert answer.status_code == 200
    assert answer.json()["data"] == []


def test_clients_that_send_their_heads_slowly_hold_no_thread(live):
    count = 4 * Settings().service_threads
    slow = [socket.create_connection(("127.0.0.1", live.port), timeout=20) for _ in range(count)]
    for sock in slow:
        sock.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Slow: ")

    assert httpx.get(f"{live.url}/livez", timeout=5).status_code == 200

    for sock in slow[::2]:
        sock.sendall(b"a\r\nConnection: close\r\n")
    # None of them is closed by its client, and none waits for another's end.
    for sock in slow[::2]:
        sock.sendall(b"\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 OK")
    for sock in slow:
        sock.close()
    assert httpx.get(f"{live.url}/livez", timeout=5).status_code == 200


def test_a_head_that_is_cut_off_ends_its_connection_at_once(live):
    assert exchange(live.port, b"GET /livez HTTP/1.1\r\nHo", close_writing=True) == b""


def test_the_second_request_of_a_connection_may_be_slow_too(live):
    request = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    with socket.create_connection(("127.0.0.1", live.port), timeout=20) as sock:
        for pieces in ([request], [request[:9], request[9:]], [request[:-1], request[-1:]]):
            for piece in pieces:
                sock.sendall(piece)
                assert httpx.get(f"{live.url}/livez", timeout=5).status_code == 200
            # Head and body may come apart.
            received = b""
            while not received.endswith(b'{"status":"live"}\n'):
                data = sock.recv(65536)
                assert data, "the connection was closed"
                received += data
            assert received.startswith(b"HTTP/1.1 200 OK")


@pytest.mark.slow
def test_a_head_that_takes_too_long_ends_its_connection(live):
    with socket.create_connection(("127.0.0.1", live.port), timeout=2 * HEAD_SECONDS) as sock:
        sock.sendall(b"GET /livez HTTP/1.1\r\nX: ")
        started = time.monotonic()

        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(65536) == b""

    assert HEAD_SECONDS - 1 < time.monotonic() - started < HEAD_SECONDS + 5


@pytest.fixture
def open_to_all(tmp_path, make_live):
    """A service that listens on every address, and a key of it."""
    data = tmp_path / "open"
    text, _ = KeyStore(data).create("acme", SCOPES, "first")
    return make_live(data, HOST="0.0.0.0"), text


def test_a_service_that_others_reach_does_not_start_without_a_key(tmp_path, redis_url):
    done = subprocess.run(
        [sys.executable, "-m", "service"],
        env={
            "PATH": os.environ["PATH"],
            "DATA_DIR": str(tmp_path / "data"),
            "REDIS_URL": redis_url,
            "HOST": "0.0.0.0",
            "PORT": "0",
        },
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.returncode == 1
    assert "python -m service.keys create --name first" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_body_of_a_request_without_a_key_is_not_waited_for(open_to_all):
    service, _ = open_to_all
    head = post("/models", f"Content-Length: {10 * 2**30}")
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as sock:
        sock.sendall(head + bytes(MIB))
        started = time.monotonic()
        answer = sock.recv(65536)
        waited = time.monotonic() - started

    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"WWW-Authenticate: Bearer" in answer
    assert waited < 2
    assert not (service.data / "tenants" / "acme").exists()


def test_a_key_opens_it_to_its_own_tenant(open_to_all, make_checkpoint):
    service, text = open_to_all
    with httpx.Client(base_url=service.url, headers={"Authorization": f"Bearer {text}"}) as client:
        made = client.post("/models", content=make_checkpoint())

    assert made.status_code == 201
    digest = made.json()["id"].removeprefix("mdl_")
    assert (service.data / "tenants" / "acme" / "models" / digest).is_dir()
    assert httpx.get(f"{service.url}/readyz").status_code == 200
    assert text not in service.data.with_suffix(".log").read_text()
