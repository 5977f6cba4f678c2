import os
from pathlib import Path

import pytest

from modelpress.downloads import place
from modelpress.errors import (
    DigestMismatch,
    JobCancelled,
    JobFailed,
    NoArtifact,
    ServiceUnreachable,
    UnsafePath,
)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def ranges(service) -> list[str | None]:
    asked = service.requests("GET", "/jobs/job_0000/artifact/model.safetensors")
    return [headers.get("Range") for headers in asked]


def test_a_download_brings_every_file_and_nothing_else(service, client, tmp_path):
    job_id = service.add_job()

    files = client.download(job_id, tmp_path / "new" / "out")

    assert contents(tmp_path / "new" / "out") == service.files
    assert files == tuple(tmp_path / "new" / "out" / path for path in service.files)


def test_progress_grows_to_the_size_of_the_artifact(service, client, tmp_path):
    job_id = service.add_job()
    shown = []

    client.download(job_id, tmp_path, lambda done, total: shown.append((done, total)))

    total = sum(map(len, service.files.values()))
    assert shown == sorted(shown)
    assert shown[-1] == (total, total)


def test_a_cut_download_goes_on_where_it_broke(service, client, tmp_path):
    job_id = service.add_job()
    service.cuts = [300_000, 200_000]

    client.download(job_id, tmp_path)

    assert contents(tmp_path) == service.files
    assert ranges(service) == [None, "bytes=300000-", "bytes=500000-"]
    asked = service.requests("GET", "/jobs/job_0000/artifact/model.safetensors")
    assert all(headers["If-Range"].startswith('"') for headers in asked[1:])


def test_a_part_of_an_earlier_run_is_gone_on_with(service, client, tmp_path):
    job_id = service.add_job()
    (tmp_path / "model.safetensors.part").write_bytes(service.files["model.safetensors"][:1000])

    client.download(job_id, tmp_path)

    assert contents(tmp_path) == service.files
    assert ranges(service) == ["bytes=1000-"]


def test_a_service_that_ignores_ranges_sends_the_whole_file_into_its_place(
    service, client, tmp_path
):
    job_id = service.add_job()
    service.ignores_ranges = True
    (tmp_path / "model.safetensors.part").write_bytes(b"something else")

    client.download(job_id, tmp_path)

    assert contents(tmp_path) == service.files


def test_a_part_of_other_bytes_is_refused_and_removed(service, client, tmp_path):
    job_id = service.add_job()
    (tmp_path / "model.safetensors.part").write_bytes(b"something else")

    with pytest.raises(DigestMismatch):
        client.download(job_id, tmp_path)

    assert contents(tmp_path) == {}


def test_a_part_that_is_too_long_begins_anew(service, client, tmp_path):
    job_id = service.add_job()
    (tmp_path / "model.safetensors.part").write_bytes(bytes(2 * 1024**2))

    client.download(job_id, tmp_path)

    assert contents(tmp_path) == service.files
    assert ranges(service) == [None]


def test_a_whole_part_needs_only_its_check(service, client, tmp_path):
    job_id = service.add_job()
    (tmp_path / "model.safetensors.part").write_bytes(service.files["model.safetensors"])

    client.download(job_id, tmp_path)

    assert contents(tmp_path) == service.files
    assert ranges(service) == []


def test_the_part_stays_when_the_line_stays_broken(service, client, tmp_path):
    job_id = service.add_job()
    service.cuts = [5000, 0, 0, 0]

    with pytest.raises(ServiceUnreachable):
        client.download(job_id, tmp_path)

    assert contents(tmp_path) == {
        "model.safetensors.part": service.files["model.safetensors"][:5000]
    }


def test_a_corrupted_download_is_refused_and_removed(service, client, tmp_path):
    job_id = service.add_job()
    service.is_corrupt = True

    with pytest.raises(DigestMismatch, match=r"model\.safetensors arrived with blake3"):
        client.download(job_id, tmp_path)

    assert contents(tmp_path) == {}


def test_a_file_longer_than_announced_is_refused_and_removed(service, client, tmp_path):
    job_id = service.add_job()
    service.jobs[job_id]["artifact"]["files"][0]["bytes"] = 1000

    with pytest.raises(DigestMismatch, match="longer than the 1000 bytes"):
        client.download(job_id, tmp_path)

    assert contents(tmp_path) == {}


def test_files_that_are_there_are_not_fetched_again(service, client, tmp_path):
    job_id = service.add_job()
    (tmp_path / "model.safetensors").write_bytes(service.files["model.safetensors"])

    client.download(job_id, tmp_path)

    assert contents(tmp_path) == service.files
    assert ranges(service) == []


def test_a_file_with_other_bytes_is_replaced(service, client, tmp_path):
    job_id = service.add_job()
    (tmp_path / "model.safetensors").write_bytes(bytes(256 * 4096))

    client.download(job_id, tmp_path)

    assert contents(tmp_path) == service.files


@pytest.mark.parametrize(
    "path",
    ["../x", "/etc/x", "a/../../x", "a//x", "./x", "", "..", "a\\..\\x", "C:x", "x\0", "x\n", "x/"],
)
def test_a_hostile_path_is_refused_before_anything_is_written(service, client, tmp_path, path):
    service.paths_told = {"a/b.json": path}
    job_id = service.add_job()

    with pytest.raises(UnsafePath, match="which is not a plain relative path"):
        client.download(job_id, tmp_path / "out")

    assert contents(tmp_path) == {}
    assert service.requests("GET", f"/jobs/{job_id}/artifact") == []


def test_a_link_that_leads_out_of_the_folder_is_not_followed(service, client, tmp_path):
    job_id = service.add_job()
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "a").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(UnsafePath, match="a link leads out"):
        client.download(job_id, tmp_path / "out")

    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_name_below_a_linked_download_folder_is_fine(tmp_path):
    (tmp_path / "real").mkdir()
    os.symlink(tmp_path / "real", tmp_path / "linked")

    assert place(tmp_path / "linked", "a/b") == tmp_path / "linked" / "a" / "b"


@pytest.mark.parametrize(
    ("state", "error"),
    [("running", NoArtifact), ("failed", JobFailed), ("cancelled", JobCancelled)],
)
def test_a_job_without_an_artifact_cannot_be_downloaded(service, client, tmp_path, state, error):
    job_id = service.add_job(state)

    with pytest.raises(error, match=job_id):
        client.download(job_id, tmp_path / "out")

    assert not (tmp_path / "out").exists()
