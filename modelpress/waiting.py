"""The wait for a job's end, by long polls that cost the service next to nothing."""

import time
from collections.abc import Callable
from urllib.parse import quote

from modelpress.connection import Connection, is_passing, read
from modelpress.errors import (
    ProblemError,
    ServiceUnreachable,
    WaitTimeout,
    raise_unless_succeeded,
)
from modelpress.values import Job, job_from

# Shorter than the idle limit of common proxies, which is 30 s for some and 60 s for most.
LONG_POLL_SECONDS = 25.0
# A service or proxy that ignores `Prefer: wait` answers at once; it must not be asked all the time.
SHORTEST_POLL_SECONDS = 1.0
# A job outlives a restart of its service, so the wait for it does too.
OUTAGE_SECONDS = 120.0


def wait_for(
    connection: Connection,
    job_id: str,
    timeout: float | None,
    on_progress: Callable[[Job], None] | None,
) -> Job:
    """Wait until a job succeeds.

    Args:
        connection: The service.
        job_id: The job.
        timeout: Seconds to wait at most; None waits as long as it takes.
        on_progress: Called with the job as it is now and then after each visible change.

    Returns:
        The job, succeeded.

    Raises:
        GateFailed: Its result does not pass the recipe's gate.
        JobFailed: It failed in another way.
        JobCancelled: It was cancelled.
        WaitTimeout: It had not ended in time.
        ServiceUnreachable: The service was away for more than two minutes, or from the start.
        ProblemError: The service refused.
        UnexpectedAnswer: The service answered what the contract does not allow.
    """
    deadline = float("inf") if timeout is None else time.monotonic() + timeout
    job = fetch_job(connection, job_id)
    heard = time.monotonic()
    if on_progress:
        on_progress(job)
    while not job.is_terminal:
        asked = time.monotonic()
        if asked >= deadline:
            raise WaitTimeout(job)
        seconds = int(min(LONG_POLL_SECONDS, deadline - asked))
        try:
            now = fetch_job(connection, job_id, known=job, wait_seconds=seconds)
        except (ServiceUnreachable, ProblemError) as error:
            if not is_passing(error) or time.monotonic() - heard > OUTAGE_SECONDS:
                raise
            now = job
        else:
            heard = time.monotonic()
        if now.revision == job.revision:
            rest = min(asked + SHORTEST_POLL_SECONDS, deadline) - time.monotonic()
            time.sleep(max(0.0, rest))
        elif on_progress:
            on_progress(now)
        job = now
    raise_unless_succeeded(job)
    return job


def fetch_job(
    connection: Connection, job_id: str, *, known: Job | None = None, wait_seconds: int = 0
) -> Job:
    """Ask for a job once.

    Args:
        connection: The service.
        job_id: The job.
        known: The job as last seen, if it was.
        wait_seconds: How long the service may wait for a change against `known`.

    Returns:
        The job, which is `known` itself where nothing has changed.

    Raises:
        ServiceUnreachable: There was no answer.
        ProblemError: The service refused; there may be no such job.
        UnexpectedAnswer: The answer is no job.
    """
    headers = {"Accept": "application/json"}
    if known is not None:
        headers["If-None-Match"] = f'"{known.revision}"'
        if wait_seconds:
            headers["Prefer"] = f"wait={wait_seconds}"
    path = f"/jobs/{quote(job_id, safe='')}"
    response = connection.send("GET", path, headers=headers, patience=wait_seconds)
    if known is not None and response.status_code == 304:
        return known
    return read(response, job_from)
