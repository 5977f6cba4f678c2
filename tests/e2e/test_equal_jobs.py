"""Equal jobs through the whole stack: the artifact is made once, whatever happens in between."""

import time

import httpx
import pytest
from redis import Redis

from jobs.settings import Settings

RECIPE = "{steps: [{op: prune, sparsity: 0.3}, {op: quantize, scheme: w8a16}]"
BUDGET = RECIPE + ", budget: {runtime: 1h}}"
GATE = RECIPE + ", gate: {max_size_ratio: 0.01}}"
RECIPE += "}"


@pytest.fixture(scope="module")
def made(stack, small_model):
    """A job that was run."""
    job = stack.wait(stack.submit(small_model, RECIPE, use_cache=True)["id"])
    assert (job["state"], job["cache"]) == ("succeeded", "miss"), job["failure"]
    return job


def test_an_equal_job_succeeds_within_its_submit(stack, small_model, made):
    started = time.monotonic()
    job = stack.submit(small_model, BUDGET, use_cache=True)
    seconds = time.monotonic() - started

    assert seconds < 1
    assert (job["state"], job["cache"], job["attempts"]) == ("succeeded", "hit", [])
    assert job["artifact"]["digest"] == made["artifact"]["digest"]
    ours, theirs = (httpx.get(f"{stack.url}/jobs/{j['id']}/report").json() for j in (job, made))
    assert ours == theirs


def test_what_differs_is_run(stack, small_model, made):
    recipe = RECIPE.replace("0.3", "0.4")

    job = stack.submit(small_model, recipe, use_cache=True)

    assert job["state"] in {"queued", "running"}
    assert stack.wait(job["id"])["artifact"]["digest"] != made["artifact"]["digest"]


def test_what_is_to_be_run_gives_the_same_bytes(stack, small_model, made):
    job = stack.wait(stack.submit(small_model, RECIPE)["id"])

    assert (job["cache"], len(job["attempts"])) == ("bypass", 1)
    assert job["artifact"] == made["artifact"]


def test_a_gate_is_held_against_what_was_measured(stack, small_model, made):
    job = stack.submit(small_model, GATE, use_cache=True)

    assert (job["state"], job["failure"]["code"]) == ("failed", "gate_failed")


def test_a_loss_of_redis_forgets_no_artifact(stack, small_model, made):
    before = stack.submit(small_model, RECIPE, use_cache=True)
    with Redis.from_url(Settings(data_dir=stack.data_dir, redis_url="").redis) as redis:
        redis.flushall()

    job = stack.submit(small_model, RECIPE, use_cache=True)

    assert job["cache"] == "hit"
    assert stack.wait(before["id"])["artifact"] == made["artifact"]


def test_a_copy_outlives_the_job_that_made_it(stack, small_model):
    recipe = RECIPE.replace("0.3", "0.45")
    first = stack.wait(stack.submit(small_model, recipe, use_cache=True)["id"])
    copy = stack.submit(small_model, recipe, use_cache=True)
    address = f"{stack.url}/jobs/{{}}/artifact/model.safetensors"
    content = httpx.get(address.format(first["id"])).raise_for_status().content

    httpx.delete(f"{stack.url}/jobs/{first['id']}").raise_for_status()

    assert httpx.get(address.format(copy["id"])).raise_for_status().content == content
    assert stack.submit(small_model, recipe, use_cache=True)["cache"] == "hit"


@pytest.mark.slow
def test_equal_jobs_submitted_together_are_made_once(stack, large_model):
    job_ids = [stack.submit(large_model, RECIPE, use_cache=True)["id"] for _ in range(4)]

    jobs = [stack.wait(job_id) for job_id in job_ids]

    assert sorted(job["cache"] for job in jobs) == ["hit", "hit", "hit", "miss"]
    assert len({job["artifact"]["digest"] for job in jobs}) == 1
