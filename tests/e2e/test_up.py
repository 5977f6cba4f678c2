"""`make up` as a user meets it: start, refuse a second, stop, come back."""

import os
import signal
import subprocess
import sys

import httpx
import psutil
import pytest

TUTORIAL = """
steps:
  - {op: prune, method: random, sparsity: 0.5, biases: true}
  - {op: quantize, scheme: w8a8}
"""


def test_the_first_curl_line_makes_a_job_that_succeeds(stack, small_model):
    accepted = stack.submit(small_model, TUTORIAL)

    job = stack.wait(accepted["id"])
    report = httpx.get(f"{stack.url}/jobs/{job['id']}/report").json()

    assert job["state"] == "succeeded", job["failure"]
    assert [step["weights_pruned"] for step in report["steps"]] == [50_555, 0]
    assert report["artifact"]["size_ratio"] < 0.26


def test_a_second_start_on_the_same_folder_is_refused_and_harms_nothing(stack):
    second = subprocess.run(
        [sys.executable, "-m", "local.up"],
        env=os.environ | {"PORT": "0", "DATA_DIR": str(stack.data_dir)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert second.returncode == 1
    assert "in use by another `make up`" in second.stderr
    assert httpx.get(f"{stack.url}/readyz").is_success


@pytest.mark.slow
def test_a_restart_finds_every_job_again(run_up, tmp_path, small_model):
    with run_up(tmp_path) as first:
        job = first.wait(first.submit(small_model, TUTORIAL)["id"])

    with run_up(tmp_path) as second:
        found = second.job(job["id"])
        artifact = httpx.get(f"{second.url}/jobs/{job['id']}/artifact/model.safetensors")

    assert {**found, "revision": 0} == {**job, "revision": 0}
    assert len(artifact.content) == next(
        file["bytes"] for file in job["artifact"]["files"] if file["path"] == "model.safetensors"
    )


def test_sigterm_leaves_no_process(run_up, tmp_path):
    with run_up(tmp_path) as stack:
        everything = stack.processes()
        stack.process.send_signal(signal.SIGTERM)
        stack.process.wait(timeout=60)
        _, alive = psutil.wait_procs(everything, timeout=5)

    assert len(everything) >= 5
    assert alive == []


@pytest.mark.slow
def test_a_killed_process_manager_leaves_no_process(run_up, tmp_path, wait_until):
    with run_up(tmp_path) as stack:
        everything = stack.processes()
        stack.find("supervisor.supervisord").kill()
        _, alive = psutil.wait_procs(everything, timeout=30)

        assert alive == []
        stack.expected_status = stack.process.wait(timeout=30)
        assert stack.expected_status != 0


@pytest.mark.slow
def test_a_folder_with_an_odd_name_will_do(run_up, tmp_path, small_model):
    with run_up(tmp_path / "50% off%(x)s a%20b?x=1#y ünï") as stack:
        job = stack.wait(stack.submit(small_model, TUTORIAL)["id"])

    assert job["state"] == "succeeded", job["failure"]


@pytest.mark.slow
def test_a_start_waits_until_the_programs_of_a_killed_one_have_ended(run_up, tmp_path, small_model):
    with run_up(tmp_path) as first:
        job = first.wait(first.submit(small_model, TUTORIAL)["id"])
        programs = [first.find(word) for word in ("redis-server", "-m service", "celery")]
        first.process.kill()
        first.expected_status = first.process.wait()
        with run_up(tmp_path) as second:
            still_alive = [program for program in programs if program.is_running()]
            found = second.job(job["id"])

    assert still_alive == []
    assert found["state"] == "succeeded"
