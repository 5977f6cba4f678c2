"""Requests that wait for jobs, on a real gunicorn with few threads."""

import contextlib
import json
import socket
import time

import httpx
import pytest

from jobs.settings import Settings


@pytest.fixture
def settings(crowded, redis_url):
    """The test's own view of what the service stores."""
    return Settings(data_dir=crowded.data, redis_url=redis_url)


def connect(service):
    return socket.create_connection(("127.0.0.1", service.port), timeout=20)


def long_poll(job_id, revision, seconds=30):
    return (
        f"GET /jobs/{job_id} HTTP/1.1\r\nHost: localhost\r\nPrefer: wait={seconds}\r\n"
        f'If-None-Match: "{revision}"\r\n\r\n'
    ).encode()


def answer_of(sock):
    received = sock.recv(65536)
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK"), head
    size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    while len(body) < size:
        body += sock.recv(65536)
    return json.loads(body)


def waiting(service, count):
    """Wait until as many wait, by the service's own count."""
    deadline = time.monotonic() + 20
    while f"modelpress_waiting_requests {count}.0" not in httpx.get(f"{service.url}/metrics").text:
        assert time.monotonic() < deadline, f"{count} did not come to wait"
        time.sleep(0.02)


def test_those_who_wait_hold_no_thread_and_all_are_woken(crowded, store, job_id):
    """Twice: a kept connection waits a second time as it did the first."""
    with contextlib.ExitStack() as stack:
        polls = [stack.enter_context(connect(crowded)) for _ in range(100)]
        for revision, change in ((1, "running"), (2, "cancel_requested")):
            for sock in polls:
                sock.sendall(long_poll(job_id, revision))
            waiting(crowded, 100)
            assert httpx.get(f"{crowded.url}/livez", timeout=5).status_code == 200

            store.claim(job_id, "w") if change == "running" else store.cancel(job_id)

            answers = [answer_of(sock) for sock in polls]
            assert {answer["revision"] for answer in answers} == {revision + 1}


def test_streams_that_wait_hold_no_thread_either(crowded, store, job_id):
    request = f"GET /jobs/{job_id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(connect(crowded)) for _ in range(100)]
        for sock in streams:
            sock.sendall(request)
        waiting(crowded, 100)
        assert httpx.get(f"{crowded.url}/livez", timeout=5).status_code == 200

        store.cancel(job_id)

        for sock in streams:
            heard = b""
            while not heard.endswith(b"0\r\n\r\n"):
                heard += sock.recv(65536)
            assert heard.count(b"event: ") == 2
            # Its connection is kept, as any other's.
            sock.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert sock.recv(65536).startswith(b"HTTP/1.1 200 OK")


def test_whoever_waits_and_hangs_up_is_gone_at_once(crowded, job_id):
    for hang_up in (socket.socket.close, lambda sock: sock.shutdown(socket.SHUT_WR)):
        polls = [connect(crowded) for _ in range(5)]
        for sock in polls:
            sock.sendall(long_poll(job_id, 1))
        waiting(crowded, 5)
        for sock in polls:
            hang_up(sock)
        waiting(crowded, 0)
        for sock in polls:
            sock.close()


def test_a_request_sent_ahead_is_answered_after_the_one_that_waits(crowded, store, job_id):
    with connect(crowded) as sock:
        sock.sendall(long_poll(job_id, 1))
        waiting(crowded, 1)
        sock.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        store.claim(job_id, "w")
        received = b""
        while data := sock.recv(65536):
            received += data

    assert received.count(b"HTTP/1.1 200 OK") == 2
    assert received.index(b'"revision":2') < received.index(b"Connection: close")


def test_those_who_wait_outlive_a_loss_of_their_redis_connection(crowded, store, job_id):
    with connect(crowded) as sock:
        sock.sendall(long_poll(job_id, 1))
        waiting(crowded, 1)
        store.redis.client_kill_filter(_type="pubsub")
        store.claim(job_id, "w")

        assert answer_of(sock)["state"] == "running"


def test_a_wait_that_is_over_is_answered_with_what_is_known(crowded, job_id):
    started = time.monotonic()
    with connect(crowded) as sock:
        sock.sendall(long_poll(job_id, 1, seconds=1))
        answer = sock.recv(65536)

    assert answer.startswith(b"HTTP/1.1 304 ")
    assert b"Preference-Applied: wait=1" in answer
    assert 0.9 < time.monotonic() - started < 5
