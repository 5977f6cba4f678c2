import pytest

from jobs.blobs import now_ms
from jobs.job import JobResult, JobSpec, new_job_id
from jobs.machine import is_new
from jobs.problems import Problem
from jobs.queue import make_celery, waiting_rings
from jobs.reaper import Reaper
from jobs.recipe import load_recipe
from jobs.settings import Settings
from jobs.store import connect
from jobs.sweeping import sweep
from jobs.tenants import DEFAULT_TENANT, Tenants

RECIPE = load_recipe("steps: [{op: quantize, scheme: w8a16}]")
QUEUE = "test-queue"


@pytest.fixture
def settings(tmp_path, redis_url):
    return Settings(data_dir=tmp_path, redis_url=redis_url, queue=QUEUE, max_attempts=2)


@pytest.fixture
def tenants(settings):
    redis = connect(settings.redis)
    yield Tenants(settings, redis)
    redis.close()


@pytest.fixture
def store(tenants):
    return tenants.stores(DEFAULT_TENANT).jobs


@pytest.fixture
def blobs(tenants):
    return tenants.stores(DEFAULT_TENANT).blobs


def quick(settings):
    return settings.model_copy(update={"queue": QUEUE, "reap_seconds": 0.05})


@pytest.fixture
def reaper(tenants, settings):
    celery = make_celery(settings)
    reaper = Reaper(tenants, celery, quick(settings))
    yield reaper
    # Where a test failed before it stopped it: it would bring its jobs into the next one's Redis.
    if reaper._thread.is_alive():
        reaper.stop()
    celery.close()


def submit(store, blobs, age_ms=0):
    spec = JobSpec(
        id=new_job_id(), model="mdl_" + "0" * 64, recipe=RECIPE, created_ms=now_ms() - age_ms
    )
    blobs.write_spec(spec)
    store.submit(spec)
    return spec.id


def keyed(blobs):
    """A spec on the disk, of a request with a key."""
    spec = JobSpec(
        id=new_job_id(),
        model="mdl_" + "0" * 64,
        recipe=RECIPE,
        created_ms=now_ms() - 120_000,
        idempotency_key="k",
        fingerprint="f",
    )
    blobs.write_spec(spec)
    return spec


def make_due(store, job_id):
    store.redis.zadd("modelpress:default:open", {job_id: 1})


def lose_worker(store, job_id):
    claim = store.claim(job_id, "w")
    store.redis.hset(store.key(job_id), "lease_until_ms", 1)
    make_due(store, job_id)
    return claim


def rings(store):
    return waiting_rings(store.redis, QUEUE)


def test_a_lost_doorbell_is_rung_again(store, blobs, reaper):
    job_id = submit(store, blobs)
    make_due(store, job_id)

    reaper.reap_once()

    assert rings(store) == 1


def test_a_job_whose_doorbell_still_waits_is_left_alone(store, blobs, reaper):
    job_id = submit(store, blobs)
    for _ in range(5):
        make_due(store, job_id)
        reaper.reap_once()

    assert rings(store) == 1


def test_a_job_that_is_not_due_is_not_looked_at(store, blobs, reaper):
    submit(store, blobs)

    reaper.reap_once()

    assert rings(store) == 0


def test_a_job_of_a_lost_worker_goes_back_to_the_queue(store, blobs, reaper):
    job_id = submit(store, blobs)
    lose_worker(store, job_id)

    reaper.reap_once()

    job = store.get(job_id)
    assert (job.state, job.attempt, job.attempts[0].reason) == ("queued", 1, "worker_lost")
    assert rings(store) == 1


def test_a_job_that_loses_every_worker_fails_and_the_disk_knows(store, blobs, reaper):
    job_id = submit(store, blobs)
    for _ in range(2):
        lose_worker(store, job_id)
        reaper.reap_once()

    assert store.get(job_id).state == "failed"
    assert store.get(job_id).failure["code"] == "worker_lost"
    assert blobs.read_result(job_id).state == "failed"


def test_a_cancel_that_its_dead_worker_never_saw_is_carried_out(store, blobs, reaper):
    job_id = submit(store, blobs)
    lose_worker(store, job_id)
    store.cancel(job_id)

    reaper.reap_once()

    assert store.get(job_id).state == "cancelled"
    assert blobs.read_result(job_id).state == "cancelled"


def test_a_worker_that_died_after_publishing_has_its_job_finished(store, blobs, reaper):
    job_id = submit(store, blobs)
    lose_worker(store, job_id)
    blobs.publish_result(JobResult(id=job_id, state="succeeded", attempt=1, finished_ms=1))

    reaper.reap_once()

    assert store.get(job_id).state == "succeeded"
    assert store.due() == []


def test_after_a_loss_of_redis_every_job_comes_back_as_it_was(store, blobs, reaper):
    queued, ended = submit(store, blobs, 120_000), submit(store, blobs, 120_000)
    claim = store.claim(ended, "w")
    failure = Problem("nothing_changed", "x").to_dict()
    result = JobResult(id=ended, state="failed", attempt=1, failure=failure, finished_ms=1)
    store.finish(result, claim.token)
    blobs.publish_result(result)
    store.redis.flushdb()

    assert reaper.rebuild() == 2
    assert reaper.rebuild() == 0

    assert store.get(queued).state == "queued"
    assert (store.get(ended).state, store.get(ended).failure) == ("failed", failure)
    assert rings(store) == 1


def test_a_submit_under_way_is_not_rebuilt_under_its_hands(store, blobs, reaper):
    spec = JobSpec(id=new_job_id(), model="mdl_" + "0" * 64, recipe=RECIPE, created_ms=now_ms())
    blobs.write_spec(spec)

    assert reaper.rebuild() == 0
    assert store.get(spec.id) is None


def test_a_job_that_was_young_when_redis_was_emptied_is_not_left_for_a_minute(
    store, blobs, reaper, monkeypatch, wait_until
):
    monkeypatch.setattr("jobs.reaper._SETTLE_MS", 1000)
    reaper.start()
    wait_until(lambda: not is_new(store.redis), "the first look")
    job_id = submit(store, blobs)

    store.redis.flushdb()

    wait_until(lambda: store.get(job_id) is not None, "the job to be back", seconds=5)
    reaper.stop()
    assert store.get(job_id).state == "queued"
    assert rings(store) == 1


def test_a_key_finds_its_job_after_a_loss_of_redis(store, blobs, reaper):
    spec = keyed(blobs)
    store.submit(spec, idempotency_key="k", fingerprint="f")
    store.redis.flushdb()

    reaper.rebuild()

    again = store.submit(keyed(blobs), idempotency_key="k", fingerprint="f")
    assert (again.outcome, again.job_id) == ("replayed", spec.id)


def test_a_job_whose_key_was_used_again_before_it_was_back_comes_back_too(store, blobs, reaper):
    first, second = keyed(blobs), keyed(blobs)
    store.submit(second, idempotency_key="k", fingerprint="f")

    assert reaper.rebuild() == 1

    assert store.get(first.id).state == "queued"
    again = store.submit(keyed(blobs), idempotency_key="k", fingerprint="f")
    assert again.job_id == second.id


def test_the_thread_looks_at_once_and_stops_when_told(store, blobs, reaper, wait_until):
    job_id = submit(store, blobs, 120_000)
    store.redis.flushdb()

    reaper.start()
    wait_until(lambda: store.events(job_id), "the job to be back")
    reaper.stop()

    assert store.events(job_id)[0].type == "queued"
    assert not reaper._thread.is_alive()


def test_a_cancel_of_a_running_job_outlives_redis(store, blobs, reaper):
    job_id = submit(store, blobs, 120_000)
    store.claim(job_id, "w")
    store.cancel(job_id)
    blobs.note_cancel(job_id)
    store.redis.flushdb()

    assert reaper.rebuild() == 1

    assert store.get(job_id).state == "cancelled"
    assert blobs.read_result(job_id).state == "cancelled"
    assert waiting_rings(store.redis, QUEUE) == 0


def test_a_stop_of_a_training_outlives_redis(store, blobs, reaper):
    job_id = submit(store, blobs, 120_000)
    blobs.note_stop(job_id)
    store.redis.flushdb()

    assert reaper.rebuild() == 1

    job = store.get(job_id)
    assert (job.state, job.stop_requested) == ("queued", True)
    assert waiting_rings(store.redis, QUEUE) == 1


def test_a_rebuilt_job_ended_when_it_ended(store, blobs, reaper):
    job_id = submit(store, blobs, 120_000)
    blobs.publish_result(JobResult(id=job_id, state="succeeded", attempt=2, finished_ms=7000))
    store.redis.flushdb()

    reaper.rebuild()

    job = store.get(job_id)
    assert (job.attempt, job.finished_at.timestamp()) == (2, 7.0)


@pytest.mark.parametrize("name", ["spec.json", "result.json"])
def test_a_damaged_job_hides_no_other(store, blobs, reaper, name):
    damaged, other = submit(store, blobs, 120_000), submit(store, blobs, 120_000)
    (blobs.job_folder(damaged) / name).write_text("{")
    make_due(store, damaged)
    make_due(store, other)

    reaper.reap_once()
    assert other not in store.due()
    store.redis.flushdb()
    reaper.rebuild()
    sweep(blobs)

    assert store.get(other).state == "queued"


def test_a_cancel_that_only_redis_knows_is_written_down(store, blobs, reaper):
    job_id = submit(store, blobs, 120_000)
    store.cancel(job_id)

    reaper.rebuild()
    ended = store.get(job_id)
    store.redis.flushdb()
    reaper.rebuild()

    rebuilt = store.get(job_id)
    assert (rebuilt.state, rebuilt.finished_at) == ("cancelled", ended.finished_at)


def test_the_thread_notices_that_redis_was_emptied(store, blobs, reaper, wait_until):
    job_id = submit(store, blobs, 120_000)
    reaper.start()
    wait_until(lambda: not is_new(store.redis) and store.get(job_id), "the first look")

    store.redis.flushdb()

    wait_until(lambda: store.get(job_id) is not None, "the job to be back", seconds=5)
    reaper.stop()
    assert store.get(job_id).state == "queued"
    assert rings(store) == 1


def test_the_thread_outlives_what_it_meets(blobs, reaper, monkeypatch, wait_until):
    looks = []

    def fail():
        looks.append(1)
        raise ValueError("nobody thought of this")

    monkeypatch.setattr(reaper, "reap_once", fail)
    reaper.start()
    wait_until(lambda: len(looks) > 2, "further looks")

    assert reaper._thread.is_alive()
    reaper.stop()
    assert not reaper._thread.is_alive()


def test_the_jobs_of_every_tenant_are_looked_after(tenants, reaper):
    theirs = [tenants.stores(name) for name in ("acme", "zeta")]
    ids = [submit(stores.jobs, stores.blobs, 120_000) for stores in theirs]
    for stores, job_id in zip(theirs, ids, strict=True):
        stores.jobs.redis.zadd(f"modelpress:{stores.tenant}:open", {job_id: 1})

    reaper.reap_once()
    assert rings(theirs[0].jobs) == 2
    theirs[0].jobs.redis.flushdb()

    assert reaper.rebuild() == 2
    assert [s.jobs.get(i).state for s, i in zip(theirs, ids, strict=True)] == ["queued"] * 2
    assert tenants.stores("zeta").jobs.get(ids[0]) is None


@pytest.fixture
def narrow(settings, tenants):
    """The stores of a tenant that may run one job at a time."""
    return Tenants(settings.model_copy(update={"quota_running": 1}), tenants.redis)


def test_nobody_is_rung_for_while_a_tenant_runs_as_many_jobs_as_it_may(narrow, settings):
    celery = make_celery(settings)
    stores = narrow.stores(DEFAULT_TENANT)
    running, waiting = (submit(stores.jobs, stores.blobs) for _ in range(2))
    stores.jobs.claim(running, "w")
    reaper = Reaper(narrow, celery, quick(settings))

    make_due(stores.jobs, waiting)
    reaper.reap_once()
    assert rings(stores.jobs) == 0
    assert waiting not in stores.jobs.due()

    result = JobResult(id=running, state="succeeded", attempt=1, finished_ms=1)
    stores.jobs.finish(result, token=None)
    make_due(stores.jobs, waiting)
    reaper.reap_once()

    assert rings(stores.jobs) == 1
    celery.close()
