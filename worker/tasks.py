"""The one Celery task."""

from collections.abc import Callable

import structlog
from celery import Celery

from jobs.job import is_job_id
from jobs.queue import RUN_JOB
from jobs.tenants import is_tenant

_log = structlog.get_logger(__name__)


def register(app: Celery, run: Callable[[str, str], None]) -> None:
    """Register the task that a doorbell starts.

    Args:
        app: The worker's application.
        run: Does a tenant's job, if it may be taken. It is called at least once per job; that it
            does no harm more often is what claiming is for.
    """

    @app.task(name=RUN_JOB, acks_late=True, ignore_result=True, max_retries=0)
    def run_job(tenant: str, job_id: str) -> None:
        if not is_tenant(tenant) or not is_job_id(job_id):
            _log.warning("not_a_job", tenant=str(tenant)[:80], job_id=str(job_id)[:80])
            return
        run(tenant, job_id)
