import pytest

from jobs.blobs import BlobStore, now_ms
from jobs.job import JobSpec, new_job_id
from jobs.recipe import load_recipe


@pytest.fixture
def blobs(tmp_path):
    return BlobStore(tmp_path, "default")


@pytest.fixture
def job_id(blobs):
    spec = JobSpec(
        id=new_job_id(),
        model="mdl_" + "ab" * 32,
        recipe=load_recipe("steps: [{op: quantize, scheme: w8a16}]"),
        created_ms=now_ms(),
    )
    blobs.write_spec(spec)
    assert blobs.read_spec(spec.id) == spec
    return spec.id
