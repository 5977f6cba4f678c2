"""Celery as its documentation has it for tasks that must not be lost: `acks_late`, and no more."""

import os
import time
from pathlib import Path

from celery import Celery

app = Celery("plain", broker=os.environ["PLAIN_BROKER"])
app.conf.update(
    task_acks_late=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
    worker_enable_remote_control=False,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    # Far longer than a task, and short enough for a run to see what comes back.
    broker_transport_options={"visibility_timeout": 10},
)


@app.task(name="plain.work")
def work(number: int, seconds: float) -> None:
    """Work for a while, and write down that it was done."""
    time.sleep(seconds)
    with Path(os.environ["PLAIN_DONE"]).open("a") as done:
        done.write(f"{number}\n")
