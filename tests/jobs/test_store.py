import threading
import time

import pytest

from jobs.blobs import now_ms
from jobs.job import Artifact, ArtifactFile, JobResult, JobSpec, Progress, new_job_id
from jobs.problems import Problem
from jobs.recipe import load_recipe
from jobs.store import CHANGED, JobStore, connect

RECIPE = load_recipe("steps: [{op: prune, structure: '2:4'}, {op: quantize, scheme: w8a8}]")
ARTIFACT = Artifact(
    bytes=1,
    digest="blake3:00",
    files=(ArtifactFile(path="model.safetensors", bytes=1, blake3="00"),),
)


@pytest.fixture
def store(redis_url):
    redis = connect(redis_url)
    yield JobStore(redis, "default", lease_seconds=30, max_attempts=3)
    redis.close()


def make_spec(**labels):
    return JobSpec(
        id=new_job_id(), model="mdl_" + "0" * 64, recipe=RECIPE, labels=labels, created_ms=now_ms()
    )


def submit(store, **labels):
    spec = make_spec(**labels)
    assert store.submit(spec).outcome == "created"
    return spec.id


def end(store, job_id, state="succeeded", **more):
    return store.finish(
        JobResult(id=job_id, state=state, attempt=1, finished_ms=1, **more), token=None
    )


def test_a_submitted_job_is_read_back_whole(store):
    spec = make_spec(team="a", commit="b")
    store.submit(spec)

    job = store.get(spec.id)

    assert (job.state, job.revision, job.attempt, job.queue_position) == ("queued", 1, 0, 0)
    assert (job.model, job.recipe, job.labels) == (spec.model, RECIPE, spec.labels)
    assert int(job.created_at.timestamp() * 1000) == spec.created_ms
    assert job.started_at is job.finished_at is job.failure is job.artifact is None


def test_a_job_that_was_answered_is_never_queued(store):
    spec = make_spec()
    result = JobResult(
        id=spec.id, state="succeeded", attempt=0, artifact=ARTIFACT, cache="hit", finished_ms=5
    )

    assert store.submit(spec, result).outcome == "created"

    job = store.get(spec.id)
    assert (job.state, job.cache, job.artifact) == ("succeeded", "hit", ARTIFACT)
    assert (job.attempt, job.attempts, job.started_at) == (0, (), None)
    assert int(job.finished_at.timestamp() * 1000) == 5
    assert [event.type for event in store.events(spec.id)] == ["queued", "succeeded"]
    assert store.claim(spec.id, "w").outcome == "ended"
    assert store.counts() == {"queued": 0, "running": 0, "known": 1}


def test_a_job_that_is_to_be_run_says_so_from_the_start(store):
    spec = make_spec().model_copy(update={"use_cache": False})
    store.submit(spec)

    assert store.get(spec.id).cache == "bypass"


def test_ids_sort_by_time():
    ids = [new_job_id() for _ in range(100)]

    assert [i[:16] for i in ids] == sorted(i[:16] for i in ids)
    assert len(set(ids)) == 100


def test_an_idempotency_key_makes_one_job_however_many_submit_at_once(store):
    outcomes = []

    def send():
        outcomes.append(store.submit(make_spec(), idempotency_key="k", fingerprint="f"))

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(outcome.outcome for outcome in outcomes) == ["created"] + ["replayed"] * 7
    assert len({outcome.job_id for outcome in outcomes}) == 1
    assert store.counts()["known"] == 1


def test_an_idempotency_key_used_for_another_request_changes_nothing(store):
    first = store.submit(make_spec(), idempotency_key="k", fingerprint="f")

    second = store.submit(make_spec(), idempotency_key="k", fingerprint="g")

    assert (second.outcome, second.job_id) == ("mismatch", first.job_id)
    assert store.counts()["known"] == 1


def test_of_many_claims_one_wins(store):
    job_id = submit(store)
    outcomes = []
    threads = [
        threading.Thread(target=lambda n=n: outcomes.append(store.claim(job_id, f"w{n}").outcome))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(outcomes) == ["claimed"] + ["held"] * 7
    assert store.get(job_id).attempt == 1


def test_a_zombie_is_refused_after_its_job_was_taken(store):
    job_id = submit(store)
    old = store.claim(job_id, "zombie")
    store.redis.hset(store.key(job_id), "lease_until_ms", 1)
    new = store.claim(job_id, "healthy")

    renewal = store.renew(job_id, old.token)
    stale = store.finish(
        JobResult(id=job_id, state="failed", attempt=1, finished_ms=1), token=old.token
    )

    assert (renewal.held, stale) == (False, "stale")
    assert store.renew(job_id, new.token).held
    assert [(row.worker, row.outcome, row.reason) for row in store.get(job_id).attempts] == [
        ("zombie", "requeued", "worker_lost"),
        ("healthy", None, None),
    ]


def test_the_reason_of_the_last_attempt_is_the_failure(store):
    job_id = submit(store)
    for _ in range(3):
        claim = store.claim(job_id, "w")
        state = store.release(job_id, claim.token, Problem("runner_died", "killed by SIGSEGV"))

    job = store.get(job_id)
    assert state == job.state == "failed"
    assert (job.failure["code"], job.failure["detail"]) == ("runner_died", "killed by SIGSEGV")
    assert [row.reason for row in job.attempts] == ["runner_died"] * 3
    assert store.claim(job_id, "w").outcome == "ended"


def test_a_drained_attempt_is_not_counted(store):
    job_id = submit(store)
    for _ in range(5):
        claim = store.claim(job_id, "w")
        assert claim.attempt == 1
        assert (
            store.release(job_id, claim.token, Problem("drained", "x"), counted=False) == "queued"
        )


def test_progress_is_shown_and_counts_as_a_change_only_when_it_changed(store):
    job_id = submit(store)
    token = store.claim(job_id, "w").token
    progress = Progress(phase="compress", step=1, steps=2, done=1, total=4, unit="tensors")

    store.renew(job_id, token, progress)
    revision = store.get(job_id).revision
    store.renew(job_id, token, progress)

    job = store.get(job_id)
    assert (job.progress, job.revision) == (progress, revision)


def test_events_tell_the_whole_story_in_order(store):
    job_id = submit(store)
    claim = store.claim(job_id, "w")
    store.cancel(job_id)
    store.release(job_id, claim.token, Problem("runner_died", "x"))

    events = store.events(job_id)

    assert [event.type for event in events] == [
        "queued",
        "running",
        "cancel_requested",
        "cancelled",
    ]
    assert [event.data["revision"] for event in events] == [1, 2, 3, 4]
    assert store.events(job_id, after=events[1].id) == events[2:]
    assert store.events(job_id, after=events[-1].id) == []


def test_a_stop_is_told_once_outlives_attempts_and_leaves_the_lease_alone(store):
    job_id = submit(store)
    token = store.claim(job_id, "w").token
    seconds = seconds_left(store, job_id)

    store.stop(job_id)
    store.stop(job_id)
    assert seconds_left(store, job_id) > seconds - 2
    assert not store.renew(job_id, token).cancel_requested
    store.release(job_id, token, Problem("drained", "stopped"), counted=False)
    store.claim(job_id, "w")

    events = store.events(job_id)
    assert [event.type for event in events] == [
        "queued", "running", "stop_requested", "requeued", "running",
    ]  # fmt: skip
    assert [event.data["stop_requested"] for event in events] == [False, False, True, True, True]
    assert store.get(job_id).stop_requested


def test_every_change_is_published_by_the_key_of_its_job(store):
    with store.redis.pubsub(ignore_subscribe_messages=True) as listener:
        listener.subscribe(CHANGED)
        # What is ignored is given as None too.
        listener.get_message(timeout=1)
        job_id = submit(store)
        token = store.claim(job_id, "w").token
        store.renew(job_id, token)
        store.cancel(job_id)
        store.release(job_id, token, Problem("drained", "stopped"))
        store.remove(job_id)

        heard = [message["data"] for message in iter(lambda: listener.get_message(timeout=1), None)]

    # A renewal without progress changes nothing that can be seen.
    assert heard == [store.key(job_id)] * 5


def test_a_cancel_shortens_the_lease_to_what_a_living_holder_needs(store):
    job_id = submit(store)
    token = store.claim(job_id, "w").token

    store.cancel(job_id)
    seconds = seconds_left(store, job_id)
    renewal = store.renew(job_id, token)

    assert 0 < seconds <= 2.5
    assert (renewal.held, renewal.cancel_requested) == (True, True)
    assert seconds_left(store, job_id) <= seconds
    assert store.redis.zscore("modelpress:default:open", job_id) / 1000 <= time.time() + seconds


def seconds_left(store, job_id):
    until = int(store.redis.hget(store.key(job_id), "lease_until_ms"))
    return (until - now_ms()) / 1000


def test_a_job_that_is_to_wait_is_not_next_until_its_time(store):
    job_id, other = submit(store), submit(store)
    token = store.claim(job_id, "w").token

    store.release(job_id, token, Problem("storage_full", "x"), delay_ms=300)

    assert store.next_to_run() == other
    store.claim(other, "w")
    assert store.next_to_run() is None
    deadline = time.monotonic() + 5
    while store.next_to_run() != job_id:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_job_of_a_clock_that_is_ahead_is_run_all_the_same(store):
    spec = make_spec().model_copy(update={"created_ms": now_ms() + 3_600_000})
    store.submit(spec)

    assert store.next_to_run() == spec.id


def test_a_success_keeps_its_artifact(store):
    job_id = submit(store)
    token = store.claim(job_id, "w").token
    result = JobResult(id=job_id, state="succeeded", attempt=1, artifact=ARTIFACT, finished_ms=1)

    assert store.finish(result, token) == "finished"
    assert store.get(job_id).artifact == ARTIFACT


def test_pages_hold_every_job_once_newest_first(store):
    ids = [submit(store) for _ in range(7)]

    found, before = [], None
    while True:
        page, before = store.page(3, before)
        found += [job.id for job in page]
        if before is None:
            break

    assert found == sorted(ids, reverse=True)


def test_pages_are_filtered_by_state_and_labels(store):
    first, second = submit(store, team="a"), submit(store, team="b")
    end(store, first)

    assert [job.id for job in store.page(10, state="succeeded")[0]] == [first]
    assert [job.id for job in store.page(10, labels={"team": "b"})[0]] == [second]
    assert store.page(10, state="queued", labels={"team": "a"}) == ([], None)


def test_only_ended_jobs_can_be_removed(store):
    job_id = submit(store)
    assert store.remove(job_id) == "live"
    end(store, job_id, "cancelled")

    assert store.remove(job_id) == "removed"

    assert store.get(job_id) is None
    assert store.redis.keys("*" + job_id + "*") == []
    assert store.page(10) == ([], None)


def test_queue_positions_follow_age(store):
    ids = []
    for n in range(3):
        spec = make_spec().model_copy(update={"created_ms": 1000 + n})
        store.submit(spec)
        ids.append(spec.id)
    store.claim(ids[0], "w")

    assert [store.get(job_id).queue_position for job_id in ids] == [None, 0, 1]


def test_no_token_is_given_twice_even_after_a_loss_of_redis(store):
    job_id = submit(store)
    before = [store.claim(submit(store), "w").token for _ in range(3)]
    store.redis.flushdb()
    after = [store.claim(submit(store), "w").token for _ in range(3)]

    assert sorted({*before, *after}) == before + after
    assert store.get(job_id) is None


@pytest.fixture
def narrow(redis_url):
    redis = connect(redis_url)
    yield JobStore(redis, "narrow", most_queued=2, most_running=1)
    redis.close()


def test_no_more_jobs_wait_than_may(narrow):
    ids = [submit(narrow) for _ in range(2)]
    spec = make_spec()

    assert narrow.submit(spec, idempotency_key="k", fingerprint="f").outcome == "full"
    assert narrow.get(spec.id) is None

    narrow.cancel(ids[0])
    assert narrow.submit(spec, idempotency_key="k", fingerprint="f").outcome == "created"


def test_a_retry_finds_its_job_in_a_full_queue_too(narrow):
    spec = make_spec()
    narrow.submit(spec, idempotency_key="k", fingerprint="f")
    submit(narrow)

    again = narrow.submit(make_spec(), idempotency_key="k", fingerprint="f")

    assert (again.outcome, again.job_id) == ("replayed", spec.id)
    assert narrow.submit(spec).outcome == "exists"


def test_what_was_accepted_before_or_need_not_wait_finds_room(narrow):
    for _ in range(2):
        submit(narrow)
    back, answered = make_spec(), make_spec()
    result = JobResult(id=answered.id, state="succeeded", attempt=0, cache="hit", finished_ms=5)

    assert narrow.submit(back, was_accepted=True).outcome == "created"
    assert narrow.submit(answered, result).outcome == "created"


def test_no_more_jobs_run_than_may(narrow):
    # Of one millisecond, they are in the order of their ids.
    first, second = sorted(submit(narrow) for _ in range(2))
    assert narrow.next_to_run() == first
    claim = narrow.claim(first, "w")

    assert narrow.claim(second, "w").outcome == "full"
    assert narrow.next_to_run() is None
    assert (narrow.get(second).state, narrow.get(second).attempt) == ("queued", 0)

    end(narrow, first)
    assert narrow.next_to_run() == second
    assert (claim.outcome, narrow.claim(second, "w").outcome) == ("claimed", "claimed")
    assert narrow.next_to_run() is None


def test_a_job_whose_worker_was_lost_is_claimed_again_though_as_many_run_as_may(narrow):
    job_id = submit(narrow)
    narrow.claim(job_id, "lost")
    narrow.redis.hset(narrow.key(job_id), "lease_until_ms", 1)

    assert narrow.claim(job_id, "w").outcome == "claimed"


def test_one_tenants_jobs_are_not_counted_for_another(narrow, store):
    for _ in range(3):
        store.claim(submit(store), "w")

    assert narrow.claim(submit(narrow), "w").outcome == "claimed"


def test_a_record_that_is_made_anew_has_no_revision_that_a_client_can_know(store):
    spec = make_spec().model_copy(update={"created_ms": now_ms() - 8000})
    store.submit(spec)
    store.claim(spec.id, "w")
    known = store.get(spec.id).revision
    store.redis.flushdb()

    store.submit(spec.model_copy(update={"created_ms": spec.created_ms - 1000}))
    store.cancel(spec.id)

    assert store.get(spec.id).revision > known + 900
