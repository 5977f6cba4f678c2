import json
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from jobs.keys import KeyStore, is_whole


@pytest.fixture
def keys(tmp_path):
    return KeyStore(tmp_path)


@pytest.fixture
def made(keys):
    return keys.create("acme", ["submit", "read"], "ci")


def test_a_key_has_a_prefix_an_id_a_secret_and_a_checksum(made):
    text, key = made
    prefix, key_id, secret, checksum = text.split("_")

    assert (prefix, key_id, len(secret), len(checksum)) == ("mp", key.id, 32, 6)
    assert is_whole(text)
    assert text.endswith(key.last_characters)
    assert (key.tenant, key.scopes, key.name) == ("acme", ("read", "submit"), "ci")


def test_a_key_that_was_cut_off_or_mistyped_is_not_whole(made):
    text, _ = made
    other = "x" if text[20] != "x" else "y"

    spoiled = [text[:-1], text[:20] + other + text[21:], text + "a", text.upper(), "", "mp_", " "]
    spoiled += [text + "\n", text.replace("mp_", "gh_"), "é" * len(text)]
    assert [one for one in spoiled if is_whole(one)] == []


def test_every_single_mistyped_letter_is_found(made):
    text, _ = made

    for place in range(len(text)):
        letter = "a" if text[place] != "a" else "b"
        assert not is_whole(text[:place] + letter + text[place + 1 :])


def test_only_the_key_itself_matches(keys, made):
    text, key = made
    other, _ = keys.create("acme", ["read"], "other")
    mixed = text[:12] + other[12:]

    assert keys.match(text) == key
    assert keys.match(mixed) is None
    assert keys.match(key.digest) is None
    assert keys.match(f"mp_{key.id}_{key.digest[:32]}_{text[-6:]}") is None


def test_the_key_itself_is_nowhere_on_the_disk(keys, made, tmp_path):
    text, key = made

    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert text.split("_")[2] not in path.read_text()
    assert set(json.loads((tmp_path / "keys" / f"{key.id}.json").read_text())) == {
        *("id", "tenant", "scopes", "name", "last_characters", "digest"),
        *("created_at", "expires_at", "revoked_at"),
    }


def test_the_secret_is_made_once_and_is_its_owners_alone(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: KeyStore(tmp_path).create("a", [], str(n)), range(8)))

    secret = tmp_path / "key-secret"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    assert [path.name for path in tmp_path.iterdir() if "tmp" in path.name] == []
    assert [KeyStore(tmp_path).match(text) for text, _ in made] == [key for _, key in made]


def test_a_secret_of_the_settings_needs_no_file(tmp_path):
    text, key = KeyStore(tmp_path, "s" * 32).create("a", ["read"], "n")

    assert not (tmp_path / "key-secret").exists()
    assert KeyStore(tmp_path, "s" * 32).match(text) == key
    assert KeyStore(tmp_path, "t" * 32).match(text) is None


def test_another_process_sees_a_key_come_and_go_at_once(keys, tmp_path):
    other = KeyStore(tmp_path)
    assert not other.has_any()
    text, key = keys.create("a", ["read"], "n")
    assert other.match(text) == key

    other.revoke(key)

    assert keys.match(text).flaw(datetime.now(UTC)) == "was revoked"


def test_a_revoked_key_stays_so_and_still_closes_the_door(keys, made):
    once = keys.revoke(made[1])

    assert keys.revoke(once) == once
    assert keys.all() == [once]
    assert keys.has_any()


def test_a_key_ends_when_it_is_to_end(keys):
    end = datetime.now(UTC) + timedelta(hours=1)
    _, key = keys.create("a", ["read"], "n", end)

    assert key.flaw(end - timedelta(seconds=1)) is None
    assert key.flaw(end) == "has expired"


@pytest.mark.parametrize("key_id", ["../../etc", "", "ABCDEFGH", "a" * 9, "a/b/c/d/"])
def test_an_id_that_is_none_leads_nowhere(keys, made, key_id):
    assert keys.find(key_id) is None


def test_two_keys_of_a_tenant_are_good_at_the_same_time(keys, made):
    text, key = keys.create("acme", ["read"], "successor")

    assert keys.match(made[0]) == made[1]
    assert keys.match(text) == key
    assert keys.all() == [made[1], key]
