"""Kill what works on a job, in the middle of it: the job succeeds all the same, once."""

import httpx
import pytest

RECIPE = "steps: [{op: prune, sparsity: 0.5}, {op: quantize, scheme: w8a16}]"


@pytest.fixture(scope="module")
def undisturbed(stack, large_model):
    job = stack.wait(stack.submit(large_model, RECIPE)["id"])
    assert job["state"] == "succeeded", job["failure"]
    return job


@pytest.fixture
def job_at_work(stack, large_model, undisturbed, wait_until):
    job = stack.submit(large_model, RECIPE)
    wait_until(stack.runner)
    return job["id"]


def kill_again_and_again(stack, find, wait_until, times):
    pids = []
    for _ in range(times):
        process = wait_until(lambda: (p := find()) and p.pid not in pids and p)
        pids.append(process.pid)
        process.kill()
    return pids


def test_a_killed_runner(stack, job_at_work, undisturbed):
    stack.runner().kill()

    job = stack.wait(job_at_work)

    assert (job["state"], job["attempt"]) == ("succeeded", 2)
    assert [row["reason"] for row in job["attempts"]] == ["runner_died", None]
    assert job["artifact"]["digest"] == undisturbed["artifact"]["digest"]


def test_a_killed_worker(stack, job_at_work, undisturbed, wait_until):
    worker = stack.find("celery")
    worker.kill()

    job = stack.wait(job_at_work)

    assert (job["state"], job["attempt"]) == ("succeeded", 2)
    assert [row["reason"] for row in job["attempts"]] == ["worker_lost", None]
    assert job["artifact"]["digest"] == undisturbed["artifact"]["digest"]
    assert wait_until(lambda: stack.find("celery")).pid != worker.pid


def test_a_killed_redis(stack, job_at_work, undisturbed, wait_until):
    redis = stack.find("redis-server")
    redis.kill()

    job = stack.wait(job_at_work)

    assert job["state"] == "succeeded", job["failure"]
    assert job["artifact"]["digest"] == undisturbed["artifact"]["digest"]
    assert wait_until(lambda: stack.find("redis-server")).pid != redis.pid


def test_a_worker_whose_redis_died_under_a_job_takes_the_next_one(
    stack, job_at_work, small_model, wait_until
):
    # Stopped, so that the job ends while Redis is away, and cannot be acknowledged.
    redis = stack.find("redis-server")
    redis.suspend()
    stack.runner().kill()
    wait_until(lambda: not stack.runner())
    redis.kill()
    wait_until(lambda: (p := stack.find("redis-server")) and p.pid != redis.pid)

    wait_until(lambda: httpx.get(f"{stack.url}/readyz", timeout=70).status_code == 200)

    job = stack.wait(stack.submit(small_model, RECIPE)["id"])

    assert job["state"] == "succeeded", job["failure"]
    assert stack.wait(job_at_work)["state"] == "succeeded"


def test_a_killed_service(stack, job_at_work, undisturbed, wait_until):
    service = stack.find("-m service")
    service.kill()

    job = stack.wait(job_at_work)

    assert (job["state"], job["attempt"]) == ("succeeded", 1)
    assert job["artifact"]["digest"] == undisturbed["artifact"]["digest"]


def test_a_runner_that_always_dies(stack, job_at_work, wait_until):
    kill_again_and_again(stack, stack.runner, wait_until, times=3)

    job = stack.wait(job_at_work)

    assert (job["state"], job["attempt"]) == ("failed", 3)
    assert job["failure"]["code"] == "runner_died"
    assert "SIGKILL" in job["failure"]["detail"]
    assert job["artifact"] is None


def test_a_cancelled_job_is_gone_within_three_seconds(stack, job_at_work, wait_until):
    import time

    import httpx

    runner = stack.runner()
    runner.suspend()
    asked = time.monotonic()
    httpx.post(f"{stack.url}/jobs/{job_at_work}/cancel").raise_for_status()

    job = stack.wait(job_at_work, seconds=10)

    assert job["state"] == "cancelled"
    assert time.monotonic() - asked < 3
    wait_until(lambda: not runner.is_running())
