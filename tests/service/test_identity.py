import re
from datetime import UTC, datetime

import pytest
from structlog.testing import capture_logs

from jobs.keys import SCOPES, KeyStore
from service import create_app
from service.identity import is_loopback
from service.parts import EXTENSION

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


def test_what_was_measured_of_another_tenants_model_is_not_there(client, foreign):
    addresses = [f"/models/{one}/sensitivities" for one in (foreign.model, "mdl_" + "0" * 64)]
    answers = [client.get(address) for address in addresses]
    goal = {"model": foreign.model, "goal": {"target_bytes": 9}}

    assert body_of(answers[0], foreign.model) == body_of(answers[1], "mdl_" + "0" * 64)
    assert answers[0].json["code"] == "model_not_found"
    assert client.post("/plans", json=goal).json["code"] == "model_not_found"


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


ROUTES = [
    ("GET", "/jobs", "read"),
    ("POST", "/jobs", "submit"),
    ("GET", "/jobs/x", "read"),
    ("DELETE", "/jobs/x", "submit"),
    ("POST", "/jobs/x/cancel", "submit"),
    ("GET", "/jobs/x/events", "read"),
    ("GET", "/jobs/x/report", "read"),
    ("GET", "/jobs/x/artifact", "read"),
    ("GET", "/jobs/x/artifact/f", "read"),
    ("POST", "/models", "submit"),
    ("GET", "/models", "read"),
    ("GET", "/models/x", "read"),
    ("GET", "/models/x/sensitivities", "read"),
    ("DELETE", "/models/x", "submit"),
    ("POST", "/datasets", "submit"),
    ("GET", "/datasets", "read"),
    ("GET", "/datasets/x", "read"),
    ("DELETE", "/datasets/x", "submit"),
    ("POST", "/plans", "read"),
    ("GET", "/keys", "admin"),
    ("POST", "/keys", "admin"),
    ("DELETE", "/keys/x", "admin"),
    ("GET", "/capabilities", "read"),
    ("GET", "/metrics", "read"),
]
OPEN = ["/livez", "/readyz", "/openapi.yaml", "/docs", "/docs/problems", "/docs/assets/docs.js"]


def test_every_route_stands_in_one_of_the_two_lists(app):
    rules = {
        (method, re.sub(r"<[a-z_]+>", "x", rule.rule).replace("<path:path>", "f"))
        for rule in app.url_map.iter_rules()
        for method in rule.methods - {"OPTIONS", "HEAD"}
    }

    listed = {(method, path) for method, path, _ in ROUTES} | {("GET", path) for path in OPEN}
    assert {(m, p.replace("<path:name>", "docs.js")) for m, p in rules} == listed


@pytest.mark.parametrize(("method", "path", "scope"), ROUTES)
def test_a_route_takes_a_key_with_its_scope_and_no_other(client, ask, method, path, scope):
    others = [one for one in SCOPES if one != scope]
    without, able = ask("default", *others), ask("default", scope)

    nobody = client.open(path, method=method)
    refused = without.open(path, method=method)

    assert (nobody.status_code, nobody.json["code"]) == (401, "key_required")
    assert nobody.headers["WWW-Authenticate"] == "Bearer"
    assert (refused.status_code, refused.json["code"]) == (403, "scope_missing")
    assert refused.json["scope"] == scope
    assert able.open(path, method=method).status_code not in (401, 403)


@pytest.mark.parametrize("path", OPEN)
def test_what_everybody_may_ask_needs_no_key(client, ask, path):
    ask("default", "read")

    with client.get(path) as answer:
        assert answer.status_code == 200


@pytest.mark.parametrize("path", ["/no/such/address", "/livez/x"])
def test_not_even_an_unknown_address_is_told_without_a_key(client, ask, path):
    able = ask("default", "read")

    assert client.get(path).status_code == 401
    assert able.get(path).status_code == 404


def spoil(text):
    return text[:-1] + ("a" if text[-1] != "a" else "b")


@pytest.mark.parametrize(
    ("header", "detail"),
    [
        (lambda text: f"Basic {text}", "no whole API key"),
        (lambda text: text, "no whole API key"),
        (lambda _: "Bearer ", "no whole API key"),
        (lambda text: f"Bearer {spoil(text)}", "no whole API key"),
        (lambda text: f"Bearer {text[:20]}", "no whole API key"),
        (lambda text: f"Bearer {text}, Bearer {text}", "no whole API key"),
    ],
)
def test_what_is_no_key_is_refused_and_not_repeated(client, ask, header, detail, caplog):
    text = ask("default", "read").text

    answer = client.get("/jobs", headers={"Authorization": header(text)})

    assert (answer.status_code, answer.json["code"]) == (401, "key_invalid")
    assert detail in answer.json["detail"]
    assert answer.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'
    assert text[12:30] not in answer.text + str(answer.headers) + caplog.text


def test_a_key_of_another_deployment_is_unknown(client, ask, tmp_path):
    ask("default", "read")
    text, _ = KeyStore(tmp_path / "elsewhere").create("default", SCOPES, "n")

    answer = client.get("/jobs", headers={"Authorization": f"Bearer {text}"})

    assert (answer.status_code, answer.json["detail"]) == (401, "The API key is not known here.")


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_is_read_in_any_case(client, ask, scheme):
    text = ask("default", "read").text

    assert client.get("/jobs", headers={"Authorization": f"{scheme} {text}"}).status_code == 200


def test_a_key_that_ended_or_was_revoked_is_told_so(client, keys):
    ended, _ = keys.create("default", SCOPES, "n", datetime(2020, 1, 1, tzinfo=UTC))
    revoked, key = keys.create("default", SCOPES, "n")
    keys.revoke(key)

    answers = [
        client.get("/jobs", headers={"Authorization": f"Bearer {text}"})
        for text in (ended, revoked)
    ]

    assert [answer.status_code for answer in answers] == [401, 401]
    assert "has expired" in answers[0].json["detail"]
    assert "was revoked" in answers[1].json["detail"]


def test_two_tenants_see_nothing_of_one_another(ask, checkpoint, recipe):
    ours, theirs = ask("acme", *SCOPES), ask("zeta", *SCOPES)
    model = ours.post("/models", data=checkpoint)
    job = ours.post("/jobs", json={"model": model.json["id"], "spec": recipe}).json

    assert theirs.get(f"/models/{model.json['id']}").status_code == 404
    for method, path in ADDRESSES:
        assert theirs.open(f"/jobs/{job['id']}{path}", method=method).status_code == 404
    assert theirs.get("/jobs").json["data"] == []
    assert theirs.post("/models", data=checkpoint).status_code == 201
    assert ours.get(f"/jobs/{job['id']}").json["state"] == "queued"


def test_the_same_idempotency_key_of_two_tenants_is_two(ask, checkpoint, recipe):
    made = []
    for client in (ask("acme", *SCOPES), ask("zeta", *SCOPES)):
        model = client.post("/models", data=checkpoint).json["id"]
        body, headers = {"model": model, "spec": recipe}, {"Idempotency-Key": "k"}
        made.append(client.post("/jobs", json=body, headers=headers))

    assert [answer.status_code for answer in made] == [202, 202]
    assert made[0].json["id"] != made[1].json["id"]
    assert "Idempotent-Replayed" not in made[1].headers


def test_the_metrics_of_all_are_for_the_operator(ask):
    answer = ask("acme", *SCOPES).get("/metrics")

    assert (answer.status_code, answer.json["code"]) == (403, "operator_only")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_an_address_of_this_machine_alone_is_loopback(host):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.0.0.1", "example.org", "localhost.x"])
def test_any_other_address_is_not(host):
    assert not is_loopback(host)


def test_a_service_that_others_reach_has_no_keyless_mode(settings):
    app = create_app(settings.model_copy(update={"host": "0.0.0.0"}))

    assert app.test_client().get("/jobs").status_code == 401
    app.extensions[EXTENSION].celery.close()
    app.extensions[EXTENSION].tenants.redis.close()


def audit(log):
    return [entry for entry in log if entry["event"] == "audit"]


def test_every_change_is_written_down_with_who_and_what(ask, checkpoint):
    client = ask("acme", "submit")
    with capture_logs() as log:
        model = client.post("/models", data=checkpoint).json["id"]
        client.delete(f"/models/{model}")
        client.delete(f"/models/{model}")
        client.post("/keys", json={"name": "n"})
        client.get(f"/models/{model}")

    known = {"key": client.key.id, "tenant": "acme"}
    assert [{name: entry[name] for name in known} for entry in audit(log)] == [known] * 4
    assert [(e["what"], e["id"], e["outcome"], e["status"]) for e in audit(log)] == [
        ("upload a model", model, "done", 201),
        ("remove a model", model, "done", 204),
        ("remove a model", model, "refused", 404),
        ("make a key", None, "refused", 403),
    ]
    assert client.text not in str(log)


def test_a_change_that_nobody_in_particular_tried_is_written_down_too(client, ask):
    ask("acme", "submit")
    with capture_logs() as log:
        client.delete("/jobs/job_x")

    [entry] = audit(log)
    assert (entry["key"], entry["tenant"], entry["id"]) == (None, None, "job_x")
    assert (entry["outcome"], entry["status"]) == ("refused", 401)


@pytest.mark.parametrize("path", ["/jobs", "/docs", "/livez", "/none", "/jobs/x"])
def test_every_answer_has_the_headers_that_browsers_heed(client, path):
    headers = client.get(path).headers

    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("origin", ["https://example.org", "http://localhost:1", "null", ""])
def test_a_page_of_another_site_cannot_use_a_service_without_keys(client, origin):
    answer = client.post("/models", headers={"Origin": origin})

    assert (answer.status_code, answer.json["code"]) == (403, "foreign_page")
    assert client.get("/livez", headers={"Origin": origin}).status_code == 200


def test_its_own_pages_can(client):
    assert client.get("/jobs", headers={"Origin": "http://localhost"}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example:8000", "10.0.0.1", "localhost.evil.example", "["])
def test_a_name_that_somebody_has_lead_here_is_no_way_in(client, host):
    answer = client.get("/jobs", headers={"Host": host})

    assert (answer.status_code, answer.json["code"]) == (403, "foreign_page")


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1:8000", "[::1]:8000", "127.0.0.1"])
def test_the_names_of_this_machine_are(client, host):
    headers = {"Host": host, "Origin": f"http://{host}"}

    assert client.get("/jobs", headers=headers).status_code == 200


def test_with_a_key_any_name_is_good(ask):
    answer = ask("acme", "read").get("/jobs", headers={"Host": "modelpress.example.org"})

    assert answer.status_code == 200
