import errno
import hashlib
import json
import os
import threading
from concurrent.futures import CancelledError

import numpy as np
import pytest
from blake3 import blake3
from safetensors.numpy import save_file

from jobs.problems import Problem
from worker.collect import MAX_REPORT_BYTES, measure_files, measuring, read_report, seal_artifact

MOST_BYTES = 10**6
ABOUT = {"model": "mdl_0", "recipe": {}, "versions": {}}


def no_check():
    pass


def collect(folder):
    return seal_artifact(folder, ABOUT, measure_files(folder, MOST_BYTES, no_check))


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "artifact"
    (folder / "sub").mkdir(parents=True)
    save_file({"a": np.arange(6, dtype=np.float32)}, folder / "model.safetensors")
    (folder / "sub" / "config.json").write_text("{}")
    return folder


def test_every_file_is_listed_with_its_digests(folder):
    artifact = collect(folder)

    assert [file.path for file in artifact.files] == [
        "manifest.json",
        "model.safetensors",
        "sub/config.json",
    ]
    for file in artifact.files:
        content = (folder / file.path).read_bytes()
        assert file.bytes == len(content)
        assert file.blake3 == blake3(content).hexdigest()
        assert file.sha256 == hashlib.sha256(content).hexdigest()
    assert artifact.bytes == sum(file.bytes for file in artifact.files)


def test_the_manifest_lists_the_other_files(folder):
    artifact = collect(folder)

    manifest = json.loads((folder / "manifest.json").read_text())
    listed = {row["path"]: row["blake3"] for row in manifest["files"]}
    assert listed == {f.path: f.blake3 for f in artifact.files if f.path != "manifest.json"}
    assert manifest["model"] == "mdl_0"


def test_the_same_files_give_the_same_digest_wherever_they_lie(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "sub").mkdir()
    for name in ("sub/config.json", "model.safetensors"):
        (other / name).write_bytes((folder / name).read_bytes())

    first = collect(folder)

    assert collect(other) == first


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/etc/passwd", path)])
def test_what_is_no_regular_file_is_refused(folder, make):
    make(folder / "x")

    with pytest.raises(Problem, match="'x', which is no plain file"):
        collect(folder)


def test_a_linked_folder_is_not_followed(folder, tmp_path):
    (tmp_path / "secret").mkdir()
    (folder / "link").symlink_to(tmp_path / "secret")

    with pytest.raises(Problem, match="'link'"):
        collect(folder)


def test_a_damaged_tensor_file_is_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(Problem, match=r"model.safetensors: Tensor 'a' ends") as caught:
        collect(folder)

    assert caught.value.code == "invalid_artifact"


def test_a_link_in_the_place_of_the_folder_is_refused(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)

    with pytest.raises(Problem, match="no folder 'link'") as caught:
        collect(tmp_path / "link")

    assert caught.value.code == "invalid_artifact"
    assert not (folder / "manifest.json").exists()


def test_a_file_with_a_second_name_is_refused(folder, tmp_path):
    os.link(folder / "model.safetensors", tmp_path / "other name")

    with pytest.raises(Problem, match=r"model\.safetensors', which is no plain file"):
        collect(folder)


def test_folders_nested_without_end_are_refused(folder):
    deep = folder
    for _ in range(20):
        deep /= "x"
    deep.mkdir(parents=True)

    with pytest.raises(Problem, match="'x', which is no plain file"):
        collect(folder)


@pytest.mark.parametrize(
    "make",
    [
        os.mkfifo,
        lambda path: os.symlink("/etc/passwd", path),
        lambda path: os.symlink("/dev/zero", path),
        os.mkdir,
    ],
    ids=["fifo", "link", "link to a device", "folder"],
)
def test_a_report_that_is_no_plain_file_is_refused_unread(tmp_path, make):
    make(tmp_path / "report.json")

    with pytest.raises(Problem, match=r"report\.json cannot be read") as caught:
        read_report(tmp_path / "report.json")

    assert "root:" not in caught.value.detail


def test_what_stands_in_a_report_that_is_none_is_not_told(tmp_path):
    (tmp_path / "report.json").write_text('{"secret": "of the house"}')

    with pytest.raises(Problem) as caught:
        read_report(tmp_path / "report.json")

    assert "of the house" not in caught.value.detail


def test_more_bytes_than_any_artifact_has_are_refused_unread_though_they_are_a_hole(folder):
    with (folder / "tokenizer.json").open("wb") as file:
        file.truncate(2**40)

    with pytest.raises(Problem, match=f"{MOST_BYTES} are allowed") as caught:
        collect(folder)

    assert caught.value.code == "invalid_artifact"


def test_an_artifact_without_tensors_is_refused(tmp_path):
    with pytest.raises(Problem, match="no safetensors"):
        measure_files(tmp_path, MOST_BYTES, no_check)


def test_a_check_that_raises_stops_the_work(folder):
    def stop():
        raise InterruptedError

    with pytest.raises(InterruptedError):
        measure_files(folder, MOST_BYTES, stop)
    assert not (folder / "manifest.json").exists()


def test_what_is_measured_stops_when_nobody_wants_it_any_more(folder):
    with (folder / "endless").open("wb") as file:
        file.truncate(2**42)
    asked = threading.Event()

    with measuring(folder, 2**43, asked.set) as measured:
        assert asked.wait(10)

    assert isinstance(measured.exception(), CancelledError)


def test_nobody_who_stops_waits_for_a_slow_disk(folder, monkeypatch):
    disk, asked = threading.Event(), threading.Event()
    monkeypatch.setattr("worker.collect.fsync", lambda _: asked.set() or disk.wait(60))

    with measuring(folder, MOST_BYTES, no_check) as measured:
        assert asked.wait(10)

    assert isinstance(measured.exception(), CancelledError)
    assert not disk.is_set()
    disk.set()


def test_a_disk_that_fails_fails_the_measuring(folder, monkeypatch):
    def fail(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("worker.collect.fsync", fail)

    with pytest.raises(OSError, match="Input/output error"):
        measure_files(folder, MOST_BYTES, no_check)


def test_a_report_that_is_none_is_refused(tmp_path):
    path = tmp_path / "report.json"
    with pytest.raises(Problem, match="invalid_artifact"):
        read_report(path)

    path.write_text('{"model": 1}')
    with pytest.raises(Problem, match="invalid_artifact"):
        read_report(path)

    with path.open("wb") as file:
        file.truncate(MAX_REPORT_BYTES + 1)
    with pytest.raises(Problem, match="larger than"):
        read_report(path)
