import io

import pytest

YAML = b"steps: [{op: quantize, scheme: w8a16}]"


def form(**parts):
    return {name: (io.BytesIO(data), name) for name, data in parts.items()}


@pytest.mark.parametrize(
    ("body", "status", "code", "pointer"),
    [
        ({"spec": {}}, 422, "invalid_recipe", "/spec/steps"),
        ({"spec": {"steps": [{"op": "melt"}]}}, 422, "invalid_recipe", "/spec/steps/0"),
        ({"labels": {"": "x"}}, 400, "malformed_request", "/labels/"),
        ({"labels": {"a": 1}}, 400, "malformed_request", "/labels/a"),
        ({"model": 7}, 400, "malformed_request", "/model"),
        ({"model": "mdl_" + "0" * 64}, 404, "model_not_found", None),
        ({"model": "../../etc"}, 404, "model_not_found", None),
        ({"priority": 1}, 400, "malformed_request", "/priority"),
        ({"spec": None}, 422, "invalid_recipe", "/spec"),
    ],
)
def test_a_wrong_submit_says_where(client, blobs, model_id, recipe, body, status, code, pointer):
    answer = client.post("/jobs", json={"model": model_id, "spec": recipe} | body)

    assert (answer.status_code, answer.json["code"]) == (status, code), answer.json
    if pointer is not None:
        assert any(error["pointer"].startswith(pointer) for error in answer.json["errors"])
    assert list(blobs.job_ids()) == []


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ({"spec": YAML.decode()}, "malformed_multipart"),
        ({"model": "mdl_x"}, "malformed_multipart"),
        ({"model": "mdl_x", "spec": YAML.decode(), "other": "1"}, "malformed_multipart"),
        ({"model": "mdl_x", "spec": YAML.decode(), "labels": "{"}, "malformed_request"),
        ({"model": "mdl_x", "spec": YAML.decode(), "labels": "[]"}, "malformed_request"),
        ({"model": "mdl_x", "spec": YAML.decode()}, "model_not_found"),
        ({"model": "mdl_x", "spec": "a: [" + "x" * 20}, "invalid_recipe"),
    ],
)
def test_a_wrong_form_is_refused(client, data, code):
    answer = client.post("/jobs", data=data, content_type="multipart/form-data")

    assert answer.json["code"] == code


def test_a_recipe_over_a_mebibyte_is_refused(client):
    head = b'--x\r\nContent-Disposition: form-data; name="spec"\r\n\r\n'
    body = head + b"#" * (1024**2 + 1) + b"\r\n--x--\r\n"

    answer = client.post("/jobs", data=body, content_type="multipart/form-data; boundary=x")

    assert (answer.status_code, answer.json["code"]) == (413, "too_large")


def test_a_wrong_recipe_leaves_nothing_of_the_model_that_came_with_it(client, blobs, checkpoint):
    answer = client.post("/jobs", data=form(model=checkpoint, spec=b"steps: []"))

    assert answer.json["code"] == "invalid_recipe"
    assert list((blobs.root / "models").iterdir()) == []
    assert list((blobs.root / "staging").iterdir()) == []


@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        (b"{", "application/json", 400, "malformed_request"),
        (b"[" * 100_000, "application/json", 400, "malformed_request"),
        (b"1" * 5000, "application/json", 400, "malformed_request"),
        (b"NaN", "application/json", 400, "malformed_request"),
        (b"\xff", "application/json", 400, "malformed_request"),
        (b" " * (1024**2 + 1), "application/json", 413, "too_large"),
        (b"steps: []", "text/plain", 415, "unsupported_media_type"),
        (b"{}", None, 415, "unsupported_media_type"),
        (b"--x--", "multipart/form-data", 400, "malformed_multipart"),
        (b"garbage", "multipart/form-data; boundary=x", 400, "malformed_multipart"),
        (b"--x\r\n\r\n", "multipart/form-data; boundary=x", 400, "malformed_multipart"),
        (b"--x\r\n\r\na\r\n--x--", "multipart/form-data; boundary=x", 400, "malformed_multipart"),
        (
            b"--" + b"x" * 300,
            f"multipart/form-data; boundary={'x' * 300}",
            400,
            "malformed_multipart",
        ),
    ],
)
def test_an_unreadable_body_is_refused(client, body, kind, status, code):
    answer = client.post("/jobs", data=body, content_type=kind)

    assert (answer.status_code, answer.json["code"]) == (status, code)
