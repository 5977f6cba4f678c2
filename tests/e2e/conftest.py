import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from safetensors.numpy import save_file

ROOT = Path(__file__).parents[2]


def eventually(condition: Callable[[], object], seconds: float = 30.0) -> object:
    """Wait until a condition is true, and give what it answered."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := condition():
            return answer
        time.sleep(0.005)
    raise AssertionError(f"not so within {seconds} s: {condition}")


@dataclass
class Stack:
    """`make up` as a user runs it, and ways to look at and hurt its processes."""

    process: subprocess.Popen
    url: str
    data_dir: Path
    expected_status: int = 0

    def processes(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def find(self, *words: str) -> psutil.Process | None:
        """Give the oldest process whose command line holds all of the words."""
        for process in sorted(self.processes(), key=lambda p: p.pid):
            try:
                line = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if all(word in line for word in words):
                return process
        return None

    def runner(self) -> psutil.Process | None:
        """Give the runner at work: the child of the template's agent."""
        template = self.find("worker.template")
        agents = template.children() if template else []
        for agent in agents:
            # It may have just ended.
            with suppress(psutil.NoSuchProcess):
                for runner in agent.children():
                    return runner
        return None

    def job(self, job_id: str) -> dict:
        return httpx.get(f"{self.url}/jobs/{job_id}", timeout=70).raise_for_status().json()

    def submit(self, model: Path, recipe: str, *, use_cache: bool = False) -> dict:
        """Submit as the first curl line of the README does: one multipart request."""
        headers = {} if use_cache else {"Cache-Control": "no-cache"}
        with model.open("rb") as file:
            answer = httpx.post(
                f"{self.url}/jobs",
                files={"model": file, "spec": ("r.yaml", recipe)},
                headers=headers,
                timeout=120,
            )
        assert answer.status_code == 202, answer.text
        return answer.json()

    def wait(self, job_id: str, seconds: float = 60.0) -> dict:
        def ended() -> dict | None:
            try:
                job = self.job(job_id)
            except (httpx.HTTPError, ValueError):
                return None  # Something was just killed; it comes back.
            return job if job["state"] in ("succeeded", "failed", "cancelled") else None

        return eventually(ended, seconds)


@contextmanager
def run_stack(data_dir: Path, **environment: str) -> Iterator[Stack]:
    """Run `python -m local.up` until the block ends, and see that it leaves nothing running."""
    process = subprocess.Popen(
        [sys.executable, "-m", "local.up"],
        cwd=ROOT,
        env=os.environ | {"PORT": "0", "DATA_DIR": str(data_dir)} | environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process.stdout:
        line = process.stdout.readline()
        assert line.startswith("Modelpress is ready at "), line
        stack = Stack(process, line.split()[4], data_dir)
        try:
            yield stack
        finally:
            # A test may have ended it already, and looked at how that went.
            everything = stack.processes() if process.poll() is None else []
            process.send_signal(signal.SIGINT)
            status = process.wait(timeout=60)
            _, alive = psutil.wait_procs(everything, timeout=5)
    assert alive == []
    assert status == stack.expected_status


@pytest.fixture(scope="session")
def run_up():
    """Give `run_stack`, for tests that start and stop a stack of their own."""
    return run_stack


@pytest.fixture(scope="session")
def wait_until():
    """Give `eventually`."""
    return eventually


@pytest.fixture(scope="session")
def stack(tmp_path_factory):
    with run_stack(
        tmp_path_factory.mktemp("stack"), LEASE_SECONDS="3", REAP_SECONDS="0.5"
    ) as running:
        yield running


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "net.safetensors"
    rng = np.random.default_rng(0)
    save_file(
        {
            "0.weight": rng.normal(size=(100, 1000)).astype(np.float32),
            "0.bias": rng.normal(size=100).astype(np.float32),
            "2.weight": rng.normal(size=(10, 100)).astype(np.float32),
            "2.bias": rng.normal(size=10).astype(np.float32),
        },
        path,
    )
    return path


@pytest.fixture(scope="session")
def large_model(tmp_path_factory):
    """256 MiB: at work long enough to be hurt in the middle."""
    path = tmp_path_factory.mktemp("models") / "large.safetensors"
    rng = np.random.default_rng(0)
    save_file(
        {f"{i}.weight": rng.standard_normal((4096, 4096), dtype=np.float32) for i in range(4)},
        path,
    )
    return path
