import pytest


@pytest.fixture
def models(client, make_checkpoint):
    """The ids of three models, in their order."""
    made = [client.post("/models", data=make_checkpoint({"w": (n, 4)})) for n in (1, 2, 3)]
    return sorted(answer.json["id"] for answer in made)


def test_the_pages_of_models_hold_each_once_as_it_looks_by_itself(client, models):
    first = client.get("/models?limit=2").json
    second = client.get(f"/models?limit=2&cursor={first['next_cursor']}").json

    listed = first["data"] + second["data"]
    assert [model["id"] for model in listed] == models
    assert second["next_cursor"] is None
    assert listed == [client.get(f"/models/{model_id}").json for model_id in models]


def test_data_sets_are_listed_too(client):
    made = client.post("/datasets", data=b"a,b\n").json

    assert client.get("/datasets").json == {"data": [made], "next_cursor": None}


def test_a_model_that_was_removed_is_listed_no_more(client, models):
    client.delete(f"/models/{models[0]}")

    assert [model["id"] for model in client.get("/models").json["data"]] == models[1:]


def test_another_tenants_models_are_not_listed(client, models, ask):
    theirs = ask("acme", "read")

    assert theirs.get("/models").json == {"data": [], "next_cursor": None}


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("/models?limit=0", "malformed_request"),
        ("/models?limit=201", "malformed_request"),
        ("/models?cursor=mdl_..", "invalid_cursor"),
        ("/datasets?cursor=mdl_" + "0" * 64, "invalid_cursor"),
    ],
)
def test_a_page_that_cannot_be_is_refused(client, address, code):
    answer = client.get(address)

    assert (answer.status_code, answer.json["code"]) == (400, code)
