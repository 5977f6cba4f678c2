import base64
import hashlib
import io
import json
import tarfile
import zipfile

import blake3
import pytest


def tar_of(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def zip_of(files, method=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def stored_files(blobs, answer):
    folder = blobs.files("models", answer.json["id"].removeprefix("mdl_"))
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_raw_upload_is_stored_under_the_blake3_of_its_bytes(client, blobs, checkpoint):
    answer = client.post("/models", data=checkpoint)

    identifier = "mdl_" + blake3.blake3(checkpoint).hexdigest()
    assert answer.status_code == 201
    assert answer.headers["Location"] == f"/models/{identifier}"
    assert answer.json["id"] == identifier
    assert answer.json["bytes"] == len(checkpoint)
    assert answer.json["format"] == "safetensors"
    assert answer.json["tensors"] == 2
    assert answer.json["parameters"] == 36
    assert answer.json["bytes_by_dtype"] == {"F32": 144}
    assert stored_files(blobs, answer) == {"model.safetensors": checkpoint}


def test_the_same_bytes_again_are_the_same_model(client, checkpoint):
    first = client.post("/models", data=checkpoint)
    second = client.post("/models", data={"model": (io.BytesIO(checkpoint), "other.bin")})

    assert (first.status_code, second.status_code) == (201, 200)
    assert second.json == first.json


def test_a_form_with_another_part_is_refused(client, checkpoint):
    answer = client.post("/models", data={"file": (io.BytesIO(checkpoint), "m.safetensors")})

    assert (answer.status_code, answer.json["code"]) == (400, "malformed_multipart")


@pytest.mark.parametrize("pack", [tar_of, zip_of, lambda f: zip_of(f, zipfile.ZIP_DEFLATED)])
@pytest.mark.parametrize("top", ["", "./", "some-model/"])
def test_an_archive_becomes_the_folder_it_holds(client, blobs, checkpoint, pack, top):
    config = json.dumps({"architectures": ["LlamaForCausalLM"]}).encode()
    files = {"config.json": config, "model.safetensors": checkpoint, "LICENSE": b"free"}
    extra = {"modeling.py": b"import os", ".hidden.json": b"{}", "optimizer.pt": b"\x80\x02"}

    answer = client.post(
        "/models", data=pack({top + name: data for name, data in (files | extra).items()})
    )

    assert answer.status_code == 201, answer.json
    assert answer.json["format"] == "transformers"
    assert answer.json["architecture"] == "LlamaForCausalLM"
    ignored = {name.rpartition("/")[2] for name in answer.json["ignored_files"]}
    assert ignored == set(extra)
    assert stored_files(blobs, answer) == files


def test_a_sharded_archive_keeps_all_its_shards(client, make_checkpoint):
    index = json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}).encode()
    files = {
        "1.safetensors": make_checkpoint({"a": (2, 2)}),
        "2.safetensors": make_checkpoint({"b": (3,)}),
        "model.safetensors.index.json": index,
    }

    answer = client.post("/models", data=tar_of(files))

    assert answer.json["format"] == "sharded-safetensors"
    assert answer.json["files"] == ["1.safetensors", "2.safetensors"]
    assert answer.json["parameters"] == 7


@pytest.mark.parametrize("header", ["Content-Digest", "Repr-Digest"])
@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("sha-256", lambda data: hashlib.sha256(data).digest()),
        ("sha-512", lambda data: hashlib.sha512(data).digest()),
        ("blake3", lambda data: blake3.blake3(data).digest()),
    ],
)
def test_an_announced_digest_is_verified(client, checkpoint, header, name, digest):
    right = base64.b64encode(digest(checkpoint)).decode()
    wrong = base64.b64encode(digest(b"other")).decode()

    refused = client.post("/models", data=checkpoint, headers={header: f"{name}=:{wrong}:"})
    taken = client.post(
        "/models", data=checkpoint, headers={header: f"md9=:AA==:, {name}=:{right}:"}
    )

    assert (refused.status_code, refused.json["code"]) == (400, "digest_mismatch")
    assert right in refused.json["detail"]
    assert taken.status_code == 201


def test_an_unreadable_digest_header_is_refused(client, checkpoint):
    answer = client.post("/models", data=checkpoint, headers={"Repr-Digest": "sha-256=abc"})

    assert (answer.status_code, answer.json["code"]) == (400, "malformed_request")


def test_an_upload_over_the_limit_is_refused_before_it_is_read(app, client, checkpoint):
    app.extensions["modelpress"].settings.max_upload = 100

    answer = client.post("/models", data=checkpoint)

    assert (answer.status_code, answer.json["code"]) == (413, "too_large")


def test_an_upload_that_the_disk_cannot_hold_is_refused_before_it_is_read(client):
    answer = client.post("/models", environ_overrides={"CONTENT_LENGTH": str(2**39)})

    assert (answer.status_code, answer.json["code"]) == (507, "storage_full")


def test_a_model_is_shown_and_removed(client, model_id):
    assert client.get(f"/models/{model_id}").json["id"] == model_id
    assert client.head(f"/models/{model_id}").status_code == 200

    assert client.delete(f"/models/{model_id}").status_code == 204

    assert client.get(f"/models/{model_id}").json["code"] == "model_not_found"
    assert client.delete(f"/models/{model_id}").json["code"] == "model_not_found"


def test_a_model_that_an_open_job_needs_stays(client, model_id, job_id):
    refused = client.delete(f"/models/{model_id}")
    client.post(f"/jobs/{job_id}/cancel")
    allowed = client.delete(f"/models/{model_id}")

    assert (refused.status_code, refused.json["code"]) == (409, "model_in_use")
    assert allowed.status_code == 204


@pytest.mark.parametrize("wrong", ["mdl_", "mdl_" + "g" * 64, "..", "mdl_" + "A" * 64, "ds_x"])
def test_an_id_of_another_form_is_not_looked_for(client, wrong):
    assert client.get(f"/models/{wrong}").status_code == 404
    assert client.get(f"/datasets/{wrong}").status_code == 404


def test_a_data_set_is_kept_as_it_was_sent(client, blobs):
    answer = client.post("/datasets", data=b"a,b\n1,2\n")
    identifier = answer.json["id"]

    assert answer.status_code == 201
    assert answer.json["bytes"] == 8
    assert (blobs.files("datasets", identifier[3:]) / "data").read_bytes() == b"a,b\n1,2\n"
    assert client.get(f"/datasets/{identifier}").json == answer.json
    assert client.delete(f"/datasets/{identifier}").status_code == 204
    assert client.get(f"/datasets/{identifier}").json["code"] == "dataset_not_found"


def test_an_empty_data_set_is_refused(client):
    answer = client.post("/datasets", data=b"")

    assert (answer.status_code, answer.json["code"]) == (422, "empty_upload")
