import json

import pytest
from click.testing import CliRunner

from modelpress.cli import cli

KEY = "mp_abcdefgh_" + "x" * 32 + "_000000"


@pytest.fixture
def invoke(service):
    def invoke(*words, **options):
        return CliRunner().invoke(cli, ["--url", service.url, *words], **options)

    return invoke


def test_a_new_key_stands_alone_on_standard_output(service, invoke):
    done = invoke("keys", "create", "--name", "ci", "--scopes", "read", "--days", "2")

    [made] = service.api_keys
    assert done.exit_code == 0
    assert done.stdout == made["key"] + "\n"
    assert made["key"] not in done.stderr
    assert (made["name"], made["scopes"], made["tenant"]) == ("ci", ["read"], "acme")
    assert made["expires_at"].endswith("+00:00")


def test_a_new_key_for_a_program(service, invoke):
    done = invoke("--json", "keys", "create", "--name", "ci", "--tenant", "zeta")

    assert json.loads(done.stdout)["key"] == service.api_keys[0]["key"]
    assert service.api_keys[0]["tenant"] == "zeta"
    assert service.api_keys[0]["scopes"] == ["read", "submit"]
    assert service.api_keys[0]["expires_at"] is None


def test_keys_are_listed_with_what_tells_them_apart_and_revoked(service, invoke):
    for name in ("one", "two"):
        invoke("keys", "create", "--name", name)
    first = service.api_keys[0]

    assert invoke("keys", "revoke", first["id"]).exit_code == 0

    lines = invoke("keys", "list").stdout.splitlines()
    assert len(lines) == 3
    assert first["id"] in lines[1]
    assert "revoked 2030" in lines[1]
    assert "it is revoked" in lines[2]
    assert first["key"] not in "".join(lines)


def test_the_key_of_the_variable_is_sent_with_every_request(service, invoke):
    invoke("ls", env={"MODELPRESS_API_KEY": KEY + "\n"})

    assert service.requests("GET", "/jobs")[0]["Authorization"] == f"Bearer {KEY}"


def test_the_option_goes_before_the_variable(service):
    words = ["--url", service.url, "--api-key", KEY, "ls"]
    CliRunner().invoke(cli, words, env={"MODELPRESS_API_KEY": "other"})

    assert service.requests("GET", "/jobs")[0]["Authorization"] == f"Bearer {KEY}"


def test_without_a_key_none_is_sent(service, invoke):
    invoke("ls", env={"MODELPRESS_API_KEY": ""})

    assert "Authorization" not in service.requests("GET", "/jobs")[0]


@pytest.mark.parametrize("spoiled", [KEY + "\nX: y", KEY + " " + KEY, KEY + "é", KEY + "\x00"])
@pytest.mark.parametrize("options", [(), ("--json",)], ids=["person", "program"])
def test_a_key_that_cannot_be_one_is_refused_and_not_shown(service, spoiled, options):
    words = ["--url", service.url, "--api-key", spoiled, *options, "ls"]
    done = CliRunner().invoke(cli, words)

    assert done.exit_code == 2
    assert "API key" in done.output
    assert KEY not in done.output
    assert service.seen == []


def test_a_refused_key_is_not_shown(service, invoke, problem_answer):
    answer = problem_answer(401, "key_invalid", "The API key is not known here.")
    service.fail_next("GET", "/jobs", answer)

    done = invoke("--json", "ls", env={"MODELPRESS_API_KEY": KEY})

    assert done.exit_code == 2
    assert "key_invalid" in done.output
    assert KEY not in done.output
