import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.keys import KeyStore

ROOT = Path(__file__).parents[2]


def run(data_dir, *words):
    return subprocess.run(
        [sys.executable, "-m", "service.keys", *words],
        env={"PATH": os.environ["PATH"], "DATA_DIR": str(data_dir)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_first_key_is_made_on_the_server(tmp_path):
    words = ("--tenant", "acme", "--scopes", "read,admin", "--name", "first", "--days", "2")
    done = run(tmp_path / "data", "create", *words)

    assert done.returncode == 0, done.stderr
    key = KeyStore(tmp_path / "data").match(done.stdout.strip())
    assert (key.tenant, key.scopes, key.name) == ("acme", ("read", "admin"), "first")
    assert (key.expires_at - key.created_at).days in (1, 2)
    assert done.stdout.strip() not in done.stderr
    assert '"what": "create key"' in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("create",),
        ("create", "--name", "n", "--tenant", "../up"),
        ("create", "--name", "n", "--scopes", "read,everything"),
    ],
)
def test_a_wrong_command_makes_no_key(tmp_path, words):
    done = run(tmp_path / "data", *words)

    assert done.returncode == 2
    assert not KeyStore(tmp_path / "data").has_any()
