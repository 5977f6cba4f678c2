import errno
import re

import pytest


@pytest.fixture
def broken(store, client, monkeypatch):
    """Makes the service fail inside a request."""

    def fail_with(error):
        def fail(*_):
            raise error

        monkeypatch.setattr(store, "page", fail)
        return client.get("/jobs")

    return fail_with


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("PUT", "/jobs", 405, "method_not_allowed"),
        ("POST", "/livez", 405, "method_not_allowed"),
        ("GET", "/jobs/", 404, "not_found"),
    ],
)
def test_what_the_framework_refuses_is_a_problem_too(client, method, path, status, code):
    answer = client.open(path, method=method)

    assert (answer.status_code, answer.mimetype) == (status, "application/problem+json")
    assert answer.json["code"] == code
    assert answer.json["instance"].endswith(answer.headers["X-Request-Id"])
    if status == 405:
        assert "GET" in answer.headers["Allow"]


def test_an_unexpected_error_is_logged_and_tells_nothing(broken, capsys):
    answer = broken(KeyError("the secret of the house"))

    assert (answer.status_code, answer.json["code"]) == (500, "internal_error")
    assert "secret" not in answer.text
    assert "secret" in capsys.readouterr().out


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_says_so(broken, number):
    answer = broken(OSError(number, "no"))

    assert (answer.status_code, answer.json["code"]) == (507, "storage_full")


def test_another_error_of_the_disk_is_unexpected(broken):
    assert broken(PermissionError("no")).json["code"] == "internal_error"


@pytest.mark.parametrize("offered", ["abc-123", "A" * 64])
def test_a_sane_request_id_is_kept(client, offered):
    answer = client.get("/livez", headers={"X-Request-Id": offered})

    assert answer.headers["X-Request-Id"] == offered


@pytest.mark.parametrize("offered", ["", "a b", "x" * 65, "<i>"])
def test_another_request_id_is_replaced(client, offered):
    answer = client.get("/livez", headers={"X-Request-Id": offered})

    assert re.fullmatch("[0-9a-f]{32}", answer.headers["X-Request-Id"])
