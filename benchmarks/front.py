"""The nginx that is shipped in front of the service, as it is but for its addresses and folders."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.ports import free_port, wait_until_open

CONFIGURATION = Path(__file__).parents[1] / "service" / "front" / "nginx.conf"


@dataclass(frozen=True)
class Front:
    """A running front.

    Attributes:
        port: Where it listens, on loopback.
        log: Its access log.
        errors: What it complains of.
    """

    port: int
    log: Path
    errors: Path

    @property
    def url(self) -> str:
        """Its root."""
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def running_front(folder: Path, service_port: int) -> Iterator[Front]:
    """Run the front for the block.

    Args:
        folder: An empty folder, which nginx's own user can enter.
        service_port: Where the service listens, on loopback.

    Yields:
        The front; it answers.

    Raises:
        ValueError: The shipped configuration lacks a line that has to be changed here.
    """
    port = free_port()
    text = CONFIGURATION.read_text()
    for shipped, ours in (
        ("server service:8000;", f"server 127.0.0.1:{service_port};"),
        ("listen 8080;", f"listen 127.0.0.1:{port};"),
        ("/tmp/", f"{folder}/"),
        ("/dev/stdout", f"{folder}/access.log"),
        ("worker_processes auto;", "worker_processes 1; daemon off; master_process on;"),
    ):
        if shipped not in text:
            raise ValueError(f"{CONFIGURATION} has no {shipped!r}")
        text = text.replace(shipped, ours)
    (folder / "nginx.conf").write_text(text)
    front = Front(port, folder / "access.log", folder / "error.log")
    program = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    with front.errors.open("w") as errors:
        command = [str(program), "-p", folder, "-c", folder / "nginx.conf", "-e", "stderr"]
        process = subprocess.Popen(command, stderr=errors)
        try:
            wait_until_open(port)
            yield front
        finally:
            process.terminate()
            process.wait(timeout=10)
