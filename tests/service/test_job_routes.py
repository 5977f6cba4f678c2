import threading
import time

import pytest

from jobs.blobs import now_ms
from jobs.job import JobSpec, Progress, new_job_id
from jobs.problems import Problem
from jobs.recipe import parse_recipe

PROGRESS = Progress(phase="compress", step=1, steps=1, done=1, total=2, unit="bytes")


@pytest.fixture
def submit(client, model_id, recipe):
    def make(**labels):
        return client.post(
            "/jobs", json={"model": model_id, "spec": recipe, "labels": labels}
        ).json["id"]

    return make


def test_the_etag_is_the_revision_and_saves_the_body(client, store, job_id):
    first = client.get(f"/jobs/{job_id}")
    unchanged = client.get(f"/jobs/{job_id}", headers={"If-None-Match": first.headers["ETag"]})
    store.claim(job_id, "w")
    changed = client.get(f"/jobs/{job_id}", headers={"If-None-Match": first.headers["ETag"]})

    assert first.headers["ETag"] == '"1"'
    assert (unchanged.status_code, unchanged.data) == (304, b"")
    assert unchanged.headers["ETag"] == '"1"'
    assert (changed.status_code, changed.headers["ETag"]) == (200, '"2"')
    assert changed.json["state"] == "running"


def test_a_long_poll_answers_when_the_job_changes(client, app, store, job_id):
    changer = threading.Timer(0.2, store.claim, (job_id, "w"))
    started = time.monotonic()
    changer.start()

    answer = client.get(f"/jobs/{job_id}", headers={"Prefer": "wait=30", "If-None-Match": '"1"'})

    changer.join()
    assert answer.json["state"] == "running"
    assert answer.headers["Preference-Applied"] == "wait=30"
    assert 0.1 < time.monotonic() - started < 5


def test_a_long_poll_ends_with_its_time(client, job_id):
    started = time.monotonic()

    answer = client.get(f"/jobs/{job_id}", headers={"Prefer": "wait=1", "If-None-Match": '"1"'})

    assert answer.status_code == 304
    assert 0.9 < time.monotonic() - started < 5


@pytest.mark.parametrize("known", ['"0"', '"7-sha256"'])
def test_a_long_poll_answers_at_once_where_the_client_is_behind(client, job_id, known):
    started = time.monotonic()

    answer = client.get(f"/jobs/{job_id}", headers={"Prefer": "wait=30", "If-None-Match": known})

    assert answer.status_code == 200
    assert time.monotonic() - started < 2


def test_a_long_poll_answers_at_once_where_the_job_has_ended(client, job_id, finish):
    finish(job_id, {"model.safetensors": b"x"})
    revision = client.get(f"/jobs/{job_id}").headers["ETag"]
    started = time.monotonic()

    answer = client.get(f"/jobs/{job_id}", headers={"Prefer": "wait=30", "If-None-Match": revision})

    assert answer.status_code == 304
    assert "Retry-After" not in answer.headers
    assert time.monotonic() - started < 2


def test_a_long_poll_without_a_seat_answers_at_once(app, client, job_id):
    app.extensions["modelpress"].room.close()
    started = time.monotonic()

    answer = client.get(f"/jobs/{job_id}", headers={"Prefer": "wait=30"})

    assert answer.status_code == 200
    assert int(answer.headers["Retry-After"]) >= 1
    assert time.monotonic() - started < 2


def test_a_cancel_of_a_running_job_is_written_down(client, store, blobs, job_id):
    store.claim(job_id, "w")

    answer = client.post(f"/jobs/{job_id}/cancel")

    assert (answer.status_code, answer.json["cancel_requested"]) == (202, True)
    assert blobs.has_cancel(job_id)


def test_pages_follow_one_another_to_the_end(client, submit):
    made = [submit() for _ in range(5)]
    seen, address = [], "/jobs?limit=2"
    for _ in range(3):
        page = client.get(address)
        seen += [job["id"] for job in page.json["data"]]
        address = page.headers.get("Link", "").partition(">")[0].removeprefix("<")

    assert seen == made[::-1]
    assert page.json["next_cursor"] is None
    assert address == ""


def test_a_list_is_narrowed_by_state_and_labels(client, submit, finish):
    one, two, three = submit(a="1", b="2"), submit(a="1"), submit(a="2")
    finish(two, {"m": b"x"})

    def ids(query):
        return [job["id"] for job in client.get(f"/jobs?{query}").json["data"]]

    assert ids("label=a:1") == [two, one]
    assert ids("label=a:1&label=b:2") == [one]
    assert ids("state=succeeded") == [two]
    assert ids("state=queued&label=a:2") == [three]
    assert ids("label=a:9") == []


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("limit=0", "malformed_request"),
        ("limit=201", "malformed_request"),
        ("limit=x", "malformed_request"),
        ("limit=1&limit=2", "malformed_request"),
        ("state=done", "malformed_request"),
        ("label=novalue", "malformed_request"),
        ("colour=red", "malformed_request"),
        ("cursor=%00", "invalid_cursor"),
        ("cursor=aaa", "invalid_cursor"),
        ("cursor=ü", "invalid_cursor"),
    ],
)
def test_a_wrong_query_is_refused(client, query, code):
    answer = client.get(f"/jobs?{query}")

    assert (answer.status_code, answer.json["code"]) == (400, code)


def test_a_queued_job_is_cancelled_at_once_and_for_good(client, blobs, job_id):
    answer = client.post(f"/jobs/{job_id}/cancel")
    again = client.post(f"/jobs/{job_id}/cancel")

    assert (answer.status_code, answer.json["state"]) == (200, "cancelled")
    assert again.json == answer.json
    assert blobs.read_result(job_id).state == "cancelled"


def test_a_running_job_is_asked_to_stop(client, store, job_id):
    token = store.claim(job_id, "w").token

    answer = client.post(f"/jobs/{job_id}/cancel")

    assert (answer.status_code, answer.json["state"]) == (202, "running")
    assert answer.json["cancel_requested"] is True
    assert store.renew(job_id, token).cancel_requested


@pytest.fixture
def training_id(store, blobs, model_id):
    """The id of a queued job that trains."""
    step = {"op": "finetune", "dataset": "ds_" + "0" * 64, "steps": 9}
    recipe = parse_recipe({"steps": [step]})
    spec = JobSpec(id=new_job_id(), model=model_id, recipe=recipe, created_ms=now_ms())
    blobs.write_spec(spec)
    store.submit(spec)
    return spec.id


def test_a_cancel_that_keeps_asks_for_the_end_of_the_training_alone(
    client, store, blobs, training_id
):
    token = store.claim(training_id, "w").token

    answers = [client.post(f"/jobs/{training_id}/cancel", json={"keep": True}) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [202, 202]
    assert (answers[0].json["stop_requested"], answers[0].json["cancel_requested"]) == (True, False)
    assert answers[1].json["revision"] == answers[0].json["revision"]
    assert blobs.has_stop(training_id)
    assert not blobs.has_cancel(training_id)
    assert not store.renew(training_id, token).cancel_requested
    assert [event.type for event in store.events(training_id)][-1] == "stop_requested"


def test_a_plain_cancel_ends_what_was_asked_to_keep(client, store, training_id):
    token = store.claim(training_id, "w").token
    client.post(f"/jobs/{training_id}/cancel", json={"keep": True})

    answer = client.post(f"/jobs/{training_id}/cancel")

    assert (answer.json["stop_requested"], answer.json["cancel_requested"]) == (True, True)
    assert store.renew(training_id, token).cancel_requested


def test_a_job_that_waits_to_go_on_is_asked_to_keep_what_it_has(client, store, blobs, training_id):
    token = store.claim(training_id, "w").token
    blobs.work_folder(training_id, token)
    store.release(training_id, token, Problem("drained", "x"), counted=False)

    answer = client.post(f"/jobs/{training_id}/cancel", json={"keep": True})

    assert (answer.status_code, answer.json["state"]) == (202, "queued")
    assert answer.json["stop_requested"]


def test_nothing_is_kept_of_what_was_never_begun_or_trains_nothing(
    client, store, blobs, training_id, job_id
):
    store.claim(job_id, "w")

    answers = [
        client.post(f"/jobs/{name}/cancel", json={"keep": True}) for name in (training_id, job_id)
    ]

    assert {(answer.status_code, answer.json["code"]) for answer in answers} == {
        (409, "nothing_to_keep")
    }
    assert not blobs.has_stop(training_id)
    assert store.get(training_id).state == "queued"
    assert not store.get(job_id).cancel_requested


def test_a_job_that_has_ended_stays_as_it_is_whoever_wants_to_keep(client, finish, training_id):
    finish(training_id, {"m": b"x"})

    answer = client.post(f"/jobs/{training_id}/cancel", json={"keep": True})

    assert (answer.status_code, answer.json["state"]) == (200, "succeeded")
    assert not answer.json["stop_requested"]


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b'{"keep": true', "application/json", 400),
        (b'{"keep_best": true}', "application/json", 400),
        (b'{"keep": "best"}', "application/json", 400),
        (b"keep=true", "application/x-www-form-urlencoded", 415),
        (b'"' + b"k" * 2**20 + b'"', "application/json", 413),
    ],
)
def test_a_cancel_that_is_not_understood_ends_nothing(
    client, store, training_id, body, kind, status
):
    store.claim(training_id, "w")

    answer = client.post(f"/jobs/{training_id}/cancel", data=body, content_type=kind)

    assert answer.status_code == status
    job = store.get(training_id)
    assert (job.cancel_requested, job.stop_requested) == (False, False)


def test_only_a_job_that_has_ended_is_removed(client, blobs, job_id, finish):
    early = client.delete(f"/jobs/{job_id}")
    finish(job_id, {"m": b"x"})
    late = client.delete(f"/jobs/{job_id}")

    assert (early.status_code, early.json["code"]) == (409, "job_not_terminal")
    assert late.status_code == 204
    assert client.get(f"/jobs/{job_id}").json["code"] == "job_not_found"
    assert not blobs.job_folder(job_id).exists()


@pytest.mark.parametrize("method", ["get", "delete"])
@pytest.mark.parametrize("wrong", ["job_1", "job_" + "0" * 32, "x" * 3000, "%00"])
def test_a_job_that_does_not_exist_is_not_found(client, method, wrong):
    answer = getattr(client, method)(f"/jobs/{wrong}")

    assert (answer.status_code, answer.json["code"]) == (404, "job_not_found")


def test_digests_that_come_late_change_the_etag(client, blobs, job_id, finish):
    finish(job_id, {"m": b"x"})
    before = client.get(f"/jobs/{job_id}")
    (blobs.job_folder(job_id) / "sha256.json").write_text('{"m": "' + "ab" * 32 + '"}')
    after = client.get(f"/jobs/{job_id}", headers={"If-None-Match": before.headers["ETag"]})

    assert before.json["artifact"]["files"][0]["sha256"] is None
    assert after.status_code == 200
    assert after.json["artifact"]["files"][0]["sha256"] == "ab" * 32
    assert after.headers["ETag"] == f'"{after.json["revision"]}-sha256"'


def test_a_job_whose_record_was_lost_is_not_said_to_be_unknown(client, store, job_id):
    store.redis.flushdb()

    answer = client.get(f"/jobs/{job_id}")

    assert (answer.status_code, answer.json["code"]) == (503, "store_unavailable")
    assert answer.json["retryable"]
    assert int(answer.headers["Retry-After"]) > 0
