import io
import threading

import pytest

from service import create_app
from service.parts import EXTENSION


@pytest.fixture
def limited(settings, keys):
    """Makes a client of a tenant of a service with quotas."""
    made = []

    def make(tenant="acme", **quotas):
        app = create_app(settings.model_copy(update=quotas))
        made.append(app)
        text, _ = keys.create(tenant, ["read", "submit"], "test")
        client = app.test_client()
        client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {text}"
        return client

    yield make
    for app in made:
        app.extensions[EXTENSION].tenants.redis.close()
        app.extensions[EXTENSION].celery.close()


def refusal(answer):
    return answer.status_code, answer.json["code"], int(answer.headers["Retry-After"]) > 0


def test_without_quotas_no_answer_speaks_of_them(client):
    assert "RateLimit" not in client.get("/jobs").headers


def test_every_answer_tells_what_is_left_of_the_requests(limited):
    client = limited(quota_requests=120)

    answers = [client.get(path) for path in ("/jobs", "/jobs/x", "/none")]

    assert [answer.headers["RateLimit-Policy"] for answer in answers] == [
        '"requests";q=120;w=60'
    ] * 3
    left = [int(answer.headers["RateLimit"].split("r=")[1].split(";")[0]) for answer in answers]
    assert left == [119, 118, 117]
    assert answers[0].headers["RateLimit"] == '"requests";r=119;t=1'


def test_requests_over_the_quota_are_refused_and_told_when_to_come_back(limited):
    client, other = limited(quota_requests=3), limited("zeta", quota_requests=3)

    answers = [client.get("/jobs") for _ in range(4)]

    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert answers[3].json["code"] == "rate_limited"
    assert 19 <= int(answers[3].headers["Retry-After"]) <= 20
    assert answers[3].headers["RateLimit"].startswith('"requests";r=0;t=')
    assert other.get("/jobs").status_code == 200
    assert client.get("/livez").status_code == 200


def test_the_requests_come_back_with_time(limited):
    client = limited(quota_requests=1200)
    redis = client.application.extensions[EXTENSION].tenants.redis
    client.get("/jobs")
    seconds, microseconds = redis.time()
    earlier = (seconds - 1) * 1_000_000 + microseconds
    redis.hset("modelpress:acme:requests", mapping={"left": "0", "at_us": str(earlier)})

    answer = client.get("/jobs")

    assert answer.status_code == 200
    left = int(answer.headers["RateLimit"].split("r=")[1].split(";")[0])
    assert 19 <= left <= 30
    assert 0 < redis.ttl("modelpress:acme:requests") <= 60


def test_requests_without_a_good_key_are_nobodys(limited):
    client = limited(quota_requests=2)
    for _ in range(3):
        assert client.get("/jobs", headers={"Authorization": "Bearer x"}).status_code == 401

    assert client.get("/jobs").status_code == 200


def test_an_upload_over_the_quota_is_refused_before_it_is_read(limited, make_checkpoint):
    client = limited(quota_bytes=2**18)
    small, large = make_checkpoint(), make_checkpoint({"w": (100, 1024)})
    assert client.post("/models", data=small).status_code == 201

    answer = client.post("/models", data=large)
    form = client.post("/jobs", data={"model": (io.BytesIO(large), "m"), "spec": "{}"})

    assert refusal(answer) == (507, "storage_quota", True)
    assert "Remove models" in answer.json["detail"]
    assert form.json["code"] == "storage_quota"
    assert limited("zeta", quota_bytes=2**22).post("/models", data=large).status_code == 201


def test_what_stores_as_much_as_it_may_submits_nothing(limited, make_checkpoint, recipe):
    client = limited(quota_bytes=2**22)
    model = client.post("/models", data=make_checkpoint({"w": (500, 1024)})).json["id"]
    body, retry = {"model": model, "spec": recipe}, {"Idempotency-Key": "k"}
    assert client.post("/jobs", json=body, headers=retry).status_code == 202

    tight = limited(quota_bytes=2**20)

    assert tight.post("/jobs", json=body, headers=retry).status_code == 202
    assert refusal(tight.post("/jobs", json=body)) == (507, "storage_quota", True)
    assert tight.delete(f"/models/{model}").status_code == 409


def test_no_more_uploads_at_a_time_than_may(limited, tenants, checkpoint):
    client = limited(quota_uploads=1)
    with tenants.stores("acme").blobs.stage():
        refused = client.post("/models", data=checkpoint)
        other = limited("zeta", quota_uploads=1).post("/models", data=checkpoint)

    assert refusal(refused) == (429, "too_many_uploads", True)
    assert other.status_code == 201
    assert client.post("/models", data=checkpoint).status_code == 201


def test_a_full_queue_refuses_and_leaves_nothing(limited, tenants, checkpoint, recipe):
    client = limited(quota_queued=1)
    body = {"model": client.post("/models", data=checkpoint).json["id"], "spec": recipe}
    assert client.post("/jobs", json=body).status_code == 202

    assert refusal(client.post("/jobs", json=body)) == (429, "queue_full", True)
    assert len(list(tenants.stores("acme").blobs.job_ids())) == 1


def test_many_at_once_take_no_more_than_there_is(limited):
    client = limited(quota_requests=10)
    statuses = []

    def ask():
        with client.application.test_client() as own:
            own.environ_base.update(client.environ_base)
            statuses.extend(own.get("/jobs").status_code for _ in range(5))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert statuses.count(200) in (10, 11)
    assert set(statuses) == {200, 429}
