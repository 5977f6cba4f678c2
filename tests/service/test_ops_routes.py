import re

import pytest

from jobs.levels import publish_levels
from jobs.problems import CATALOGUE
from jobs.settings import Settings
from service import create_app


@pytest.fixture
def lonely(tmp_path):
    url = f"unix://{tmp_path}/none.sock"
    return create_app(Settings(data_dir=tmp_path / "data", redis_url=url)).test_client()


def test_a_service_with_redis_and_disk_is_ready(client, blobs):
    assert client.get("/readyz").json == {"status": "ready"}
    assert [path for path in blobs.root.rglob("*") if path.is_file()] == []


def test_a_service_without_redis_lives_but_is_not_ready(lonely):
    assert lonely.get("/livez").status_code == 200
    answer = lonely.get("/readyz")

    assert (answer.status_code, answer.json["code"]) == (503, "store_unavailable")
    assert int(answer.headers["Retry-After"]) > 0


def test_a_service_without_its_disk_is_not_ready(client, blobs):
    blobs.root.parents[1].rename(blobs.root.parents[1].with_name("elsewhere"))

    answer = client.get("/readyz")

    assert (answer.status_code, answer.json["code"]) == (503, "storage_unavailable")


def test_capabilities_name_what_there_is(client):
    document = client.get("/capabilities").json

    steps = {"shrink", "prune", "finetune", "quantize", "infer", "measure"}
    assert set(document["steps"]) == steps
    assert document["sandbox"] == "unknown"
    assert {"state-dict", "pt2"} <= set(document["formats_in"])
    assert document["limits"]["max_wait_seconds"] == 60
    assert document["idempotency_ttl_seconds"] == 7 * 86400


@pytest.mark.parametrize(("has_sandbox", "level"), [(0, "none"), (1, "bwrap")])
def test_capabilities_tell_the_sandbox_that_workers_have(client, store, has_sandbox, level):
    publish_levels(store.redis, {"has_sandbox": has_sandbox})

    assert client.get("/capabilities").json["sandbox"] == level


def test_metrics_count_requests_by_route_and_jobs_by_state(client, job_id):
    client.get("/jobs/job_x")
    client.get("/no/such/address")

    text = client.get("/metrics").text

    assert (
        'modelpress_http_requests_total{method="GET",route="/jobs/<job_id>",status="404"} 1.0'
        in text
    )
    assert 'route="(none)",status="404"} 1.0' in text
    assert 'modelpress_jobs{state="queued"} 1.0' in text
    assert "modelpress_redis_up 1.0" in text


def test_metrics_without_redis_say_so(lonely):
    assert "modelpress_redis_up 0.0" in lonely.get("/metrics").text


def test_every_problem_code_has_its_anchor(client):
    page = client.get("/docs/problems").text

    assert set(re.findall(r'<tr id="([a-z_0-9]+)"', page)) == set(CATALOGUE)


def test_the_docs_load_nothing_from_elsewhere(client):
    page = client.get("/docs")

    for address in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert address.startswith("/docs/")
        with client.get(address) as asset:
            assert asset.status_code == 200
    assert "script-src 'self'" in page.headers["Content-Security-Policy"]
    assert "unsafe-eval" not in page.headers["Content-Security-Policy"]


@pytest.mark.parametrize("name", ["../docs.html", "docs.html", "..%2f..%2fserver.py", "none.js"])
def test_only_assets_are_served_as_assets(client, name):
    assert client.get(f"/docs/assets/{name}").status_code == 404
