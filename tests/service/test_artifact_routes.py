import base64
import hashlib
import io
import json
import os
import tarfile

import pytest

from jobs.problems import Problem

FILES = {"manifest.json": b"{}", "model.safetensors": os.urandom(5000), "sub/config.json": b"[1]"}


@pytest.fixture
def one(job_id, finish):
    finish(job_id, {"model.safetensors": FILES["model.safetensors"]})
    return job_id


@pytest.fixture
def many(job_id, finish):
    finish(job_id, FILES)
    return job_id


def test_one_file_comes_as_itself(client, one):
    answer = client.get(f"/jobs/{one}/artifact")
    head = client.head(f"/jobs/{one}/artifact")

    assert answer.data == FILES["model.safetensors"]
    assert answer.headers["Content-Length"] == "5000"
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert answer.headers["ETag"].startswith('"blake3:')
    assert "model.safetensors" in answer.headers["Content-Disposition"]
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert (head.status_code, head.data) == (200, b"")
    assert head.headers["Content-Length"] == "5000"
    assert head.headers["ETag"] == answer.headers["ETag"]


def test_several_files_come_as_the_same_tar_every_time(client, many):
    answer = client.get(f"/jobs/{many}/artifact")

    assert int(answer.headers["Content-Length"]) == len(answer.data)
    with tarfile.open(fileobj=io.BytesIO(answer.data)) as tar:
        got = {member.name: tar.extractfile(member).read() for member in tar.getmembers()}
    assert got == FILES
    assert client.get(f"/jobs/{many}/artifact").data == answer.data


@pytest.mark.parametrize("wanted", ["0-0", "0-", "-1", "511-513", "100-6000", "700-99999999"])
@pytest.mark.parametrize("path", ["artifact", "artifact/model.safetensors"])
def test_a_range_is_that_part_of_the_whole(client, many, path, wanted):
    whole = client.get(f"/jobs/{many}/{path}").data
    first, _, last = wanted.partition("-")
    start = int(first) if first else len(whole) - int(last)
    stop = min(int(last) + 1, len(whole)) if first and last else len(whole)

    answer = client.get(f"/jobs/{many}/{path}", headers={"Range": f"bytes={wanted}"})

    assert answer.status_code == 206
    assert answer.data == whole[start:stop]
    assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(whole)}"
    assert int(answer.headers["Content-Length"]) == stop - start


@pytest.mark.parametrize("wanted", ["bytes=5000-", "bytes=9999-10000"])
def test_a_range_outside_the_file_is_refused(client, one, wanted):
    answer = client.get(f"/jobs/{one}/artifact", headers={"Range": wanted})

    assert (answer.status_code, answer.json["code"]) == (416, "range_not_satisfiable")
    assert answer.headers["Content-Range"] == "bytes */5000"


@pytest.mark.parametrize("wanted", ["bytes=0-1,5-6", "lines=1-2", "bytes=x", "bytes=9-1"])
def test_a_range_that_is_not_one_range_of_bytes_is_passed_over(client, one, wanted):
    answer = client.get(f"/jobs/{one}/artifact", headers={"Range": wanted})

    assert (answer.status_code, len(answer.data)) == (200, 5000)


def test_if_range_protects_against_another_file(client, one):
    etag = client.head(f"/jobs/{one}/artifact").headers["ETag"]

    same = client.get(f"/jobs/{one}/artifact", headers={"Range": "bytes=1-2", "If-Range": etag})
    other = client.get(
        f"/jobs/{one}/artifact", headers={"Range": "bytes=1-2", "If-Range": '"blake3:other"'}
    )

    assert (same.status_code, len(same.data)) == (206, 2)
    assert (other.status_code, len(other.data)) == (200, 5000)


def test_a_client_that_has_the_file_gets_nothing(client, one):
    etag = client.head(f"/jobs/{one}/artifact").headers["ETag"]

    answer = client.get(f"/jobs/{one}/artifact", headers={"If-None-Match": etag})

    assert (answer.status_code, answer.data) == (304, b"")


def test_the_sha256_comes_with_the_file_once_it_is_known(client, blobs, one):
    before = client.get(f"/jobs/{one}/artifact")
    digest = hashlib.sha256(FILES["model.safetensors"])
    known = json.dumps({"model.safetensors": digest.hexdigest()})
    (blobs.job_folder(one) / "sha256.json").write_text(known)
    after = client.get(f"/jobs/{one}/artifact", headers={"Range": "bytes=0-9"})

    expected = base64.b64encode(digest.digest()).decode()
    assert "Repr-Digest" not in before.headers
    assert after.headers["Repr-Digest"] == f"sha-256=:{expected}:"


@pytest.mark.parametrize(
    "path", ["x", "../spec.json", "..%2fspec.json", "sub", "/etc/passwd", "sub/../manifest.json"]
)
def test_only_listed_files_are_given(client, many, path):
    answer = client.get(f"/jobs/{many}/artifact/{path}")

    assert answer.status_code in (404, 308)
    assert answer.status_code == 308 or answer.json["code"] in ("file_not_found", "not_found")


def test_a_job_without_an_artifact_says_why(client, job_id, store, finish):
    early = client.get(f"/jobs/{job_id}/artifact")
    finish(job_id, failure=Problem("gate_failed", "too big"))
    late = client.get(f"/jobs/{job_id}/artifact")

    assert (early.status_code, early.json["code"]) == (409, "artifact_not_ready")
    assert (late.status_code, late.json["code"]) == (409, "no_artifact")


def test_an_empty_file_is_a_file(client, job_id, finish):
    finish(job_id, {"empty": b""})

    answer = client.get(f"/jobs/{job_id}/artifact")

    assert (answer.status_code, answer.data) == (200, b"")
    assert answer.headers["Content-Length"] == "0"


def test_a_file_that_was_removed_by_hand_is_not_found(client, blobs, one):
    (blobs.artifact_folder(one) / "model.safetensors").unlink()

    answer = client.get(f"/jobs/{one}/artifact")

    assert (answer.status_code, answer.json["code"]) == (404, "file_not_found")
