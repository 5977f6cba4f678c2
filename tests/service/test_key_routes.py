from datetime import UTC, datetime, timedelta

import pytest

from jobs.keys import SCOPES


@pytest.fixture
def operator(ask):
    return ask("default", *SCOPES)


@pytest.fixture
def admin(ask):
    return ask("acme", *SCOPES)


def make(client, **members):
    return client.post("/keys", json={"name": "n", **members})


def ids(client):
    return {key["id"] for key in client.get("/keys").json["data"]}


def test_a_key_is_made_once_told_and_never_again(admin, keys):
    answer = make(admin, name="ci")

    assert answer.status_code == 201
    text = answer.json["key"]
    key = keys.match(text)
    assert (key.tenant, key.scopes, key.name) == ("acme", ("read", "submit"), "ci")
    assert answer.headers["Location"] == f"/keys/{key.id}"
    assert answer.headers["Cache-Control"] == "no-store"
    listed = admin.get("/keys").text
    assert key.id in listed
    assert text not in listed
    assert key.digest not in answer.text + listed


def test_the_first_key_of_a_keyless_service_closes_it(client):
    text = make(client, scopes=["read"]).json["key"]

    assert client.get("/jobs").status_code == 401
    assert client.get("/jobs", headers={"Authorization": f"Bearer {text}"}).status_code == 200


def test_a_tenant_sees_and_revokes_its_own_keys_alone(admin, operator, ask):
    theirs = make(operator, tenant="zeta").json["id"]
    own = make(admin).json["id"]

    assert own in ids(admin)
    assert theirs not in ids(admin)
    refused = admin.delete(f"/keys/{theirs}")
    unknown = admin.delete("/keys/00000000")
    assert (refused.status_code, refused.json["code"]) == (404, "key_not_found")
    assert refused.json["detail"].replace(theirs, "00000000") == unknown.json["detail"]
    assert {own, theirs} < ids(operator)
    assert operator.delete(f"/keys/{own}").status_code == 204


def test_a_tenant_makes_no_key_of_another(admin, keys):
    before = keys.all()

    answer = make(admin, tenant="default")

    assert (answer.status_code, answer.json["code"]) == (403, "operator_only")
    assert keys.all() == before


def test_a_revoked_key_is_good_for_nothing_at_once(admin, ask):
    other = ask("acme", "read")
    assert other.get("/jobs").status_code == 200

    for _ in range(2):
        assert admin.delete(f"/keys/{other.key.id}").status_code == 204

    assert other.get("/jobs").status_code == 401
    [listed] = [key for key in admin.get("/keys").json["data"] if key["id"] == other.key.id]
    assert listed["revoked_at"] is not None


@pytest.mark.parametrize(
    ("members", "pointer"),
    [
        ({"name": ""}, "/name"),
        ({"scopes": []}, "/scopes"),
        ({"scopes": ["all"]}, "/scopes/0"),
        ({"expires_at": "2030-01-01T00:00:00"}, "/expires_at"),
        ({"tenant": "../up"}, "/tenant"),
        ({"role": "x"}, "/role"),
    ],
)
def test_a_wrong_request_says_where_and_makes_no_key(operator, keys, members, pointer):
    before = keys.all()

    answer = make(operator, **members)

    assert (answer.status_code, answer.json["code"]) == (400, "malformed_request")
    assert [error["pointer"] for error in answer.json["errors"]] == [pointer]
    assert keys.all() == before


def test_a_form_of_a_foreign_page_makes_no_key(client, keys):
    answer = client.post("/keys", data='{"name": "n"}', content_type="text/plain")

    assert (answer.status_code, answer.json["code"]) == (415, "unsupported_media_type")
    assert not keys.has_any()


def test_a_key_may_end_by_itself(admin):
    end = datetime.now(UTC) + timedelta(days=1)

    answer = make(admin, expires_at=end.isoformat())

    assert datetime.fromisoformat(answer.json["expires_at"]) == end
