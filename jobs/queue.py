"""The doorbell: a Celery message that says "there is work", and nothing more.

The truth about a job is its record in `jobs.store`. A message that is lost, doubled or late does no
harm: claiming decides who works, and the reaper rings again. That is also why a failed ring is not
an error. Reasons for each setting: docs/architecture.md, "Delivery".
"""

import structlog
from celery import Celery
from kombu.exceptions import OperationalError
from redis import Redis
from redis.exceptions import RedisError

from jobs.settings import Settings

RUN_JOB = "worker.run_job"
_VISIBILITY_SECONDS = 14 * 86400

_log = structlog.get_logger(__name__)


def make_celery(settings: Settings) -> Celery:
    """Make the Celery application that both doors use.

    Args:
        settings: `redis` and `queue` are used.

    Returns:
        An application without a result backend, JSON only, remote control off.
    """
    app = Celery("modelpress", set_as_current=False)
    app.conf.update(
        broker_url=_broker_url(settings.redis),
        broker_transport_options={
            # Longer than any job: recovery is the reaper's, a redelivery would only be refused.
            "visibility_timeout": _VISIBILITY_SECONDS,
            "socket_keepalive": not settings.redis.startswith("unix:"),
            "socket_connect_timeout": 5,
            "health_check_interval": 25,
            "retry_on_timeout": True,
        },
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        task_default_queue=settings.queue,
        task_serializer="json",
        accept_content=["json"],
        result_backend=None,
        task_ignore_result=True,
        task_acks_late=True,
        # An endless loop of a job that kills its worker: attempts are counted in the claim instead.
        task_reject_on_worker_lost=False,
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        # Pool children outlive many jobs: what a job could leave behind dies with its runner.
        worker_max_tasks_per_child=1000,
        enable_utc=True,
        timezone="UTC",
    )
    return app


def ring(app: Celery, tenant: str, job_id: str) -> bool:
    """Tell the workers that a job waits.

    Args:
        app: From `make_celery`.
        tenant: Whose job.
        job_id: Which job.

    Returns:
        Whether the message was sent. Where not, the reaper rings again.
    """
    try:
        # send_task knows nothing of the task's own options, so they are repeated here.
        app.send_task(RUN_JOB, [tenant, job_id], ignore_result=True, retry=False)
    except (OperationalError, RedisError, OSError) as error:
        _log.warning("ring_failed", tenant=tenant, job_id=job_id, error=str(error))
        return False
    return True


def waiting_rings(redis: Redis, queue: str) -> int:
    """Count the messages that no worker has taken yet.

    Args:
        redis: A connection to the broker's database.
        queue: The Celery queue.

    Returns:
        The length of the queue's list.
    """
    return int(redis.llen(queue))


def _broker_url(redis_url: str) -> str:
    # kombu names the same socket with another scheme than redis-py does.
    return "redis+socket" + redis_url[4:] if redis_url.startswith("unix:") else redis_url
