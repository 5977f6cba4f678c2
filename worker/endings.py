"""What the end of an attempt means for its job.

done       published already, by `publish`: the artifact is in place, then the result, then Redis
failed     a problem that will not go away: failed; one that may: back to the queue, counted
cancelled  cancelled
drained    back to the queue, not counted
lost       nothing: the job may be another worker's, and only its holder may speak for it
"""

from typing import Literal

import structlog
from celery import Celery
from redis.exceptions import RedisError

from jobs.blobs import now_ms
from jobs.durable_files import remove_tree
from jobs.equal_jobs import remember
from jobs.job import Job, JobResult
from jobs.problems import Problem
from jobs.queue import ring
from jobs.reaper import publish_end
from jobs.tenants import Stores
from worker.attempt import Outcome
from worker.checksums import Checksums

_log = structlog.get_logger(__name__)

#: What needs time to pass, or three attempts would be over before anything can have changed. The
#: reaper rings afterwards.
_PAUSES_MS = {"storage_full": 30_000}


class Endings:
    """Says how one tenant's jobs end, on the disk and in Redis.

    Args:
        stores: Where they are.
        celery: Where to ring when a job goes back to the queue.
        checksums: Told of every artifact.
    """

    def __init__(self, stores: Stores, celery: Celery, checksums: Checksums) -> None:
        self._tenant = stores.tenant
        self._store = stores.jobs
        self._blobs = stores.blobs
        self._celery = celery
        self._checksums = checksums

    def publish(self, job: Job, token: int, result: JobResult) -> None:
        """End a job with its result, unless another attempt was faster.

        Args:
            job: The job.
            token: Of the attempt.
            result: Its artifact's folder is in place.

        Raises:
            OSError: The disk could not take the result; the job has none.
        """
        if not self._blobs.publish_result(result):
            # The other result is the job's, and ours is rubbish.
            if result.artifact_folder:
                ours = self._blobs.job_folder(job.id) / result.artifact_folder
                remove_tree(ours)
            published = self._blobs.read_result(job.id)
            if published is not None:
                self._store.finish(published, token=None)
            return
        if self._store.finish(result, token) == "stale":
            self._store.finish(result, token=None)
        # What was trained for less than the recipe says is no answer to those who ask for that.
        if result.artifact is not None and not self._blobs.has_stop(job.id):
            remember(self._blobs, job)
        self._checksums.take_up(self._blobs, job.id)

    def settle(self, job: Job, token: int, outcome: Outcome) -> None:
        """Remove what an attempt leaves that nobody needs, and say what its end means.

        Args:
            job: The job.
            token: Of the attempt.
            outcome: How the attempt ended.
        """
        if not _may_go_on(outcome):
            # First: it may be what fills the disk, and the job's end has to be written there.
            self._remove_scratch(job, token)
        try:
            self._say(job, token, outcome)
        except OSError as error:
            # Redis knows; a reaper writes it down once the disk can take it.
            _log.warning("end_not_written", error=str(error))
        except RedisError as error:
            # The lease runs out, and a reaper takes the job back.
            _log.warning("end_not_told", error=str(error))

    def _say(self, job: Job, token: int, outcome: Outcome) -> None:
        problem = outcome.problem
        if outcome.kind in ("done", "lost"):
            return
        if outcome.kind == "cancelled":
            self._end(job, token, "cancelled", None)
        elif problem is not None and (problem.retryable or outcome.kind == "drained"):
            pause_ms = _PAUSES_MS.get(problem.code, 0)
            is_counted = outcome.kind != "drained"
            state = self._store.release(
                job.id, token, problem, counted=is_counted, delay_ms=pause_ms
            )
            if state == "queued" and not pause_ms:
                ring(self._celery, self._tenant, job.id)
            elif state == "queued":
                _log.info("paused", job_id=job.id, pause_ms=pause_ms)
            elif state != "stale":
                self._remove_scratch(job, token)
                publish_end(self._store, self._blobs, job.id)
        elif problem is not None:
            self._end(job, token, "failed", problem)

    def _end(
        self, job: Job, token: int, state: Literal["failed", "cancelled"], problem: Problem | None
    ) -> None:
        result = JobResult(
            id=job.id,
            state=state,
            attempt=job.attempt,
            failure=problem.to_dict() if problem else None,
            cache=job.cache or "miss",
            finished_ms=now_ms(),
        )
        # Only its holder may end a job so; the disk learns of it after Redis agreed.
        if self._store.finish(result, token) == "finished":
            self._blobs.publish_result(result)

    def _remove_scratch(self, job: Job, token: int) -> None:
        folder = self._blobs.job_folder(job.id)
        remove_tree(folder / f"work-{token}")
        if not self._blobs.has_result(job.id):
            remove_tree(folder / f"artifact-{token}")


def _may_go_on(outcome: Outcome) -> bool:
    """Say whether the next attempt can go on from what this one left, by the engine's journal."""
    problem = outcome.problem
    was_killed = problem is not None and problem.code == "runner_died"
    return outcome.kind in {"drained", "lost"} or was_killed
