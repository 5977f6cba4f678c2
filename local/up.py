"""`make up`: Redis, the service and one worker on this machine, until Ctrl-C or SIGTERM."""

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx

from jobs.parent_death import end_with_parent
from jobs.settings import Settings
from local.processes import write_configuration

START_SECONDS = 60
#: Programs whose `make up` was killed are being stopped; this is longer than any of them takes.
END_SECONDS = 90


class AlreadyRunningError(Exception):
    """Another `make up` holds the data folder."""


class StartFailedError(Exception):
    """The service did not become ready."""


@contextmanager
def stack(settings: Settings) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run everything while the block runs.

    Args:
        settings: Where and how; passed on through the environment.

    Yields:
        The URL of the service, which is ready, and supervisord's process.

    Raises:
        AlreadyRunningError: The data folder is in use, or programs of a run before do not end.
        StartFailedError: The service did not become ready; the message tells where the logs are.
    """
    folder = settings.data_dir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunningError(f"{folder} is in use by another `make up`") from None
        programs_lock = folder / "programs.lock"
        _wait_until_ended(programs_lock)
        url_file = folder / "service.url"
        url_file.unlink(missing_ok=True)
        daemon = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "supervisor.supervisord",
                "-c",
                str(write_configuration(settings)),
            ],
            env=os.environ
            | {
                "DATA_DIR": str(folder),
                "PORT": str(settings.port or _free_port()),
                "PROGRAMS_LOCK": str(programs_lock),
            },
            stdout=subprocess.DEVNULL,
            # Its own group, so that a Ctrl-C reaches us alone and we stop things in order.
            process_group=0,
            preexec_fn=partial(end_with_parent, os.getpid(), signal.SIGTERM),  # noqa: PLW1509
        )
        try:
            yield _wait_until_ready(url_file, daemon, folder / "logs"), daemon
        finally:
            daemon.terminate()
            daemon.wait()


def _wait_until_ended(lock: Path) -> None:
    # Two Redis servers on one append-only file would destroy it, and the old one takes the new
    # one's socket away as it ends.
    deadline = time.monotonic() + END_SECONDS
    with lock.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise AlreadyRunningError(
                        f"programs of an earlier `make up` still run on {lock.parent}"
                    ) from None
                time.sleep(0.05)
            else:
                return


def _free_port() -> int:
    # Chosen once, so that a service that died comes back at the same address.
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _wait_until_ready(url_file: Path, daemon: subprocess.Popen[bytes], logs: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and daemon.poll() is None:
        if url_file.exists():
            url = url_file.read_text().strip()
            try:
                if httpx.get(f"{url}/readyz", timeout=5).is_success:
                    return url
            except httpx.TransportError:
                pass
        time.sleep(0.05)
    raise StartFailedError(f"the service did not become ready; see {logs}")


def main() -> int:
    """Run until a signal comes.

    Returns:
        The exit status: 0 after a signal, 1 where it could not start.
    """
    settings = Settings()
    # Both unwind, so that the block above cleans up; a shell's `&` would have Ctrl-C ignored.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        with stack(settings) as (url, daemon):
            print(f"Modelpress is ready at {url}  (docs: {url}/docs)", flush=True)
            print(f"Data and logs: {settings.data_dir.resolve()}  Stop with Ctrl-C.", flush=True)
            return daemon.wait()
    except (AlreadyRunningError, StartFailedError) as error:
        print(f"make up: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
