"""What `celery -A worker.celery_app worker` starts: the consumer, its one pool child, the reaper.

The consumer process takes doorbells and reaps; the pool child supervises; neither touches a model.
"""

import os
import socket
from typing import Any

from celery.signals import (
    setup_logging,
    worker_process_init,
    worker_process_shutdown,
    worker_ready,
    worker_shutdown,
    worker_shutting_down,
)

from jobs.logs import configure_logging
from jobs.queue import make_celery
from jobs.reaper import Reaper
from jobs.settings import Settings
from jobs.store import connect
from jobs.tenants import Tenants
from worker.supervisor import Supervisor
from worker.tasks import register
from worker.watchdog import Watchdog

settings = Settings()
app = make_celery(settings)

# Made before the pool forks, so every child holds the reading end: a byte written by the consumer
# on its way out makes it readable in all of them, for good.
_drain_reading, _drain_writing = os.pipe()

_supervisor: Supervisor | None = None
_reaper: Reaper | None = None
_watchdog: Watchdog | None = None


def _run(tenant: str, job_id: str) -> None:
    if _supervisor is None:
        raise RuntimeError("run_job was called outside of a pool child")
    _supervisor.run(tenant, job_id)


register(app, _run)


@setup_logging.connect(weak=False)
def _on_setup_logging(**_: Any) -> None:  # noqa: ANN401 - Celery's own signature
    configure_logging(settings)


def _tenants() -> Tenants:
    # A connection of its own for each process: one must not cross a fork.
    return Tenants(settings, connect(settings.redis))


@worker_process_init.connect(weak=False)
def _on_child_start(**_: Any) -> None:  # noqa: ANN401
    global _supervisor  # noqa: PLW0603 - one per pool child, made after the fork
    _supervisor = Supervisor(settings, _tenants(), app, _drain_reading)


@worker_process_shutdown.connect(weak=False)
def _on_child_stop(**_: Any) -> None:  # noqa: ANN401
    if _supervisor is not None:
        _supervisor.stop()


@worker_ready.connect(weak=False)
def _on_ready(**_: Any) -> None:  # noqa: ANN401
    global _reaper, _watchdog  # noqa: PLW0603 - one per consumer, made after it is up
    _reaper = Reaper(_tenants(), app, settings, worker=socket.gethostname())
    _reaper.start()
    _watchdog = Watchdog(connect(settings.redis), settings.queue)
    _watchdog.start()


@worker_shutting_down.connect(weak=False)
def _on_shutting_down(**_: Any) -> None:  # noqa: ANN401
    # From here on doorbells are left to others.
    if _watchdog is not None:
        _watchdog.stop()
    os.write(_drain_writing, b"!")


@worker_shutdown.connect(weak=False)
def _on_shutdown(**_: Any) -> None:  # noqa: ANN401
    if _reaper is not None:
        _reaper.stop()
