"""A disk that is too small, or that fills while a job writes: the job says so, and leaves nothing.

On a real file system of a few megabytes, where the tests may mount one.
"""

import errno
import os
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from jobs.queue import waiting_rings
from jobs.reaper import publish_end

MIB = 2**20


@pytest.fixture
def small_disk(tmp_path):
    """A folder with a file system of 160 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=160m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def cramped(small_disk, make_workshop):
    """A workshop whose disk has room for little more than one artifact of its large model."""
    return make_workshop(small_disk)


def fill(folder: Path, leave: int = 0) -> Path:
    """Take up what is free, in a file."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while (free := shutil.disk_usage(folder).free) > leave:
            file.write(bytes(min(free - leave, MIB)))
    return path


def run_to_the_end(workshop, job_id):
    for _ in range(3):
        workshop.supervisor.run("default", job_id)
    return workshop.store.get(job_id)


def files_below(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def test_what_data_decided_about_is_written_until_the_disk_is_full(small_disk):
    torch = pytest.importorskip("torch")
    from calibration.choosing import _save

    def write():
        for number in range(10):
            _save({"a": torch.zeros(5 * MIB)}, small_disk / f"{number}.safetensors")

    with pytest.raises(OSError, match="No space left on device") as caught:
        write()

    assert caught.value.errno == errno.ENOSPC


def test_a_disk_too_small_is_told_with_both_figures_before_anything_is_written(cramped):
    model = cramped.large_model()
    filler = fill(cramped.blobs.root, leave=64 * MIB)
    job_id = cramped.submit(model)
    before = shutil.disk_usage(cramped.blobs.root).free

    job = run_to_the_end(cramped, job_id)

    assert (job.state, job.failure["code"]) == ("failed", "storage_full")
    assert [row.reason for row in job.attempts] == ["storage_full"] * 3
    assert 128 * MIB < job.failure["needed_bytes"] < 140 * MIB
    assert before - MIB < job.failure["free_bytes"] <= before
    assert files_below(cramped.blobs.job_folder(job_id)) == {"spec.json", "result.json"}
    filler.unlink()
    assert cramped.run(model).state == "succeeded"


def test_a_disk_that_fills_while_a_job_writes_leaves_nothing_of_it(cramped):
    model = cramped.large_model()
    job_id = cramped.submit(model)
    folder = cramped.blobs.job_folder(job_id)

    def fill_up(runner):
        while not any(path.stat().st_blocks for path in folder.glob("work-*/artifact/*")):
            assert runner.is_running()
        runner.suspend()
        # The weights have their place by now; what is written after them has none.
        fill(cramped.blobs.root)
        runner.resume()

    cramped.while_running(job_id, fill_up)

    job = cramped.store.get(job_id)
    assert (job.state, job.attempts[0].reason) == ("queued", "storage_full")
    assert files_below(folder) == {"spec.json"}
    assert [path.name for path in folder.iterdir()] == ["spec.json"]
    job = run_to_the_end(cramped, job_id)
    assert (job.state, job.failure["code"]) == ("failed", "storage_full")
    assert files_below(folder) == {"spec.json", "result.json"}


def test_a_disk_that_is_full_is_given_time_before_the_next_attempt(workshop, monkeypatch):
    def fill(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("worker.collect.measure_files", fill)
    job_id = workshop.submit(workshop.small_model())

    workshop.supervisor.run("default", job_id)

    assert workshop.store.get(job_id).state == "queued"
    assert waiting_rings(workshop.store.redis, workshop.settings.queue) == 0
    [(_, due_ms)] = workshop.store.redis.zrange("modelpress:default:open", 0, 0, withscores=True)
    assert 20 < due_ms / 1000 - time.time() < 31


def test_a_disk_without_a_byte_left_still_lets_a_job_end(cramped):
    model = cramped.large_model()
    job_id = cramped.submit(model)
    filler = fill(cramped.blobs.root)

    job = run_to_the_end(cramped, job_id)

    assert (job.state, job.failure["code"]) == ("failed", "storage_full")
    assert files_below(cramped.blobs.job_folder(job_id)) == {"spec.json"}
    filler.unlink()
    publish_end(cramped.store, cramped.blobs, job_id)
    assert cramped.blobs.read_result(job_id).failure == job.failure


def test_a_disk_that_is_full_when_the_end_is_written_keeps_no_artifact(workshop, monkeypatch):
    publish = workshop.blobs.publish_result

    def refuse_success(result):
        if result.state == "succeeded":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return publish(result)

    monkeypatch.setattr(workshop.blobs, "publish_result", refuse_success)
    job_id = workshop.submit(workshop.small_model())

    workshop.supervisor.run("default", job_id)

    assert workshop.store.get(job_id).attempts[0].reason == "storage_full"
    assert [path.name for path in workshop.blobs.job_folder(job_id).glob("*-*")] == []
