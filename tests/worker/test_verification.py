"""What happens between the process that makes an artifact and the one that verifies it."""

import os
import threading

import pytest

from jobs.safetensors_header import read_header
from worker.collect import read_report

INT8 = {"steps": [{"op": "quantize", "scheme": "w8a16"}]}


@pytest.fixture
def between(monkeypatch):
    """Have something done to a job's work folder when its artifact is made and not yet verified."""

    def arrange(act):
        def read_then_act(path):
            report = read_report(path)
            act(path.parent)
            return report

        monkeypatch.setattr("worker.supervisor.read_report", read_then_act)

    return arrange


@pytest.fixture
def held(between):
    """Have every verifier wait for its report for good, and tell when it does."""
    is_held = threading.Event()

    def replace_by_a_pipe(work):
        (work / "report.json").unlink()
        os.mkfifo(work / "report.json")
        is_held.set()

    between(replace_by_a_pipe)
    return is_held


def flip_first_byte_of(path, tensor_name):
    header = read_header(path)
    (tensor,) = (t for t in header.tensors if t.name == tensor_name)
    with path.open("r+b") as file:
        file.seek(header.data_start + tensor.start)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 0x10]))


def files_of(workshop, job_id):
    return {path.name for path in workshop.blobs.job_folder(job_id).iterdir()}


def test_the_report_tells_what_was_verified_and_what_that_took(workshop):
    job = workshop.run(workshop.small_model(), INT8 | {"budget": {"host_memory": "1GiB"}})

    report = workshop.blobs.report(job.id)
    verification, memory = report["verification"], report["memory"]
    assert (verification["tensors"], job.state) == (1, "succeeded")
    assert 0 < verification["rows"] <= 16
    assert 0 < verification["max_error_steps"] <= 0.5 + 2.0**-17
    assert verification["peak_bytes"] > 10 * 2**20
    assert memory["measured_peak_bytes"] == max(
        verification["peak_bytes"], memory["peak"]["resident_peak_bytes"]
    )
    assert memory["headroom_bytes"] == 2**30 - memory["measured_peak_bytes"]


def test_an_artifact_that_is_not_what_the_model_became_fails_the_job_and_is_not_kept(
    workshop, between
):
    between(lambda w: flip_first_byte_of(w / "artifact/model.safetensors", "fc.weight_packed"))

    job = workshop.run(workshop.small_model())

    assert (job.state, job.attempt, job.artifact) == ("failed", 1, None)
    assert job.failure["code"] == "invalid_artifact"
    assert (job.failure["tensor"], job.failure["row"]) == ("fc.weight", 0)
    assert "'fc.weight', row 0: column 0" in job.failure["detail"]
    assert files_of(workshop, job.id) == {"result.json", "spec.json"}


def test_an_artifact_with_a_file_too_many_fails_the_job(workshop, between):
    between(lambda work: (work / "artifact/extra.json").write_text("{}"))

    job = workshop.run(workshop.small_model())

    assert (job.state, job.failure["code"]) == ("failed", "invalid_artifact")
    assert "extra.json" in job.failure["detail"]


def test_a_cancel_stops_the_verifier(workshop, held):
    job_id = workshop.submit(workshop.small_model())
    gone = []

    def act(_):
        held.wait()
        gone.append(workshop.runner())
        workshop.store.cancel(job_id)

    workshop.while_running(job_id, act)

    assert workshop.store.get(job_id).state == "cancelled"
    assert not gone[0].is_running()
    assert files_of(workshop, job_id) == {"result.json", "spec.json"}


def test_a_killed_verifier_costs_an_attempt(workshop, held):
    job_id = workshop.submit(workshop.small_model())

    def act(_):
        held.wait()
        workshop.runner().kill()

    workshop.while_running(job_id, act)

    job = workshop.store.get(job_id)
    assert (job.state, job.attempt, job.attempts[0].reason) == ("queued", 1, "runner_died")


def test_the_runtime_is_that_of_both_processes(workshop, held):
    job = workshop.run(workshop.small_model(), INT8 | {"budget": {"runtime": "500ms"}})

    assert (job.state, job.failure["code"]) == ("failed", "runtime_exceeded")
    assert job.failure["limit_seconds"] == 0.5


def test_a_worker_that_is_shut_down_while_it_verifies_gives_its_job_back(workshop, held):
    job_id = workshop.submit(workshop.small_model())
    reading, writing = os.pipe()
    workshop.supervisor._drain = reading

    def act(_):
        held.wait()
        os.write(writing, b"!")

    workshop.while_running(job_id, act)
    os.close(reading)
    os.close(writing)

    job = workshop.store.get(job_id)
    assert (job.state, job.attempt, job.attempts[0].reason) == ("queued", 0, "drained")
