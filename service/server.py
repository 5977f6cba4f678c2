"""gunicorn around the application, configured by the settings alone."""

import logging
import resource
import sys
from pathlib import Path
from typing import Any

from flask import Flask
from gunicorn.app.base import BaseApplication  # type: ignore[import-untyped]
from gunicorn.config import Config  # type: ignore[import-untyped]
from gunicorn.glogging import Logger  # type: ignore[import-untyped]

from jobs.keys import KeyStore
from jobs.logs import configure_logging
from jobs.reaper import Reaper
from jobs.settings import Settings
from service.application import create_app
from service.http_worker import HttpWorker
from service.identity import is_loopback
from service.keys import FIRST_KEY
from service.parts import EXTENSION, Parts
from service.unreadable import MAX_HEADER_BYTES, MAX_HEADERS, MAX_LINE_BYTES

URL_NAME = "service.url"
# Long enough for a poll to end; streams and downloads are taken up again by the client.
_GRACEFUL_SECONDS = 30
_KEEPALIVE_SECONDS = 75
#: Connections take no thread while they wait; each is a file, and others are needed as well.
_MOST_CONNECTIONS = 8192
_FILES_BESIDE_CONNECTIONS = 256
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - gunicorn makes its own file names there


class _Logs(Logger):  # type: ignore[misc] # gunicorn has no types
    """gunicorn's messages, sent through our own renderer."""

    def setup(self, cfg: Config) -> None:
        super().setup(cfg)
        for name in ("gunicorn.error", "gunicorn.access"):
            logging.getLogger(name).handlers.clear()
            logging.getLogger(name).propagate = True


class Server(BaseApplication):  # type: ignore[misc] # gunicorn has no types
    """The service as gunicorn runs it.

    Args:
        settings: Address, threads, data folder.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._url_file = settings.data_dir.resolve() / URL_NAME
        self._reaper: Reaper | None = None
        super().__init__()

    def load_config(self) -> None:
        """Tell gunicorn our settings."""
        settings = self._settings
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        options: dict[str, Any] = {
            "bind": f"{host}:{settings.port}",
            "proc_name": "modelpress",
            # One process: threads wait for sockets and disks, and hashing leaves Python's lock.
            "workers": 1,
            "worker_class": HttpWorker,
            "limit_request_line": MAX_LINE_BYTES,
            "limit_request_fields": MAX_HEADERS,
            "limit_request_field_size": MAX_HEADER_BYTES,
            "threads": settings.service_threads,
            "worker_connections": _most_connections(),
            "keepalive": _KEEPALIVE_SECONDS,
            "graceful_timeout": _GRACEFUL_SECONDS,
            "worker_tmp_dir": str(_SHARED_MEMORY) if _SHARED_MEMORY.is_dir() else None,
            "control_socket_disable": True,
            "logger_class": _Logs,
            "when_ready": self._when_ready,
            "post_worker_init": self._start_reaper,
            "worker_exit": self._stop_reaper,
            "on_exit": self._on_exit,
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        """Make the application, in the worker process."""
        return create_app(self._settings)

    def _when_ready(self, arbiter: Any) -> None:  # noqa: ANN401 - gunicorn has no types
        host, port, *_ = arbiter.LISTENERS[0].getsockname()
        shown = f"[{host}]" if ":" in host else host
        self._url_file.parent.mkdir(parents=True, exist_ok=True)
        draft = self._url_file.with_suffix(".tmp")
        draft.write_text(f"http://{shown}:{port}\n")
        draft.replace(self._url_file)

    def _start_reaper(self, worker: Any) -> None:  # noqa: ANN401 - gunicorn has no types
        parts: Parts = worker.wsgi.extensions[EXTENSION]
        self._reaper = Reaper(parts.tenants, parts.celery, self._settings)
        self._reaper.start()

    def _stop_reaper(self, _arbiter: Any, _worker: Any) -> None:  # noqa: ANN401 - as above
        if self._reaper is not None:
            self._reaper.stop()

    def _on_exit(self, _arbiter: Any) -> None:  # noqa: ANN401 - as above
        self._url_file.unlink(missing_ok=True)


def _most_connections() -> int:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(_FILES_BESIDE_CONNECTIONS, min(files - _FILES_BESIDE_CONNECTIONS, _MOST_CONNECTIONS))


def serve() -> None:
    """Listen on the address of the settings until told to stop.

    Raises:
        SystemExit: Others than this machine could reach the service, and it has no API key.
    """
    # A connection is a file, and the usual limit of 1024 is for programs that use select().
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    settings = Settings()
    configure_logging(settings)
    if not is_loopback(settings.host) and not KeyStore(settings.data_dir).has_any():
        sys.exit(
            f"HOST is {settings.host} and there is no API key, so anybody who reaches this machine "
            f"could use the service. Make the first key, then start again:\n  {FIRST_KEY}"
        )
    Server(settings).run()
