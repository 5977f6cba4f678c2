import io
import json
import tarfile

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from jobs.settings import Settings
from service import create_app

YAML = b"steps:\n- {op: prune, sparsity: 0.5}\n- {op: quantize, scheme: w8a16}\n"


def form(**parts):
    return {name: (io.BytesIO(data), name) for name, data in parts.items()}


def test_one_form_uploads_a_model_and_submits_a_job(client, settings, store, blobs, checkpoint):
    parts = form(model=checkpoint, spec=YAML, labels=b'{"team": "vision"}')

    answer = client.post("/jobs", data=parts)

    job = answer.json
    assert answer.status_code == 202
    assert answer.headers["Location"] == f"/jobs/{job['id']}"
    assert int(answer.headers["Retry-After"]) >= 1
    assert answer.headers["ETag"] == '"1"'
    assert job["state"] == "queued"
    assert job["queue_position"] == 0
    assert job["labels"] == {"team": "vision"}
    assert [step["op"] for step in job["recipe"]["steps"]] == ["prune", "quantize"]
    assert job["links"]["artifact"] == f"/jobs/{job['id']}/artifact"
    assert client.get(f"/models/{job['model']}").status_code == 200
    assert store.get(job["id"]).state == "queued"
    assert blobs.read_spec(job["id"]).model == job["model"]
    assert store.redis.llen(settings.queue) == 1


@pytest.mark.parametrize("order", [("model", "spec", "labels"), ("labels", "spec", "model")])
def test_the_parts_come_in_any_order(client, checkpoint, order):
    parts = {"model": checkpoint, "spec": YAML, "labels": b"{}"}

    answer = client.post("/jobs", data=form(**{name: parts[name] for name in order}))

    assert answer.status_code == 202


def test_a_form_may_name_an_uploaded_model(client, model_id):
    data = {"model": model_id, "spec": YAML.decode()}

    answer = client.post("/jobs", data=data, content_type="multipart/form-data")

    assert answer.status_code == 202
    assert answer.json["model"] == model_id


def test_json_names_an_uploaded_model(client, model_id, recipe):
    labels = {"a/b": "ä"}

    answer = client.post("/jobs", json={"model": model_id, "spec": recipe, "labels": labels})

    assert answer.status_code == 202
    assert answer.json["labels"] == labels


@pytest.mark.parametrize("key", ['"a-key"', "a-key", '"with \\"quotes\\""', "k" * 255])
def test_the_same_key_finds_the_same_job(client, blobs, model_id, recipe, key):
    body = {"model": model_id, "spec": recipe}

    first = client.post("/jobs", json=body, headers={"Idempotency-Key": key})
    again = client.post("/jobs", json=body, headers={"Idempotency-Key": key})

    assert (first.status_code, again.status_code) == (202, 202)
    assert again.json == first.json
    assert "Idempotent-Replayed" not in first.headers
    assert again.headers["Idempotent-Replayed"] == "true"
    assert list(blobs.job_ids()) == [first.json["id"]]


def test_a_key_whose_job_was_removed_finds_nothing(client, model_id, recipe):
    body, headers = {"model": model_id, "spec": recipe}, {"Idempotency-Key": "k"}
    job_id = client.post("/jobs", json=body, headers=headers).json["id"]
    client.post(f"/jobs/{job_id}/cancel")
    client.delete(f"/jobs/{job_id}")

    answer = client.post("/jobs", json=body, headers=headers)

    assert (answer.status_code, answer.json["code"]) == (404, "job_not_found")


def test_a_key_quoted_and_bare_is_one_key(client, model_id, recipe):
    body = {"model": model_id, "spec": recipe}

    first = client.post("/jobs", json=body, headers={"Idempotency-Key": "k1"})
    again = client.post("/jobs", json=body, headers={"Idempotency-Key": '"k1"'})

    assert again.json["id"] == first.json["id"]


@pytest.mark.parametrize(
    "change", [{"labels": {"a": "b"}}, {"spec": {"steps": [{"op": "prune", "sparsity": 0.1}]}}]
)
def test_a_key_for_another_request_is_refused(client, blobs, model_id, recipe, change):
    body = {"model": model_id, "spec": recipe}
    first = client.post("/jobs", json=body, headers={"Idempotency-Key": "k"})

    answer = client.post("/jobs", json=body | change, headers={"Idempotency-Key": "k"})

    assert (answer.status_code, answer.json["code"]) == (422, "idempotency_key_reused")
    assert list(blobs.job_ids()) == [first.json["id"]]


@pytest.mark.parametrize("key", ["", '""', "k" * 256, "ü"])
def test_a_key_of_another_form_is_refused(client, model_id, recipe, key):
    answer = client.post(
        "/jobs", json={"model": model_id, "spec": recipe}, headers={"Idempotency-Key": key}
    )

    assert (answer.status_code, answer.json["code"]) == (400, "malformed_request")


def test_compressed_tensors_needs_a_transformers_folder(client, model_id, recipe):
    spec = {**recipe, "output": {"format": "compressed-tensors"}}

    answer = client.post("/jobs", json={"model": model_id, "spec": spec})

    assert (answer.status_code, answer.json["code"]) == (422, "output_unsupported")


def test_a_target_that_int8_does_not_reach_is_refused_with_the_smallest_that_works(
    client, model_id
):
    step = {"op": "quantize", "scheme": "w8a16"}

    def submit(target):
        spec = {"steps": [step | {"target_bytes": target}]}
        return client.post("/jobs", json={"model": model_id, "spec": spec})

    refused = submit(10)
    smallest = refused.json["smallest_bytes"]

    assert (refused.status_code, refused.json["code"]) == (422, "target_unreachable")
    assert refused.json["errors"][0]["pointer"] == "/spec/steps/0/target_bytes"
    assert submit(smallest - 1).json["smallest_bytes"] == smallest
    assert submit(smallest).status_code == 202
    assert submit("1GiB").json["code"] == "nothing_changed"


def test_a_model_that_is_quantized_already_is_refused(client, checkpoint, recipe):
    buffer = io.BytesIO()
    config = json.dumps({"quantization_config": {"quant_method": "awq"}}).encode()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in (("config.json", config), ("model.safetensors", checkpoint)):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    model = client.post("/models", data=buffer.getvalue()).json["id"]

    answer = client.post("/jobs", json={"model": model, "spec": recipe})

    assert (answer.status_code, answer.json["code"]) == (422, "already_quantized")


@pytest.fixture
def lonely_client(tmp_path, redis_url):
    """A service whose Redis is not there."""
    url = f"unix://{tmp_path}/none.sock"
    app = create_app(Settings(data_dir=tmp_path / "data", redis_url=url))
    return app.test_client()


def test_without_redis_a_submit_leaves_nothing(lonely_client, tmp_path, checkpoint):
    answer = lonely_client.post("/jobs", data=form(model=checkpoint, spec=YAML))

    assert (answer.status_code, answer.json["code"]) == (503, "store_unavailable")
    assert int(answer.headers["Retry-After"]) > 0
    assert [path for path in (tmp_path / "data").rglob("*") if path.is_file()] == []


def test_without_redis_a_submit_by_id_leaves_no_spec(lonely_client, tmp_path, checkpoint, recipe):
    model = lonely_client.post("/models", data=checkpoint).json["id"]

    answer = lonely_client.post("/jobs", json={"model": model, "spec": recipe})

    assert (answer.status_code, answer.json["code"]) == (503, "store_unavailable")
    assert list((tmp_path / "data" / "jobs").iterdir()) == []


def test_a_submit_whose_answer_was_lost_is_still_accepted(
    client, store, blobs, model_id, recipe, monkeypatch
):
    submit = store.submit

    def lose_the_answer(*args, **kwargs):
        submit(*args, **kwargs)
        raise RedisConnectionError("reset by peer")

    monkeypatch.setattr(store, "submit", lose_the_answer)

    answer = client.post("/jobs", json={"model": model_id, "spec": recipe})

    assert answer.status_code == 202
    assert blobs.read_spec(answer.json["id"]) is not None
