"""nginx as a peer: static files and WebDAV PUT over one folder, unprivileged, on loopback."""

import getpass
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.machine import find_program
from benchmarks.ports import free_port, wait_until_open

_CONFIGURATION = """
{user}
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000;
    default_type application/json;
    client_max_body_size 0;
    client_body_temp_path {folder}/bodies;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        root {folder}/root;
        dav_methods PUT;
    }}
}}
"""


@dataclass(frozen=True)
class Nginx:
    """A running nginx.

    Attributes:
        url: Its root.
        root: The folder that it serves and writes.
        processes: Its master and its worker.
    """

    url: str
    root: Path
    processes: list[psutil.Process]


@contextmanager
def running_nginx(folder: Path) -> Iterator[Nginx | None]:
    """Run nginx for the block.

    Args:
        folder: An empty folder for its configuration, its files and its uploads.

    Yields:
        nginx, or None where it is not installed.
    """
    program = find_program("nginx")
    if program is None:
        yield None
        return
    root = folder / "root"
    root.mkdir(parents=True)
    port = free_port()
    # Started by root it would become another user, who cannot read a private temporary folder.
    user = f"user {getpass.getuser()};" if os.geteuid() == 0 else ""
    configuration = folder / "nginx.conf"
    configuration.write_text(_CONFIGURATION.format(user=user, folder=folder, port=port))
    command = [
        program,
        "-p",
        str(folder),
        "-e",
        str(folder / "error.log"),
        "-c",
        str(configuration),
    ]
    master = subprocess.Popen(command)
    try:
        wait_until_open(port)
        process = psutil.Process(master.pid)
        yield Nginx(f"http://127.0.0.1:{port}", root, [process, *process.children()])
    finally:
        master.terminate()
        master.wait()
