import pytest

from modelpress import GateFailed, JobCancelled, JobFailed, ProblemError, WaitTimeout


def test_wait_polls_with_the_last_revision_until_the_job_succeeds(service, client):
    job_id = service.add_job("queued")
    service.will("succeeded")
    service.script.insert(1, None)
    states = []

    job = client.wait(job_id, on_progress=lambda job: states.append((job.state, job.revision)))

    assert job.state == "succeeded"
    assert states == [("queued", 1), ("running", 2), ("succeeded", 3)]
    polls = service.requests("GET", f"/jobs/{job_id}")
    assert [headers.get("If-None-Match") for headers in polls] == [None, '"1"', '"2"', '"2"']
    assert [headers.get("Prefer") for headers in polls] == [None, *["wait=25"] * 3]


def test_wait_shows_the_progress(service, client):
    job_id = service.add_job("queued")
    service.will("succeeded")
    seen = []

    client.wait(job_id, on_progress=lambda job: seen.append(job.progress))

    assert seen[0] is None
    assert (seen[1].phase, seen[1].done, seen[1].total) == ("quantize", 5, 10)
    assert seen[1].eta_seconds == 2.5


@pytest.mark.parametrize(
    ("state", "code", "error"),
    [
        ("failed", "gate_failed", GateFailed),
        ("failed", "out_of_memory", JobFailed),
        ("cancelled", None, JobCancelled),
    ],
)
def test_a_bad_end_is_raised_with_the_job(service, client, state, code, error):
    job_id = service.add_job("queued")
    service.will(state, failure={"code": code, "detail": "It is too large."} if code else None)

    with pytest.raises(error, match=job_id) as raised:
        client.wait(job_id)

    assert type(raised.value) is error
    assert raised.value.job.state == state


def test_wait_gives_up_when_its_time_is_over_and_leaves_the_job(service, client):
    job_id = service.add_job("running")

    with pytest.raises(WaitTimeout, match="still running") as raised:
        client.wait(job_id, timeout=0.1)

    assert raised.value.job.id == job_id
    assert service.requests("POST") == []


def test_wait_outlives_a_service_that_is_away_for_longer_than_one_request_tries(
    service, client, problem_answer
):
    job_id = service.add_job("queued")
    service.will("succeeded")
    polls = []

    def lose_the_service(job):
        if not polls:
            for _ in range(3):
                service.fail_next("GET", f"/jobs/{job_id}", problem_answer(503, "drained"))
        polls.append(job)

    job = client.wait(job_id, on_progress=lose_the_service)

    assert job.state == "succeeded"
    assert service.faults == []


def test_wait_for_a_job_that_is_not_there_is_refused_at_once(client):
    with pytest.raises(ProblemError, match="There is no job job_x"):
        client.wait("job_x")
