import select
import time

import pytest

from jobs.blobs import now_ms
from jobs.job import JobSpec, Progress, new_job_id
from jobs.recipe import load_recipe
from jobs.store import JobStore, connect
from worker.lease import Lease

RECIPE = load_recipe("steps: [{op: quantize, scheme: w8a16}]")


@pytest.fixture
def store(redis_url):
    redis = connect(redis_url)
    yield JobStore(redis, "default", lease_seconds=30)
    redis.close()


@pytest.fixture
def claimed(store):
    spec = JobSpec(id=new_job_id(), model="mdl_" + "0" * 64, recipe=RECIPE, created_ms=now_ms())
    store.submit(spec)
    return spec.id, store.claim(spec.id, "w").token


def hold(store, claimed, lease_seconds=30.0):
    job_id, token = claimed
    return Lease(store, job_id, token, lease_seconds=lease_seconds, renew_seconds=0.02)


def wait(lease):
    assert select.select([lease], [], [], 10)[0], "no verdict came"
    return lease.verdict


def next_event(store, job_id, after):
    deadline = time.monotonic() + 10
    while not (events := store.events(job_id, after=after)):
        assert time.monotonic() < deadline, "no event came"
        time.sleep(0.01)
    return events[0]


def test_a_cancel_becomes_the_verdict(store, claimed):
    with hold(store, claimed) as lease:
        assert lease.verdict is None
        store.cancel(claimed[0])

        assert wait(lease) == "cancelled"


def test_a_cancel_that_redis_forgot_or_cannot_tell_becomes_the_verdict_too(
    store, claimed, tmp_path
):
    note = tmp_path / "cancel"
    job_id, token = claimed
    lease = Lease(
        store, job_id, token, lease_seconds=30, renew_seconds=0.02, is_cancelled=note.exists
    )
    with lease:
        assert lease.verdict is None
        note.touch()

        assert wait(lease) == "cancelled"


def test_a_job_taken_by_another_is_lost(store, claimed):
    with hold(store, claimed) as lease:
        store.redis.hset(store.key(claimed[0]), "token", 999)

        assert wait(lease) == "lost"


def test_a_forgotten_job_is_lost(store, claimed):
    with hold(store, claimed) as lease:
        store.redis.flushdb()

        assert wait(lease) == "lost"


def test_a_redis_that_stays_away_is_given_up_before_the_lease_ends(claimed, store, tmp_path):
    gone = connect(f"unix://{tmp_path}/nobody.sock")
    lease = Lease(
        JobStore(gone, "default"), claimed[0], claimed[1], lease_seconds=0.3, renew_seconds=0.02
    )
    with lease:
        assert wait(lease) == "lost"


def test_progress_is_told_with_the_renewals(store, claimed):
    job_id, _ = claimed
    last = store.events(job_id)[-1].id
    progress = Progress(phase="compress", step=1, steps=1, done=3, total=4, unit="tensors")

    with hold(store, claimed) as lease:
        lease.tell(progress)
        event = next_event(store, job_id, last)

    assert event.type == "progress"
    assert store.get(job_id).progress == progress


def test_a_lease_outlives_its_length_as_long_as_it_is_renewed(store, claimed):
    job_id, _ = claimed
    before = int(store.redis.hget(store.key(job_id), "lease_until_ms"))
    last = store.events(job_id)[-1].id

    with hold(store, claimed) as lease:
        lease.tell(Progress(phase="p", step=1, steps=1, done=0, total=1, unit="x"))
        next_event(store, job_id, last)

    assert int(store.redis.hget(store.key(job_id), "lease_until_ms")) > before


def test_a_store_that_hangs_costs_the_lease_before_it_is_given_away(store, claimed, wait_until):
    with hold(store, claimed, lease_seconds=0.5) as lease:
        # Every call hangs now, and neither answers nor fails in time.
        store.redis.client_pause(1500)
        wait_until(lambda: lease.verdict == "lost", "the verdict", seconds=0.5)
