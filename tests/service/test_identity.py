import pytest

ADDRESSES = [
    ("GET", ""),
    ("DELETE", ""),
    ("POST", "/cancel"),
    ("GET", "/events"),
    ("GET", "/report"),
    ("GET", "/artifact"),
    ("GET", "/artifact/model.safetensors"),
]


@pytest.fixture
def foreign(tenants, client, job_id, store, blobs):
    """A job and a model that another tenant has, and this one has not."""
    theirs = tenants.stores("theirs")
    spec = blobs.read_spec(job_id)
    theirs.blobs.write_spec(spec)
    theirs.jobs.submit(spec)
    digest = spec.model.removeprefix("mdl_")
    blobs.files("models", digest).parent.rename(theirs.blobs.files("models", digest).parent)
    store.cancel(job_id)
    client.delete(f"/jobs/{job_id}")
    return spec


def body_of(answer, identifier):
    members = answer.json
    del members["instance"]
    return answer.status_code, str(members).replace(identifier, "ID")


@pytest.mark.parametrize(("method", "path"), ADDRESSES)
def test_the_job_of_another_tenant_is_like_one_that_never_was(client, foreign, method, path):
    unknown = "job_" + "0" * 32

    answers = [client.open(f"/jobs/{one}{path}", method=method) for one in (foreign.id, unknown)]

    assert body_of(answers[0], foreign.id) == body_of(answers[1], unknown)
    assert answers[0].status_code == 404


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_the_model_of_another_tenant_is_like_one_that_never_was(client, foreign, method):
    unknown = "mdl_" + "0" * 64

    answers = [client.open(f"/models/{one}", method=method) for one in (foreign.model, unknown)]

    assert body_of(answers[0], foreign.model) == body_of(answers[1], unknown)
    assert answers[0].status_code == 404


@pytest.mark.parametrize("address", ["/jobs", "/plans"])
def test_the_model_of_another_tenant_cannot_be_named_in_a_body(client, foreign, recipe, address):
    answer = client.post(address, json={"model": foreign.model, "spec": recipe})

    assert (answer.status_code, answer.json["code"]) == (404, "model_not_found")


def test_the_jobs_of_another_tenant_are_not_listed(client, foreign):
    assert client.get("/jobs").json["data"] == []


@pytest.mark.parametrize("name", ["X-Tenant", "Tenant", "X-Forwarded-User"])
def test_no_input_names_the_tenant(client, foreign, name):
    headers, query = {name: "theirs"}, {"limit": 5}

    assert client.get("/jobs", headers=headers, query_string=query).json["data"] == []
    assert client.get("/jobs", query_string={"tenant": "theirs"}).status_code == 400
