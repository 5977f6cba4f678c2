import fcntl
import os
import subprocess
import sys

from jobs.job import JobResult, new_job_id
from jobs.sweeping import sweep


def test_sweeping_removes_what_a_killed_process_left(blobs, job_id):
    script = (
        "import os, sys, pathlib\n"
        "from jobs.blobs import BlobStore\n"
        "with BlobStore(pathlib.Path(sys.argv[1]), 'default').stage() as staged:\n"
        "    (staged / 'files' / 'half').write_bytes(b'x')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(blobs.root.parents[1])], check=False)
    assert [path.name for path in blobs.root.rglob("half")] == ["half"]

    with blobs.stage() as ours:
        sweep(blobs)

        assert list((blobs.root / "staging").iterdir()) == [ours]


def test_sweeping_removes_all_but_the_artifact_of_an_ended_job(blobs, job_id):
    for name in ("work-1", "artifact-1", "artifact-2"):
        (blobs.job_folder(job_id) / name).mkdir()
    assert sweep(blobs) == []
    blobs.publish_result(
        JobResult(
            id=job_id, state="succeeded", attempt=2, artifact_folder="artifact-2", finished_ms=1
        )
    )

    sweep(blobs)

    assert sorted(p.name for p in blobs.job_folder(job_id).iterdir() if p.is_dir()) == [
        "artifact-2"
    ]
    assert blobs.artifact_folder(job_id).name == "artifact-2"


def test_sweeping_removes_old_drafts_of_an_ended_job(blobs, job_id):
    old, young = (blobs.job_folder(job_id) / f"report.json.{n}.tmp" for n in (1, 2))
    for draft in (old, young):
        draft.write_text("{")
    os.utime(old, (1, 1))
    blobs.publish_result(JobResult(id=job_id, state="failed", attempt=1, finished_ms=1))

    assert sweep(blobs) == [f"{job_id}/{old.name}"]
    assert young.exists()


def test_an_upload_that_just_begins_is_not_swept(blobs, monkeypatch):
    lock = fcntl.flock

    def sweep_first(file, operation):
        if operation == fcntl.LOCK_EX:
            assert sweep(blobs) == []
        lock(file, operation)

    monkeypatch.setattr("jobs.blobs.fcntl.flock", sweep_first)

    with blobs.stage() as staged:
        assert staged.exists()


def test_sweeping_removes_the_folder_of_a_submit_that_died(blobs):
    died, young = (blobs.job_folder(new_job_id()) for _ in range(2))
    for folder in (died, young):
        folder.mkdir()
        (folder / "spec.json.1.tmp").write_text("{")
    for path in (died / "spec.json.1.tmp", died):
        os.utime(path, (1, 1))

    sweep(blobs)

    assert (died.exists(), young.exists()) == (False, True)
