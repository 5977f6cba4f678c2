import errno
import fcntl
import json
import os
import subprocess
import sys
import threading

import pytest

from jobs.blobs import BlobStore, now_ms
from jobs.job import JobResult, JobSpec, new_job_id
from jobs.recipe import load_recipe

DIGEST = "ab" * 32
RECIPE = load_recipe("steps: [{op: quantize, scheme: w8a16}]")


@pytest.fixture
def blobs(tmp_path):
    return BlobStore(tmp_path)


@pytest.fixture
def job_id(blobs):
    spec = JobSpec(id=new_job_id(), model="mdl_" + DIGEST, recipe=RECIPE, created_ms=now_ms())
    blobs.write_spec(spec)
    assert blobs.read_spec(spec.id) == spec
    return spec.id


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def put(blobs, content=b"x"):
    with blobs.stage() as staged:
        (staged / "files" / "model.safetensors").write_bytes(content)
        return blobs.publish("models", DIGEST, staged, {"bytes": len(content)})


def test_what_was_published_is_found(blobs):
    assert put(blobs) is True

    assert blobs.meta("models", DIGEST) == {"bytes": 1}
    assert (blobs.files("models", DIGEST) / "model.safetensors").read_bytes() == b"x"
    assert files_below(blobs.root) == [
        f"models/{DIGEST}/files/model.safetensors",
        f"models/{DIGEST}/meta.json",
    ]


def test_the_same_content_is_stored_once(blobs):
    assert [put(blobs), put(blobs)] == [True, False]
    assert len(list((blobs.root / "models").iterdir())) == 1
    assert list((blobs.root / "staging").iterdir()) == []


def test_an_upload_that_fails_leaves_nothing(blobs):
    def upload_and_fail():
        with blobs.stage() as staged:
            (staged / "files" / "half").write_bytes(b"x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        upload_and_fail()

    assert files_below(blobs.root) == []


def test_a_result_is_published_once_whoever_tries(blobs, job_id):
    answers = []

    def publish(attempt):
        result = JobResult(id=job_id, state="succeeded", attempt=attempt, finished_ms=1)
        answers.append((blobs.publish_result(result), attempt))

    threads = [threading.Thread(target=publish, args=(n,)) for n in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    [winner] = [attempt for won, attempt in answers if won]
    assert blobs.read_result(job_id).attempt == winner
    assert files_below(blobs.job_folder(job_id)) == ["result.json", "spec.json"]


def test_a_later_attempt_removes_the_scratch_of_earlier_ones(blobs, job_id):
    (blobs.work_folder(job_id, 3) / "x").write_text("")

    folder = blobs.work_folder(job_id, 7)

    assert [path.name for path in blobs.job_folder(job_id).glob("work-*")] == ["work-7"]
    assert list(folder.iterdir()) == []


def test_an_earlier_attempt_leaves_the_scratch_of_later_ones_alone(blobs, job_id):
    (blobs.work_folder(job_id, 7) / "x").write_text("")

    blobs.work_folder(job_id, 3)

    assert (blobs.job_folder(job_id) / "work-7" / "x").exists()


def test_sweeping_removes_what_a_killed_process_left(blobs, job_id):
    script = (
        "import os, sys, pathlib\n"
        "from jobs.blobs import BlobStore\n"
        "with BlobStore(pathlib.Path(sys.argv[1])).stage() as staged:\n"
        "    (staged / 'files' / 'half').write_bytes(b'x')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(blobs.root)], check=False)
    assert any("half" in name for name in files_below(blobs.root))

    with blobs.stage() as ours:
        blobs.sweep()

        assert list((blobs.root / "staging").iterdir()) == [ours]


def test_sweeping_removes_all_but_the_artifact_of_an_ended_job(blobs, job_id):
    for name in ("work-1", "artifact-1", "artifact-2"):
        (blobs.job_folder(job_id) / name).mkdir()
    assert blobs.sweep() == []
    blobs.publish_result(
        JobResult(
            id=job_id, state="succeeded", attempt=2, artifact_folder="artifact-2", finished_ms=1
        )
    )

    blobs.sweep()

    assert sorted(p.name for p in blobs.job_folder(job_id).iterdir() if p.is_dir()) == [
        "artifact-2"
    ]
    assert blobs.artifact_folder(job_id).name == "artifact-2"


def test_removing_leaves_nothing(blobs, job_id):
    put(blobs)

    assert blobs.remove("models", DIGEST) is True
    assert blobs.remove("models", DIGEST) is False
    assert blobs.remove_job(job_id) is True
    assert blobs.remove_job(job_id) is False
    assert files_below(blobs.root) == []


def test_jobs_are_listed_oldest_first_and_strangers_left_out(blobs, job_id):
    second = JobSpec(id=new_job_id(), model="mdl_" + DIGEST, recipe=RECIPE, created_ms=now_ms())
    blobs.write_spec(second)
    (blobs.root / "jobs" / "lost+found").mkdir()

    assert list(blobs.job_ids()) == sorted([job_id, second.id])
    assert json.loads((blobs.job_folder(job_id) / "spec.json").read_text())["id"] == job_id


def test_a_full_disk_leaves_nothing_of_what_could_not_be_written(blobs, job_id, monkeypatch):
    before = sorted(blobs.root.rglob("*"))

    def fail(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("jobs.blobs.os.fsync", fail)
    spec = JobSpec(id=new_job_id(), model="mdl_" + DIGEST, recipe=RECIPE, created_ms=now_ms())
    with pytest.raises(OSError, match="No space"):
        blobs.write_spec(spec)
    with pytest.raises(OSError, match="No space"):
        blobs.write_report(job_id, {})
    with pytest.raises(OSError, match="No space"):
        blobs.publish_result(JobResult(id=job_id, state="failed", attempt=1, finished_ms=1))

    assert sorted(blobs.root.rglob("*")) == before


def test_sweeping_removes_old_drafts_of_an_ended_job(blobs, job_id):
    old, young = (blobs.job_folder(job_id) / f"report.json.{n}.tmp" for n in (1, 2))
    for draft in (old, young):
        draft.write_text("{")
    os.utime(old, (1, 1))
    blobs.publish_result(JobResult(id=job_id, state="failed", attempt=1, finished_ms=1))

    assert blobs.sweep() == [f"{job_id}/{old.name}"]
    assert young.exists()


def test_an_upload_that_just_begins_is_not_swept(blobs, monkeypatch):
    lock = fcntl.flock

    def sweep_first(file, operation):
        if operation == fcntl.LOCK_EX:
            assert blobs.sweep() == []
        lock(file, operation)

    monkeypatch.setattr("jobs.blobs.fcntl.flock", sweep_first)

    assert put(blobs) is True


def test_sweeping_removes_the_folder_of_a_submit_that_died(blobs):
    died, young = (blobs.job_folder(new_job_id()) for _ in range(2))
    for folder in (died, young):
        folder.mkdir()
        (folder / "spec.json.1.tmp").write_text("{")
    for path in (died / "spec.json.1.tmp", died):
        os.utime(path, (1, 1))

    blobs.sweep()

    assert (died.exists(), young.exists()) == (False, True)
