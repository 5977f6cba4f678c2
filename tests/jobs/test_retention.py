import os
import time

import pytest

from jobs.blobs import now_ms
from jobs.job import JobResult, JobSpec, created_ms_of, new_job_id
from jobs.recipe import load_recipe, parse_recipe
from jobs.retention import expire
from jobs.settings import Settings
from jobs.store import connect
from jobs.tenants import DEFAULT_TENANT, Tenants

RECIPE = load_recipe("steps: [{op: quantize, scheme: w8a16}]")
DAY_MS = 86_400_000
MODEL = "ab" * 32


@pytest.fixture
def stores(tmp_path, redis_url):
    redis = connect(redis_url)
    yield Tenants(Settings(data_dir=tmp_path), redis).stores(DEFAULT_TENANT)
    redis.close()


def keeping(**days):
    return Settings(**{f"keep_{name}_days": value for name, value in days.items()})


def add_job(stores, days, state=None, recipe=RECIPE):
    """Add a job that is as old as that and ended at once, or has not ended."""
    made_ms = now_ms() - round(days * DAY_MS)
    job_id = f"job_{made_ms:012x}" + new_job_id()[16:]
    spec = JobSpec(id=job_id, model=f"mdl_{MODEL}", recipe=recipe, created_ms=made_ms)
    stores.blobs.write_spec(spec)
    result = state and JobResult(id=job_id, state=state, attempt=1, finished_ms=made_ms + 1)
    if result:
        stores.blobs.publish_result(result)
    stores.jobs.submit(spec, result)
    return job_id


def add_model(stores, days, store="models", digest=MODEL):
    with stores.blobs.stage() as staged:
        stores.blobs.publish(store, digest, staged, {"id": digest})
    then = time.time() - days * 86_400
    os.utime(stores.blobs.root / store / digest / "meta.json", (then, then))


def test_an_id_tells_when_its_job_was_made():
    assert abs(created_ms_of(new_job_id()) - now_ms()) < 1000


def test_by_default_all_is_kept(stores):
    for state in ("succeeded", "failed", "cancelled"):
        add_job(stores, 10_000, state)
    add_model(stores, 10_000)

    assert expire(stores, Settings()) == []


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled"])
def test_a_job_goes_when_its_states_days_are_over_and_no_other(stores, state):
    old = {name: add_job(stores, 3, name) for name in ("succeeded", "failed", "cancelled")}
    add_job(stores, 1, state)
    add_job(stores, 3)

    assert expire(stores, keeping(**{state: 2})) == [old[state]]

    assert stores.jobs.get(old[state]) is None
    assert not stores.blobs.job_folder(old[state]).exists()
    assert len(list(stores.blobs.job_ids())) == 4
    assert expire(stores, keeping(**{state: 2})) == []


def test_a_job_that_ran_for_long_is_kept_from_its_end_on(stores):
    job_id = add_job(stores, 3)
    stores.blobs.publish_result(
        JobResult(id=job_id, state="failed", attempt=1, finished_ms=now_ms() - DAY_MS)
    )

    assert expire(stores, keeping(failed=2)) == []


def test_a_damaged_job_is_left_to_a_person_and_hides_no_other(stores):
    damaged, other = add_job(stores, 4, "failed"), add_job(stores, 3, "failed")
    (stores.blobs.job_folder(damaged) / "result.json").write_text("{")

    assert expire(stores, keeping(failed=2)) == [other]
    assert stores.blobs.job_folder(damaged).exists()


def test_models_and_data_sets_go_when_they_were_not_used_for_so_long(stores):
    add_model(stores, 3)
    add_model(stores, 1, digest="cd" * 32)
    add_model(stores, 3, "datasets")

    assert expire(stores, keeping(models=2)) == [f"mdl_{MODEL}", f"ds_{MODEL}"]

    assert list(stores.blobs.digests("models")) == ["cd" * 32]
    assert list((stores.blobs.root / "staging").iterdir()) == []


def test_a_model_and_a_data_set_of_an_open_job_stay(stores):
    add_model(stores, 3)
    add_model(stores, 3, "datasets")
    evaluating = parse_recipe(
        {"steps": [{"op": "prune", "sparsity": 0.5}], "evaluate": {"dataset": f"ds_{MODEL}"}}
    )
    job_id = add_job(stores, 3, recipe=evaluating)

    assert expire(stores, keeping(models=2)) == []

    stores.jobs.cancel(job_id)
    assert expire(stores, keeping(models=2)) == [f"mdl_{MODEL}", f"ds_{MODEL}"]


def test_an_upload_of_the_same_bytes_counts_as_use(stores):
    add_model(stores, 3)
    with stores.blobs.stage() as staged:
        assert not stores.blobs.publish("models", MODEL, staged, {})

    assert expire(stores, keeping(models=2)) == []


def test_a_model_that_comes_into_use_at_that_moment_stays(stores, monkeypatch):
    add_model(stores, 3)
    ages = iter([3 * 86_400, 0])
    now = time.time()
    monkeypatch.setattr("jobs.blobs.time.time", lambda: now - 3 * 86_400 + next(ages))

    assert not stores.blobs.remove_unused("models", MODEL, 2 * 86_400)
    assert stores.blobs.meta("models", MODEL) == {"id": MODEL}
