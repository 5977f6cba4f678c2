import errno
import json
import os
import threading

import pytest

from jobs.blobs import now_ms
from jobs.job import JobResult, JobSpec, new_job_id
from jobs.recipe import load_recipe

DIGEST = "ab" * 32
RECIPE = load_recipe("steps: [{op: quantize, scheme: w8a16}]")


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


def test_a_later_attempt_takes_over_the_scratch_of_the_last_one_before_it(blobs, job_id):
    for token in (3, 10, 9):
        # As if none had known of the others.
        folder = blobs.job_folder(job_id) / f"work-{token}"
        folder.mkdir()
        (folder / str(token)).write_text("")

    folder = blobs.work_folder(job_id, 12)

    assert [path.name for path in blobs.job_folder(job_id).glob("work-*")] == ["work-12"]
    assert [path.name for path in folder.iterdir()] == ["10"]


def test_an_earlier_attempt_leaves_the_scratch_of_later_ones_alone(blobs, job_id):
    (blobs.work_folder(job_id, 7) / "x").write_text("")

    blobs.work_folder(job_id, 3)

    assert (blobs.job_folder(job_id) / "work-7" / "x").exists()


def test_a_stop_stays_noted_and_a_job_is_begun_once_an_attempt_was(blobs, job_id):
    folder = blobs.requests_folder(job_id)
    assert not blobs.has_stop(job_id)

    blobs.note_stop(job_id)
    blobs.note_stop(job_id)

    assert blobs.has_stop(job_id)
    assert [path.name for path in folder.iterdir()] == ["stop"]
    assert not blobs.was_begun(job_id)
    blobs.work_folder(job_id, 1)
    assert blobs.was_begun(job_id)


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


def test_an_upload_whose_equal_is_removed_at_that_moment_takes_its_place(blobs, monkeypatch):
    with blobs.stage() as staged:
        blobs.publish("models", "ab" * 32, staged, {"number": 1})

    def remove(store, digest):
        blobs.remove(store, digest)
        return False

    monkeypatch.setattr(blobs, "touch", remove)
    with blobs.stage() as staged:
        assert blobs.publish("models", "ab" * 32, staged, {"number": 2})

    assert blobs.meta("models", "ab" * 32) == {"number": 2}
