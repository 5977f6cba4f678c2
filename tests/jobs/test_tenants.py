import json
from pathlib import Path

import pytest

from jobs.blobs import now_ms
from jobs.equal_jobs import answer, remember
from jobs.job import Artifact, ArtifactFile, JobResult, JobSpec, new_job_id
from jobs.recipe import load_recipe
from jobs.settings import Settings
from jobs.store import connect
from jobs.tenants import Tenants, is_tenant

RECIPE = load_recipe("steps: [{op: quantize, scheme: w8a16}]")
MODEL = "mdl_" + "ab" * 32
REPORT = json.loads((Path(__file__).parents[1] / "modelpress" / "report.json").read_text())


@pytest.fixture
def tenants(tmp_path, redis_url):
    redis = connect(redis_url)
    yield Tenants(Settings(data_dir=tmp_path, redis_url=redis_url), redis)
    redis.close()


@pytest.fixture
def ours(tenants):
    return tenants.stores("ours")


@pytest.fixture
def theirs(tenants):
    return tenants.stores("theirs")


def submit(stores, **more):
    spec = JobSpec(id=new_job_id(), model=MODEL, recipe=RECIPE, created_ms=now_ms())
    stores.blobs.write_spec(spec)
    return spec, stores.jobs.submit(spec, **more)


@pytest.mark.parametrize("name", ["a", "0", "acme", "team-7", "x" * 32])
def test_a_name_of_small_letters_digits_and_hyphens_is_a_tenants(name):
    assert is_tenant(name)


@pytest.mark.parametrize(
    "name", ["", "-a", "A", "a b", "a/b", "..", "a:b", "a\n", "é", "x" * 33, "a_b", "*"]
)
def test_nothing_else_is_a_tenants_name_or_gets_a_folder(tenants, name, tmp_path):
    before = sorted(tmp_path.rglob("*"))

    assert not is_tenant(name)
    with pytest.raises(ValueError, match="no tenant's name"):
        tenants.stores(name)
    assert sorted(tmp_path.rglob("*")) == before


def test_every_key_and_every_path_begins_with_the_tenant(ours, tmp_path):
    submit(ours, idempotency_key="k", fingerprint="f")
    ours.jobs.claim(next(ours.blobs.job_ids()), "w")

    assert {key.split(":")[1] for key in ours.jobs.redis.scan_iter("*")} == {"ours"}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.relative_to(tmp_path).parts[:2] for path in files} == {("tenants", "ours")}


def test_the_job_of_another_tenant_cannot_be_found_claimed_cancelled_or_removed(ours, theirs):
    spec, _ = submit(ours)

    assert theirs.jobs.get(spec.id) is None
    assert theirs.jobs.claim(spec.id, "w").outcome == "missing"
    assert theirs.jobs.cancel(spec.id) == theirs.jobs.remove(spec.id) == "missing"
    assert theirs.jobs.page(10) == ([], None)
    assert theirs.jobs.counts() == {"queued": 0, "running": 0, "known": 0}
    assert theirs.blobs.read_spec(spec.id) is None
    assert ours.jobs.get(spec.id).state == "queued"


def test_the_same_idempotency_key_of_two_tenants_makes_two_jobs(ours, theirs):
    made = [submit(stores, idempotency_key="k", fingerprint="f")[1] for stores in (ours, theirs)]

    assert [submitted.outcome for submitted in made] == ["created", "created"]
    assert submit(ours, idempotency_key="k", fingerprint="f")[1].job_id == made[0].job_id


def test_the_same_model_of_two_tenants_is_stored_twice(ours, theirs):
    for stores in (ours, theirs):
        with stores.blobs.stage() as staged:
            (staged / "files" / "m").write_bytes(b"m")
            assert stores.blobs.publish("models", "ab" * 32, staged, {}) is True

    ours.blobs.remove("models", "ab" * 32)
    assert theirs.blobs.meta("models", "ab" * 32) == {}


def test_the_artifact_of_another_tenants_equal_job_is_no_answer(ours, theirs):
    made, _ = submit(ours)
    folder = ours.blobs.job_folder(made.id) / "artifact-1"
    folder.mkdir()
    (folder / "f").write_bytes(b"f")
    artifact = Artifact(bytes=1, digest="d", files=(ArtifactFile(path="f", bytes=1, blake3="d"),))
    ours.blobs.publish_result(
        JobResult(
            id=made.id,
            state="succeeded",
            attempt=1,
            artifact=artifact,
            artifact_folder=folder.name,
            finished_ms=1,
        )
    )
    ours.blobs.write_report(made.id, REPORT)
    remember(ours.blobs, made)

    asked = [submit(stores)[0] for stores in (ours, theirs)]

    assert answer(ours.blobs, asked[0]) is not None
    assert answer(theirs.blobs, asked[1]) is None


def test_every_tenant_with_a_folder_is_found_by_whoever_starts_later(tenants, ours, theirs):
    (ours.blobs.root.parent / "Not-a-tenant").mkdir()
    (ours.blobs.root.parent / "a-file").touch()

    later = Tenants(tenants._settings, tenants.redis)

    assert [stores.tenant for stores in later.every()] == ["default", "ours", "theirs"]
    assert later.stores("ours") is later.stores("ours")
