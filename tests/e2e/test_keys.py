"""Two tenants on one service that others could reach, from the first key to the artifact."""

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]


def make_key(data_dir: Path, tenant: str) -> str:
    command = [sys.executable, "-m", "service.keys", "create", "--tenant", tenant, "--name", "e2e"]
    done = subprocess.run(
        command,
        env=os.environ | {"DATA_DIR": str(data_dir)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.fixture(scope="module")
def shared(tmp_path_factory, run_up):
    """A service for two tenants, and the key of each."""
    data_dir = tmp_path_factory.mktemp("shared")
    keys = {tenant: make_key(data_dir, tenant) for tenant in ("acme", "zeta")}
    with run_up(data_dir, HOST="0.0.0.0") as stack:
        yield stack, keys


def modelpress(stack, key: str, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "modelpress", "--url", stack.url, *words],
        env=os.environ | {"MODELPRESS_API_KEY": key},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_each_tenant_has_its_own_job_of_the_same_model(shared, small_model, tmp_path):
    stack, keys = shared
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("steps: [{op: quantize, scheme: w8a16}]")
    made = {}
    for tenant, key in keys.items():
        folder = tmp_path / tenant
        words = ("run", str(small_model), "--recipe", str(recipe), "-o", str(folder))
        done = modelpress(stack, key, *words)

        assert done.returncode == 0, done.stderr
        assert "An equal job" not in done.stderr
        assert (folder / "model.safetensors").exists()
        listed = modelpress(stack, key, "--json", "ls").stdout
        made[tenant] = json.loads(listed)["data"]

    assert [len(jobs) for jobs in made.values()] == [1, 1]
    assert {path.name for path in (stack.data_dir / "tenants").iterdir()} == {"default", *keys}
    [theirs] = made["acme"]
    assert modelpress(stack, keys["zeta"], "status", theirs["id"]).returncode == 2


def test_whoever_has_no_key_gets_nothing_but_the_reason(shared):
    stack, _ = shared
    done = modelpress(stack, "", "ls")

    assert done.returncode == 2
    assert "key_required" in done.stderr
    assert httpx.get(f"{stack.url}/readyz").status_code == 200


def test_no_log_holds_a_key(shared):
    stack, keys = shared

    logs = "".join(path.read_text() for path in (stack.data_dir / "logs").iterdir())
    assert '"audit"' in logs
    for key in keys.values():
        assert key.split("_")[2] not in logs
