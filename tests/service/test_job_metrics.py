import shutil

import pytest
from prometheus_client.parser import text_string_to_metric_families

from jobs.blobs import now_ms
from jobs.job import JobResult
from jobs.machine import announce
from jobs.problems import Problem
from jobs.report import Report
from jobs.tally import PEAK_BOUNDS_BYTES, add_report


@pytest.fixture
def figures(client):
    """Reads what is exposed: name and labels, in the order of their names, to value."""

    def read():
        text = client.get("/metrics").text
        return {
            (sample.name.removeprefix("modelpress_"), *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    return read


@pytest.fixture
def submit(client, model_id, recipe):
    return lambda: client.post("/jobs", json={"model": model_id, "spec": recipe}).json["id"]


def test_jobs_are_counted_once_each_by_how_they_ended(figures, client, store, submit, finish):
    succeeded, failed, cancelled, waiting = (submit() for _ in range(4))
    finish(succeeded, {"model.safetensors": b"x"})
    finish(failed, failure=Problem("runner_died", "x"))
    client.post(f"/jobs/{cancelled}/cancel")
    client.post(f"/jobs/{succeeded}/cancel")

    found = figures()

    assert found["jobs_ended_total", "", "succeeded"] == 1
    assert found["jobs_ended_total", "runner_died", "failed"] == 1
    assert found["jobs_ended_total", "", "cancelled"] == 1
    assert (found["jobs", "queued"], found["jobs", "running"]) == (1, 0)
    # Those that a worker had; whoever was cancelled in the queue never ran.
    assert found["job_run_seconds_count",] == found["job_queue_seconds_count",] == 2
    assert 0 <= found["job_queue_seconds_sum",] < 10
    assert found["oldest_queued_seconds",] >= 0
    assert store.get(waiting).state == "queued"


def test_a_report_adds_its_steps_bytes_and_peak(figures, store, report):
    measured = Report.model_validate(report)
    for _ in range(2):
        add_report(store.redis, measured)

    found = figures()

    for step in measured.steps:
        assert found["step_seconds_count", step.method, step.op] == 2
        seconds = found["step_seconds_sum", step.method, step.op]
        assert seconds == pytest.approx(2 * step.seconds)
    assert found["model_bytes_total",] == 2 * measured.model.bytes
    assert found["artifact_bytes_total",] == 2 * measured.artifact.bytes
    peak = measured.memory.measured_peak_bytes
    assert found["job_peak_memory_bytes_sum",] == 2 * peak
    for bound in PEAK_BOUNDS_BYTES:
        assert found["job_peak_memory_bytes_bucket", str(bound)] == 2 * (peak <= bound)
    assert found["job_peak_memory_bytes_bucket", "+Inf"] == 2


def test_workers_and_the_disk_are_told(figures, store, settings):
    announce(store.redis, "one", 60)
    announce(store.redis, "two", 60)

    found = figures()

    assert found["workers",] == 2
    assert found["disk_size_bytes",] == shutil.disk_usage(settings.data_dir).total
    assert 0 < found["disk_free_bytes",] < found["disk_size_bytes",]


def test_an_end_that_is_brought_back_after_a_loss_is_not_counted_again(figures, store, submit):
    job_id = submit()
    ended_long_ago = JobResult(id=job_id, state="failed", attempt=1, finished_ms=now_ms() - 120_000)

    assert store.finish(ended_long_ago, token=None) == "finished"

    assert not [key for key in figures() if key[0] == "jobs_ended_total"]
