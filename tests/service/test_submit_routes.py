import io
import json
import tarfile

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from jobs.reaper import Reaper
from jobs.settings import Settings
from service import create_app
from service.parts import EXTENSION

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


def upload_folder(client, checkpoint, config) -> str:
    buffer = io.BytesIO()
    files = (("config.json", json.dumps(config).encode()), ("model.safetensors", checkpoint))
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return client.post("/models", data=buffer.getvalue()).json["id"]


def test_a_data_set_is_named_by_the_recipe_and_stays_while_the_job_is_open(
    client, checkpoint, recipe
):
    model = upload_folder(client, checkpoint, {"model_type": "bert"})
    dataset = client.post("/datasets", data=b'{"text": "a"}').json["id"]
    spec = recipe | {"evaluate": {"dataset": dataset}}

    job = client.post("/jobs", json={"model": model, "spec": spec})
    refused = client.delete(f"/datasets/{dataset}")
    client.post(f"/jobs/{job.json['id']}/cancel")

    assert job.status_code == 202
    assert job.json["recipe"]["evaluate"]["dataset"] == dataset
    assert (refused.status_code, refused.json["code"]) == (409, "dataset_in_use")
    assert job.json["id"] in refused.json["detail"]
    assert client.delete(f"/datasets/{dataset}").status_code == 204


@pytest.mark.parametrize(
    ("more", "status", "code", "pointer"),
    [
        ({"evaluate": {"dataset": "ds_" + "0" * 64}}, 404, "dataset_not_found", None),
        ({"evaluate": {"dataset": "data.jsonl"}}, 422, "invalid_recipe", "/spec/evaluate/dataset"),
        ({"evaluate": {"rows": 0}}, 422, "invalid_recipe", "/spec/evaluate/rows"),
        ({"gate": {"min_cosine": 0.9}}, 422, "invalid_recipe", "/spec"),
        (
            {
                "evaluate": {},
                "output": {"format": "safetensors"},
                "gate": {"max_latency_ratio": 2.0},
            },
            422,
            "evaluation_unsupported",
            "/spec/gate/max_latency_ratio",
        ),
    ],
)
def test_an_evaluation_that_cannot_be_is_refused_at_once(
    client, checkpoint, more, status, code, pointer
):
    model = upload_folder(client, checkpoint, {"model_type": "bert"})
    spec = {"steps": [{"op": "quantize", "scheme": "w8a16"}], **more}

    answer = client.post("/jobs", json={"model": model, "spec": spec})

    assert (answer.status_code, answer.json["code"]) == (status, code)
    assert [error["pointer"] for error in answer.json["errors"]] == [pointer] * bool(pointer)


def test_a_model_without_a_config_cannot_be_evaluated(client, model_id, recipe):
    answer = client.post("/jobs", json={"model": model_id, "spec": recipe | {"evaluate": {}}})

    assert (answer.status_code, answer.json["code"]) == (422, "evaluation_unsupported")
    assert answer.json["errors"][0]["pointer"] == "/spec/evaluate"


def test_a_model_without_a_config_cannot_be_shrunk(client, model_id, recipe):
    spec = recipe | {"steps": [{"op": "shrink", "width": 0.5}]}

    answer = client.post("/jobs", json={"model": model_id, "spec": spec})

    assert answer.status_code == 422
    assert answer.json["code"] == "shrink_unsupported"
    assert answer.json["errors"][0]["pointer"] == "/spec/steps/0"


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ({"op": "shrink"}, "width is needed"),
        ({"op": "shrink", "width": 1}, "less than 1"),
        ({"op": "shrink", "width": 0.5, "importance": "random"}, "magnitude"),
        ({"op": "shrink", "width": 0.5, "importance": "taylor"}, "a calibrate section"),
    ],
)
def test_a_shrink_step_that_is_none_is_refused(client, model_id, step, said):
    answer = client.post("/jobs", json={"model": model_id, "spec": {"steps": [step]}})

    assert answer.status_code == 422
    assert said in answer.json["detail"]


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
    config = {"quantization_config": {"quant_method": "awq"}}
    model = upload_folder(client, checkpoint, config)

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
    assert list((tmp_path / "data" / "tenants" / "default" / "jobs").iterdir()) == []


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


def test_a_submit_of_which_nobody_knows_what_became_stays_on_the_disk(
    client, store, blobs, model_id, recipe, monkeypatch
):
    submit = store.submit

    def die_after(*args, **kwargs):
        submit(*args, **kwargs)
        raise RedisConnectionError("reset by peer")

    def refuse(_):
        raise RedisConnectionError("Connection refused")

    with monkeypatch.context() as patch:
        patch.setattr(store, "submit", die_after)
        patch.setattr(store, "get", refuse)
        body = {"model": model_id, "spec": recipe}
        answer = client.post("/jobs", json=body, headers={"Idempotency-Key": "k"})
    again = client.post("/jobs", json=body, headers={"Idempotency-Key": "k"})

    assert (answer.status_code, answer.json["code"]) == (503, "store_unavailable")
    assert (again.status_code, again.headers["Idempotent-Replayed"]) == (202, "true")
    assert blobs.read_spec(again.json["id"]) is not None


@pytest.fixture
def made(client, job_id, finish, report):
    """A job that has its artifact."""
    finish(job_id, {"model.safetensors": b"weights"}, report=report)
    return client.get(f"/jobs/{job_id}").json


def test_an_equal_job_has_its_artifact_at_once(client, made, recipe, report):
    body = {"model": made["model"], "spec": recipe, "labels": {"a": "b"}}

    answer = client.post("/jobs", json=body)

    job = answer.json
    assert answer.status_code == 202
    assert answer.headers["Location"] == f"/jobs/{job['id']}"
    assert "Retry-After" not in answer.headers
    assert job["id"] != made["id"]
    assert (job["state"], job["cache"]) == ("succeeded", "hit")
    assert (job["attempt"], job["attempts"], job["started_at"]) == (0, [], None)
    assert (job["labels"], job["artifact"]) == ({"a": "b"}, made["artifact"])
    assert client.get(f"/jobs/{job['id']}/report").json == report
    assert client.get(f"/jobs/{job['id']}/artifact").data == b"weights"
    events = client.get(f"/jobs/{job['id']}/events", headers={"Accept": "application/json"}).json
    assert [event["type"] for event in events["data"]] == ["queued", "succeeded"]


def test_a_form_finds_an_equal_job_too(client, made, recipe, checkpoint):
    spec = json.dumps(recipe | {"budget": {"runtime": "1h"}}).encode()

    answer = client.post("/jobs", data=form(model=checkpoint, spec=spec))

    assert answer.json["cache"] == "hit"


def test_removing_an_equal_job_leaves_the_artifact_of_the_other(client, made, recipe):
    job_id = client.post("/jobs", json={"model": made["model"], "spec": recipe}).json["id"]

    assert client.delete(f"/jobs/{made['id']}").status_code == 204

    assert client.get(f"/jobs/{job_id}/artifact").data == b"weights"


def test_a_gate_that_an_equal_job_does_not_pass_fails_the_job(client, made, recipe):
    spec = recipe | {"gate": {"max_size_ratio": 0.1}}

    job = client.post("/jobs", json={"model": made["model"], "spec": spec}).json

    assert (job["state"], job["cache"], job["artifact"]) == ("failed", "hit", None)
    assert job["failure"]["code"] == "gate_failed"
    assert client.get(f"/jobs/{job['id']}/report").status_code == 200


def test_a_job_that_is_to_be_run_is_queued(client, made, recipe):
    body = {"model": made["model"], "spec": recipe}

    answer = client.post("/jobs", json=body, headers={"Cache-Control": "no-cache"})

    assert (answer.json["state"], answer.json["cache"]) == ("queued", "bypass")


def test_a_job_that_differs_is_queued(client, made):
    spec = {"steps": [{"op": "quantize", "scheme": "w8a8"}]}

    job = client.post("/jobs", json={"model": made["model"], "spec": spec}).json

    assert (job["state"], job["cache"]) == ("queued", None)


def test_the_same_key_finds_an_equal_job_again(client, blobs, made, recipe):
    body, headers = {"model": made["model"], "spec": recipe}, {"Idempotency-Key": "k"}

    first, again = (client.post("/jobs", json=body, headers=headers) for _ in range(2))

    assert first.json["cache"] == "hit"
    assert again.json == first.json
    assert again.headers["Idempotent-Replayed"] == "true"
    assert sorted(blobs.job_ids()) == sorted([made["id"], first.json["id"]])


def test_an_equal_job_comes_back_after_a_loss_of_redis(
    client, app, store, tenants, settings, made, recipe
):
    job = client.post("/jobs", json={"model": made["model"], "spec": recipe}).json
    store.redis.flushall()

    Reaper(tenants, app.extensions[EXTENSION].celery, settings).rebuild()

    assert client.get(f"/jobs/{job['id']}").json == job
    again = client.post("/jobs", json={"model": made["model"], "spec": recipe}).json
    assert again["cache"] == "hit"
