import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("options", [[], ["--cancel-on-interrupt"]], ids=["keep", "cancel"])
def test_an_interrupted_wait_ends_with_130(service, sent, options):
    job_id = service.add_job("running")
    command = [sys.executable, "-m", "modelpress", "--url", service.url, "wait", job_id, *options]
    waiting = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert service.polled.wait(30)

    os.kill(waiting.pid, sent)
    stdout, stderr = waiting.communicate(timeout=30)

    assert waiting.returncode == 130
    assert stdout == ""
    cancels = service.requests("POST", f"/jobs/{job_id}/cancel")
    assert len(cancels) == len(options)
    assert (f"wait {job_id}" in stderr) is (not options)
