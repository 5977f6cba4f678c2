import contextlib
import errno
import filecmp
import hashlib
import json
import os
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from safetensors.numpy import load_file
from structlog.testing import capture_logs

from engine.pipeline import compress
from jobs.blobs import BlobStore
from jobs.job import JobResult
from jobs.levels import publish_levels, read_levels
from jobs.problems import Problem
from jobs.queue import waiting_rings
from jobs.recipe import parse_recipe
from jobs.tenants import Tenants
from worker.attempt import watch
from worker.checksums import Checksums
from worker.collect import measure_files
from worker.supervisor import Supervisor, choose_device

INT8 = {"steps": [{"op": "quantize", "scheme": "w8a16"}]}


def only_essentials(blobs: BlobStore, job_id: str) -> set[str]:
    return {path.name.rstrip("0123456789") for path in blobs.job_folder(job_id).iterdir()}


def test_a_job_becomes_an_artifact_with_a_report(workshop):
    job = workshop.run(workshop.small_model())

    folder = workshop.blobs.artifact_folder(job.id)
    assert job.state == "succeeded", job.failure
    assert [file.path for file in job.artifact.files] == [
        "load.py",
        "manifest.json",
        "model.safetensors",
    ]
    assert "fc.weight_packed" in load_file(folder / "model.safetensors")
    assert workshop.blobs.report(job.id)["artifact"]["size_ratio"] < 0.5
    assert [(row.number, row.outcome) for row in job.attempts] == [(1, "succeeded")]
    assert only_essentials(workshop.blobs, job.id) == {
        "artifact-",
        "report.json",
        "result.json",
        "spec.json",
    }


def test_equal_jobs_give_artifacts_of_equal_bytes(workshop):
    model = workshop.small_model()

    first, second = workshop.run(model), workshop.run(model)

    assert first.artifact == second.artifact


def test_a_doorbell_too_many_does_nothing(workshop):
    job = workshop.run(workshop.small_model())

    workshop.supervisor.run("default", job.id)
    workshop.supervisor.run("default", "job_" + "0" * 32)

    assert workshop.store.get(job.id) == job


def test_a_doorbell_too_many_serves_a_job_whose_own_was_lost(workshop):
    ended = workshop.run(workshop.small_model())
    older, younger = (workshop.submit(workshop.small_model()) for _ in range(2))

    workshop.supervisor.run("default", ended.id)

    assert workshop.store.get(older).state == "succeeded"
    assert workshop.store.get(younger).state == "queued"


@pytest.mark.parametrize("name", ["read_levels", "check_budget"])
def test_a_redis_that_is_gone_for_a_moment_does_not_cost_what_was_made(workshop, monkeypatch, name):
    def refuse(*_):
        raise RedisConnectionError("Connection refused")

    job_id = workshop.submit(workshop.small_model())
    with monkeypatch.context() as patch:
        patch.setattr(f"worker.supervisor.{name}", refuse)
        workshop.supervisor.run("default", job_id)

    assert workshop.store.get(job_id).state == "running"
    assert list(workshop.blobs.job_folder(job_id).glob("work-*")) != []


def test_what_plans_would_like_to_know_fails_no_job(workshop, monkeypatch):
    def refuse(*_):
        raise RedisConnectionError("Connection refused")

    monkeypatch.setattr("worker.announcements.add_report", refuse)
    monkeypatch.setattr("worker.announcements.publish_levels", refuse)

    assert workshop.run(workshop.small_model()).state == "succeeded"


def test_a_job_that_would_change_nothing_fails_and_says_so(workshop):
    recipe = {"steps": [{"op": "quantize", "scheme": "w8a16", "include": ["nothing.*"]}]}

    job = workshop.run(workshop.small_model(), recipe)

    assert (job.state, job.failure["code"]) == ("failed", "nothing_changed")
    assert job.attempt == 1
    assert workshop.blobs.read_result(job.id).state == "failed"
    assert only_essentials(workshop.blobs, job.id) == {"result.json", "spec.json"}


def test_a_gate_that_is_not_passed_withholds_the_artifact_and_keeps_the_report(workshop):
    job = workshop.run(workshop.small_model(), INT8 | {"gate": {"max_size_ratio": 0.1}})

    assert (job.state, job.failure["code"], job.artifact) == ("failed", "gate_failed", None)
    assert workshop.blobs.report(job.id)["artifact"]["size_ratio"] > 0.1
    assert workshop.blobs.artifact_folder(job.id) is None


def test_a_model_that_is_gone_fails_the_job(workshop):
    job = workshop.run("mdl_" + "f" * 64)

    assert (job.state, job.failure["code"]) == ("failed", "model_not_found")


def test_a_cancel_stops_the_runner_within_seconds(workshop):
    job_id = workshop.submit(workshop.large_model())
    gone = []

    def act(runner):
        # Stopped, it can neither finish nor hear a polite signal: the kill must come from outside.
        runner.suspend()
        gone.append(runner)
        workshop.store.cancel(job_id)

    started = time.monotonic()
    workshop.while_running(job_id, act)

    assert time.monotonic() - started < 3
    assert workshop.store.get(job_id).state == "cancelled"
    assert not gone[0].is_running()
    assert only_essentials(workshop.blobs, job_id) == {"result.json", "spec.json"}


def test_a_killed_runner_is_tried_again_and_gives_the_same_bytes(workshop):
    model = workshop.large_model()
    undisturbed = workshop.run(model)
    job_id = workshop.submit(model)

    workshop.while_running(job_id, lambda runner: runner.kill())
    assert workshop.store.get(job_id).state == "queued"
    workshop.supervisor.run("default", job_id)

    job = workshop.store.get(job_id)
    assert (job.state, job.attempt) == ("succeeded", 2)
    assert [(row.outcome, row.reason) for row in job.attempts] == [
        ("requeued", "runner_died"),
        ("succeeded", None),
    ]
    assert job.artifact == undisturbed.artifact


def journalled(workshop, job_id: str, lines: int) -> None:
    """Wait until a job's journal has so many lines."""
    journals = workshop.blobs.job_folder(job_id).glob
    while not any(path.read_bytes().count(b"\n") >= lines for path in journals("work-*/journal")):
        pass


def test_the_attempt_after_a_killed_one_goes_on_where_that_was(workshop, tmp_path):
    model = workshop.large_model()
    job_id = workshop.submit(model)

    def kill(runner):
        journalled(workshop, job_id, lines=4)
        runner.kill()

    workshop.while_running(job_id, kill)
    [left] = workshop.blobs.job_folder(job_id).glob("work-*")
    workshop.supervisor.run("default", job_id)

    job = workshop.store.get(job_id)
    assert (job.state, job.attempt) == ("succeeded", 2), job.failure
    # A line says which job it is, each other comes after 8 chunks of a MiB.
    assert workshop.blobs.report(job_id)["resumed"]["bytes_skipped"] >= 3 * 8 * 1024**2
    assert not left.exists()
    whole = tmp_path / "whole"
    whole.mkdir()
    files = workshop.blobs.files("models", model.removeprefix("mdl_"))
    compress(files, whole, parse_recipe(INT8), on_progress=lambda _: None)
    for path in whole.iterdir():
        resumed = workshop.blobs.artifact_folder(job_id) / path.name
        assert filecmp.cmp(path, resumed, shallow=False), path.name


def test_a_runner_that_always_dies_fails_the_job_after_three_attempts(workshop):
    job_id = workshop.submit(workshop.large_model())

    for _ in range(3):
        workshop.while_running(job_id, lambda runner: runner.send_signal(signal.SIGSEGV))
    workshop.supervisor.run("default", job_id)

    job = workshop.store.get(job_id)
    assert (job.state, job.attempt, job.failure["code"]) == ("failed", 3, "runner_died")
    assert job.failure["detail"] == "The runner was killed by SIGSEGV."
    assert only_essentials(workshop.blobs, job_id) == {"result.json", "spec.json"}
    assert workshop.blobs.read_result(job_id).failure == job.failure


@pytest.mark.slow
def test_a_killed_template_is_replaced(workshop):
    job_id = workshop.submit(workshop.large_model())

    def act(runner):
        while workshop.store.get(job_id).progress is None:
            assert runner.is_running()
        # Stopped, it cannot be done before its template is dead.
        runner.suspend()
        os.kill(runner.ppid(), signal.SIGKILL)
        psutil.wait_procs([runner], timeout=10)

    workshop.while_running(job_id, act)
    workshop.supervisor.run("default", job_id)

    job = workshop.store.get(job_id)
    assert (job.state, job.attempt) == ("succeeded", 2)


def test_a_runtime_that_is_passed_stops_the_runner(workshop):
    job_id = workshop.submit(workshop.large_model(), INT8 | {"budget": {"runtime": "300ms"}})

    workshop.while_running(job_id, lambda runner: runner.suspend())

    job = workshop.store.get(job_id)
    assert (job.state, job.failure["code"]) == ("failed", "runtime_exceeded")
    assert job.failure["limit_seconds"] == 0.3


def test_a_memory_budget_that_is_passed_stops_the_runner(workshop, wait_until):
    wait_until(lambda: read_levels(workshop.store.redis), "the worker to tell its levels")
    publish_levels(workshop.store.redis, {"idle_bytes": 1})

    job = workshop.run(workshop.large_model(), INT8 | {"budget": {"host_memory": "32MiB"}})

    assert (job.state, job.failure["code"]) == ("failed", "memory_budget_exceeded")


@pytest.mark.slow
def test_a_memory_budget_too_small_is_refused_with_the_smallest_and_that_one_works(
    workshop, wait_until
):
    wait_until(lambda: read_levels(workshop.store.redis), "the worker to tell its levels")
    recipe = {"steps": [{"op": "prune", "sparsity": 0.5}, *INT8["steps"]]}

    def run(host_memory):
        return workshop.run(
            workshop.large_model(), recipe | {"budget": {"host_memory": host_memory}}
        )

    refused = run("8MiB")
    least = refused.failure["smallest_bytes"]
    short, enough = run(least - 1), run(least)

    assert refused.failure["code"] == short.failure["code"] == "memory_budget_exceeded"
    assert short.failure["smallest_bytes"] == least
    assert enough.state == "succeeded"
    memory = workshop.blobs.report(enough.id)["memory"]
    assert memory["budget_bytes"] == least
    assert memory["headroom_bytes"] == least - memory["measured_peak_bytes"] >= 0
    assert memory["measured_peak_bytes"] > 0.9 * memory["predicted_peak_bytes"]


def test_a_worker_that_is_shut_down_gives_its_job_back_uncounted(workshop):
    job_id = workshop.submit(workshop.large_model())
    reading, writing = os.pipe()
    workshop.supervisor._drain = reading

    def shut_down(_):
        journalled(workshop, job_id, lines=2)
        os.write(writing, b"!")

    workshop.while_running(job_id, shut_down)
    os.close(reading)
    os.close(writing)

    job = workshop.store.get(job_id)
    assert (job.state, job.attempt, job.attempts[0].reason) == ("queued", 0, "drained")
    workshop.supervisor._drain = None
    workshop.supervisor.run("default", job_id)
    assert workshop.blobs.report(job_id)["resumed"]["bytes_skipped"] > 0


def test_a_job_taken_by_another_worker_is_let_go(workshop):
    job_id = workshop.submit(workshop.large_model())

    def take_away(runner):
        runner.suspend()
        outcome = "held"
        while outcome == "held":
            # The holder may renew between these two.
            workshop.store.redis.hset(workshop.store.key(job_id), "lease_until_ms", 1)
            outcome = workshop.store.claim(job_id, "other").outcome
        assert outcome == "claimed"

    workshop.while_running(job_id, take_away)

    job = workshop.store.get(job_id)
    assert (job.state, job.attempts[-1].worker) == ("running", "other")
    assert workshop.blobs.read_result(job_id) is None


def test_a_zombie_whose_scratch_was_taken_over_knows_that_its_job_is_lost(
    workshop, monkeypatch, wait_until
):
    job_id = workshop.submit(workshop.small_model())

    def sleep_over_the_lease(runner, lease, *rest):
        outcome = watch(runner, lease, *rest)
        workshop.store.redis.hset(workshop.store.key(job_id), "lease_until_ms", 1)
        claim = workshop.store.claim(job_id, "another")
        workshop.blobs.work_folder(job_id, claim.token)
        wait_until(lambda: lease.verdict, "the lease to be lost")
        return outcome

    monkeypatch.setattr("worker.supervisor.watch", sleep_over_the_lease)

    with capture_logs() as logs:
        workshop.supervisor.run("default", job_id)

    assert [row["outcome"] for row in logs if row["event"] == "attempt"] == ["lost"]


def test_a_result_that_another_attempt_published_is_kept(workshop):
    job_id = workshop.submit(workshop.small_model())
    theirs = JobResult(id=job_id, state="succeeded", attempt=1, finished_ms=1)
    workshop.blobs.publish_result(theirs)

    workshop.supervisor.run("default", job_id)

    assert workshop.store.get(job_id).state == "succeeded"
    assert workshop.blobs.read_result(job_id) == theirs


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_runners_work_in_a_sandbox_and_hold_nothing_but_their_pipe_and_files(workshop):
    job_id = workshop.submit(workshop.large_model())
    seen = {}

    def look(runner):
        for kind in ("net", "pid", "mnt", "user", "ipc"):
            seen[kind] = os.readlink(f"/proc/{runner.pid}/ns/{kind}")
        for name in os.listdir(f"/proc/{runner.pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                seen[int(name)] = os.readlink(f"/proc/{runner.pid}/fd/{name}")

    workshop.while_running(job_id, look)

    assert workshop.store.get(job_id).state == "succeeded"
    assert workshop.supervisor.runners.level == "bwrap"
    for kind in ("net", "pid", "mnt", "user", "ipc"):
        assert seen.pop(kind) != os.readlink(f"/proc/self/ns/{kind}")
    held = [target for number, target in seen.items() if number > 2]
    assert sum(target.startswith("pipe:") for target in held) == 1
    # It looks at its own memory now and then.
    own = ("pipe:", "/proc/", str(workshop.blobs.root))
    assert all(target.startswith(own) for target in held), held


def test_nothing_is_left_running_when_the_supervisor_stops(workshop):
    other = Supervisor(workshop.settings, workshop.tenants, workshop.celery)
    template = psutil.Process(other.runners.template_pid)

    other.stop()

    assert not template.is_running()


@pytest.mark.slow
def test_large_artifacts_get_their_sha256_after_the_job(workshop, wait_until):
    job = workshop.run(workshop.large_model())
    assert {file.sha256 for file in job.artifact.files} == {None}

    digests = workshop.blobs.job_folder(job.id) / "sha256.json"
    wait_until(digests.exists, "the digests")

    folder = workshop.blobs.artifact_folder(job.id)
    assert json.loads(digests.read_bytes()) == {
        file.path: hashlib.sha256((folder / file.path).read_bytes()).hexdigest()
        for file in job.artifact.files
    }


@pytest.mark.slow
def test_the_next_worker_hashes_what_one_that_ended_left(workshop, wait_until):
    job = workshop.run(workshop.large_model())
    started = time.monotonic()
    workshop.supervisor._checksums.stop()
    assert time.monotonic() - started < 1
    digests = workshop.blobs.job_folder(job.id) / "sha256.json"
    digests.unlink(missing_ok=True)

    checksums = Checksums(lambda: [workshop.blobs])
    wait_until(digests.exists, "the digests")
    checksums.stop()


def pipe_of(runner: psutil.Process) -> Path:
    """Give the runner's end of the pipe to its supervisor."""
    folder = Path(f"/proc/{runner.pid}/fd")
    while True:
        for path in folder.iterdir():
            if int(path.name) > 2 and os.readlink(path).startswith("pipe:"):
                return path


def test_a_runner_that_talks_nonsense_is_stopped_and_harms_no_later_job(workshop):
    job_id = workshop.submit(workshop.large_model())
    gone = []

    def act(runner):
        pipe = pipe_of(runner)
        runner.suspend()
        gone.append(runner)
        with pipe.open("wb", buffering=0) as file:
            file.write(b'[1, 2]\n{"progress": {}}\nnonsense\n')

    workshop.while_running(job_id, act)

    job = workshop.store.get(job_id)
    assert (job.state, job.attempts[0].reason) == ("queued", "runner_died")
    assert not gone[0].is_running()
    workshop.store.cancel(job_id)
    assert workshop.run(workshop.small_model()).state == "succeeded"


def test_a_cancel_that_comes_while_the_artifact_is_hashed_counts(workshop, monkeypatch):
    def cancel_while_hashing(folder, most_bytes, check):
        workshop.store.cancel(job_id)
        return measure_files(folder, most_bytes, lambda: None)

    monkeypatch.setattr("worker.collect.measure_files", cancel_while_hashing)
    job_id = workshop.submit(workshop.small_model())

    workshop.supervisor.run("default", job_id)

    assert workshop.store.get(job_id).state == "cancelled"
    assert workshop.blobs.artifact_folder(job_id) is None


def test_a_worker_that_is_shut_down_while_it_hashes_gives_its_job_back(workshop, monkeypatch):
    reading, writing = os.pipe()
    workshop.supervisor._drain = reading

    def drain_while_hashing(folder, most_bytes, check):
        os.write(writing, b"!")
        return measure_files(folder, most_bytes, check)

    monkeypatch.setattr("worker.collect.measure_files", drain_while_hashing)
    job = workshop.run(workshop.small_model())
    os.close(reading)
    os.close(writing)

    assert (job.state, job.attempt, job.attempts[0].reason) == ("queued", 0, "drained")


def test_a_stale_attempt_does_not_replace_the_report(workshop, monkeypatch):
    def lose_while_hashing(folder, most_bytes, check):
        workshop.store.redis.hset(workshop.store.key(job_id), "token", 999)
        workshop.blobs.write_report(job_id, {"of": "the other attempt"})
        return measure_files(folder, most_bytes, lambda: None)

    monkeypatch.setattr("worker.collect.measure_files", lose_while_hashing)
    job_id = workshop.submit(workshop.small_model())

    workshop.supervisor.run("default", job_id)

    assert workshop.blobs.report(job_id) == {"of": "the other attempt"}


def test_a_disk_that_is_full_fails_the_job_and_keeps_no_scratch(workshop, monkeypatch):
    def fill(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("worker.collect.measure_files", fill)
    job_id = workshop.submit(workshop.small_model())
    scratch = []
    release = workshop.store.release

    def look_then_release(*args, **kwargs):
        scratch.extend(workshop.blobs.job_folder(job_id).glob("work-*"))
        return release(*args, **kwargs)

    monkeypatch.setattr(workshop.store, "release", look_then_release)
    workshop.supervisor.run("default", job_id)

    assert workshop.store.get(job_id).attempts[0].reason == "storage_full"
    assert scratch == []


def test_a_ctrl_c_in_the_terminal_reaches_no_template(workshop):
    assert os.getpgid(workshop.supervisor.runners.template_pid) != os.getpgid(0)


def test_the_device_is_chosen_without_torch():
    assert choose_device("cpu") == "cpu"
    assert choose_device("cuda") == "cuda"
    assert choose_device("auto") in ("cpu", "cuda")


def test_equal_jobs_that_are_submitted_together_are_made_once(workshop):
    model = workshop.small_model()
    recipes = [INT8, INT8 | {"budget": {"runtime": "1h"}}, INT8 | {"gate": {"max_size_ratio": 1}}]
    job_ids = [workshop.submit(model, recipe, use_cache=True) for recipe in recipes]

    for job_id in job_ids:
        workshop.supervisor.run("default", job_id)

    jobs = [workshop.store.get(job_id) for job_id in job_ids]
    assert [(job.state, job.cache) for job in jobs] == [
        ("succeeded", "miss"),
        ("succeeded", "hit"),
        ("succeeded", "hit"),
    ]
    assert [row.outcome for row in jobs[1].attempts] == ["succeeded"]
    assert jobs[0].artifact == jobs[1].artifact == jobs[2].artifact
    assert workshop.blobs.report(job_ids[1]) == workshop.blobs.report(job_ids[0])
    inodes = {
        (workshop.blobs.artifact_folder(job_id) / "model.safetensors").stat().st_ino
        for job_id in job_ids
    }
    assert len(inodes) == 1


def test_a_job_that_is_to_be_run_gives_the_bytes_of_an_equal_one(workshop):
    model = workshop.small_model()

    first, second = (workshop.run(model, INT8 | {"budget": {"runtime": h}}) for h in ("1h", "2h"))

    assert (first.cache, second.cache) == ("bypass", "bypass")
    assert first.artifact == second.artifact


def test_a_gate_that_an_equal_job_does_not_pass_fails_the_job_with_its_report(workshop):
    model = workshop.small_model()
    workshop.run(model)

    job = workshop.run(model, INT8 | {"gate": {"max_size_ratio": 0.1}}, use_cache=True)

    assert (job.state, job.cache, job.failure["code"]) == ("failed", "hit", "gate_failed")
    assert workshop.blobs.report(job.id)["artifact"]["size_ratio"] > 0.1
    assert only_essentials(workshop.blobs, job.id) == {"report.json", "result.json", "spec.json"}


def test_an_equal_job_that_lost_its_artifact_is_made_again(workshop):
    model = workshop.small_model()
    first = workshop.run(model)
    (workshop.blobs.artifact_folder(first.id) / "model.safetensors").unlink()

    second = workshop.run(model, use_cache=True)

    assert (second.cache, second.artifact) == ("miss", first.artifact)


@pytest.mark.slow
def test_a_doorbell_for_an_answered_job_completes_its_digests(workshop, wait_until):
    model = workshop.large_model()
    first, second = workshop.run(model), workshop.run(model, use_cache=True)
    digests = workshop.blobs.job_folder(second.id) / "sha256.json"
    wait_until(digests.exists, "the digests")
    expected = digests.read_bytes()
    digests.unlink()

    workshop.supervisor.run("default", second.id)

    wait_until(digests.exists, "the digests again")
    assert (second.cache, digests.read_bytes()) == ("hit", expected)
    assert first.artifact == second.artifact


def test_a_job_that_came_while_its_tenant_ran_enough_is_rung_for_at_the_end(workshop):
    settings = workshop.settings.model_copy(update={"quota_running": 1})
    tenants = Tenants(settings, workshop.store.redis)
    narrow = Supervisor(settings, tenants, workshop.celery)
    model = workshop.small_model()
    first, second, other = (workshop.submit(model) for _ in range(3))
    token = workshop.store.claim(other, "elsewhere").token

    narrow.run("default", first)
    assert workshop.store.get(first).state == "queued"
    assert waiting_rings(workshop.store.redis, "none") == 0

    workshop.store.release(other, token, Problem("drained", "x"), counted=False)
    narrow.run("default", first)

    assert workshop.store.get(first).state == "succeeded"
    assert waiting_rings(workshop.store.redis, "none") == 1
    assert workshop.store.next_to_run() in (second, other)
    narrow.stop()
