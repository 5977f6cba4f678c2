import socket
import time

import httpx
import pytest

from modelpress import Backoff, Client, ProblemError, ServiceUnreachable, UnexpectedAnswer

QUICK = Backoff(attempts=3, first_seconds=0.001)


@pytest.mark.parametrize("retry_after", ["0", "Wed, 21 Oct 2015 07:28:00 GMT"])
@pytest.mark.parametrize(("status", "code"), [(503, "store_unavailable"), (429, "rate_limited")])
def test_a_busy_service_is_asked_again_when_it_said(
    service, problem_answer, retry_after, status, code
):
    job_id = service.add_job()
    for _ in range(2):
        busy = problem_answer(status, code)
        busy.headers["Retry-After"] = retry_after
        service.fail_next("GET", "/jobs/", busy)
    slow = Backoff(attempts=3, first_seconds=100, cap_seconds=100)

    begun = time.monotonic()
    with Client(service.url, backoff=slow) as client:
        job = client.job(job_id)

    assert job.id == job_id
    assert len(service.requests("GET", "/jobs/")) == 3
    # Its own first pause would have been 50 s at least.
    assert time.monotonic() - begun < 50


def test_a_422_is_not_repeated(service, client, problem_answer):
    fault = {"pointer": "/spec/steps/0", "code": "missing", "detail": "op is missing"}
    service.fail_next("POST", "/jobs", problem_answer(422, "invalid_recipe", errors=[fault]))

    with pytest.raises(ProblemError, match="invalid_recipe") as refused:
        client.submit("mdl_x", {"steps": []})

    assert len(service.requests("POST", "/jobs")) == 1
    assert refused.value.status == 422
    assert refused.value.retryable is False
    assert [fault.pointer for fault in refused.value.errors] == ["/spec/steps/0"]


def test_a_409_is_not_repeated_although_it_is_retryable(service, client, problem_answer):
    job_id = service.add_job("running")
    answer = problem_answer(409, "job_not_terminal", retryable=True)
    service.fail_next("DELETE", "/jobs/", answer)

    with pytest.raises(ProblemError, match="job_not_terminal"):
        client.delete(job_id)

    assert len(service.requests("DELETE")) == 1


def test_a_service_that_stays_busy_is_given_up_on(service, client, problem_answer):
    for _ in range(3):
        busy = problem_answer(503, "store_unavailable", retryable=True)
        service.fail_next("GET", "/jobs/", busy)

    with pytest.raises(ProblemError) as refused:
        client.job("job_x")

    assert refused.value.status == 503
    assert len(service.requests("GET")) == 3


def test_all_attempts_of_a_submit_carry_one_idempotency_key(service, client, problem_answer):
    service.fail_next("POST", "/jobs", problem_answer(500, "internal_error", retryable=True))

    client.submit("mdl_x", {"steps": []})

    keys = [headers["Idempotency-Key"] for headers in service.requests("POST", "/jobs")]
    assert len(keys) == 2
    assert len(set(keys)) == 1
    assert len(service.jobs) == 1


def test_two_submits_have_two_keys_and_a_given_key_is_sent(service, client):
    client.submit("mdl_x", {"steps": []})
    client.submit("mdl_x", {"steps": []})
    client.submit("mdl_x", {"steps": []}, idempotency_key="mine")

    keys = [headers["Idempotency-Key"] for headers in service.requests("POST", "/jobs")]
    assert len(set(keys)) == 3
    assert keys[2] == "mine"


def test_a_port_where_nobody_listens_is_unreachable():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with Client(url, backoff=QUICK) as client, pytest.raises(ServiceUnreachable, match=url):
            client.job("job_x")


def test_a_502_of_a_proxy_is_unreachable_and_repeated():
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(502, html="<h1>Bad gateway</h1>")

    transport = httpx.MockTransport(answer)
    with (
        Client("http://proxy", backoff=QUICK, transport=transport) as client,
        pytest.raises(ServiceUnreachable, match="502"),
    ):
        client.job("job_x")

    assert len(asked) == 3


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (httpx.Response(200, text="<html>hello"), "no JSON"),
        (httpx.Response(200, json=[1]), "no object"),
        (httpx.Response(200, json={"id": "job_x"}), "state"),
        (httpx.Response(301, headers={"Location": "https://there/"}), "points to https://there/"),
    ],
    ids=["html", "list", "no state", "redirect"],
)
def test_an_answer_that_is_no_job_is_called_unexpected(answer, words):
    transport = httpx.MockTransport(lambda _: answer)

    with (
        Client("http://other", transport=transport) as client,
        pytest.raises(UnexpectedAnswer, match=words),
    ):
        client.job("job_x")


def test_a_refusal_without_a_problem_document_keeps_its_status_and_text():
    transport = httpx.MockTransport(lambda _: httpx.Response(403, text="go\naway"))

    with (
        Client("http://other", transport=transport) as client,
        pytest.raises(ProblemError, match="go away") as refused,
    ):
        client.job("job_x")

    assert refused.value.status == 403
    assert refused.value.code == "http_403"


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", "http://a:b"])
def test_a_url_that_is_none_is_a_wrong_argument(url):
    with pytest.raises(ValueError, match="url"):
        Client(url)


def test_a_path_in_the_url_stays_in_front():
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(204)

    with Client("http://host/press/", transport=httpx.MockTransport(answer)) as client:
        client.delete("job/../x")

    assert asked == ["http://host/press/jobs/job%2F..%2Fx"]
