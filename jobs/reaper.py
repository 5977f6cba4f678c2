"""The reaper: nothing that was accepted is forgotten.

A thread in every worker and service process. It rings again for jobs that wait too long, takes
jobs back from workers that fell silent, finishes jobs whose worker died between publishing the
result and saying so, and rebuilds Redis from the disk after a loss. Running it many times over is
safe: every change goes through the store's scripts.
"""

import threading
import time

import structlog
from celery import Celery

from jobs.blobs import BlobStore, now_ms
from jobs.job import JobResult
from jobs.machine import announce, is_new
from jobs.queue import ring, waiting_rings
from jobs.retention import expire
from jobs.settings import Settings
from jobs.store import JobStore
from jobs.sweeping import sweep
from jobs.tenants import Stores, Tenants

_log = structlog.get_logger(__name__)

#: How long after its last ring a queued job is rung for again, where no message waits for it.
RECHECK_MS = 10_000
#: A spec this young may belong to a submit that is just about to create its record.
_SETTLE_MS = 5_000
_FULL_LOOK_MS = 60_000
#: What a damaged folder of one job raises; the others are looked after all the same.
_UNREADABLE = (OSError, ValueError)


class Reaper:
    """Looks after every tenant's open jobs until stopped.

    Args:
        tenants: Their stores.
        celery: Where to ring.
        settings: How often to look, which queue the workers listen to, and how long what is kept.
        worker: The worker whose life each look announces; None in the service.
    """

    def __init__(
        self,
        tenants: Tenants,
        celery: Celery,
        settings: Settings,
        worker: str | None = None,
    ) -> None:
        self._tenants = tenants
        self._celery = celery
        self._settings = settings
        self._queue = settings.queue
        self._seconds = settings.reap_seconds
        self._worker = worker
        self._has_young = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="reaper", daemon=True)

    def start(self) -> None:
        """Start looking."""
        self._thread.start()

    def stop(self) -> None:
        """Stop looking, and wait for a look that is under way."""
        self._stop.set()
        self._thread.join()

    def reap_once(self) -> None:
        """Look after every open job whose check is due."""
        for stores in self._tenants.every():
            for job_id in stores.jobs.due():
                try:
                    self._look_after(stores, job_id)
                except _UNREADABLE as error:
                    _log.warning("job_unreadable", job_id=job_id, error=str(error))

    def rebuild(self) -> int:
        """Bring back every job that is on disk and not in Redis.

        Returns:
            How many were brought back.
        """
        rebuilt = 0
        self._has_young = False
        for stores in self._tenants.every():
            for job_id in stores.blobs.job_ids():
                try:
                    rebuilt += self._rebuild_job(stores, job_id)
                except _UNREADABLE as error:
                    _log.warning("job_unreadable", job_id=job_id, error=str(error))
        if rebuilt:
            _log.warning("rebuilt_from_disk", jobs=rebuilt)
        return rebuilt

    def _look_after(self, stores: Stores, job_id: str) -> None:
        if _finish_published(stores, job_id):
            return
        if stores.blobs.read_spec(job_id) is None:
            # Its folder was removed by hand: there is nothing to run, and nobody to tell.
            _log.warning("spec_missing", job_id=job_id)
        found = stores.jobs.reap(job_id, RECHECK_MS)
        if found in ("failed", "cancelled"):
            publish_end(stores.jobs, stores.blobs, job_id)
        if found in ("requeued", "queued") and not stores.jobs.next_to_run():
            # Its tenant runs as many as it may; the end of one of them rings for the next.
            return
        if found == "requeued" or (found == "queued" and self._rings_are_missing()):
            _log.info("rang_again", job_id=job_id, found=found)
            ring(self._celery, stores.tenant, job_id)

    def _rebuild_job(self, stores: Stores, job_id: str) -> bool:
        if stores.jobs.redis.exists(stores.jobs.key(job_id)):
            if not stores.blobs.has_result(job_id):
                # Who ended it in Redis may have died before writing so: the next loss of Redis
                # would run a cancelled job.
                publish_end(stores.jobs, stores.blobs, job_id)
            return False
        spec = stores.blobs.read_spec(job_id)
        result = stores.blobs.read_result(job_id)
        if spec is None:
            return False
        if result is None and abs(now_ms() - spec.created_ms) < _SETTLE_MS:
            self._has_young = True
            return False
        submitted = stores.jobs.submit(
            spec,
            result,
            idempotency_key=spec.idempotency_key,
            fingerprint=spec.fingerprint,
            was_accepted=True,
        )
        if submitted.job_id != job_id:
            # The client was faster and sent its request again, which made another job. This one
            # may have been accepted all the same.
            submitted = stores.jobs.submit(spec, result, was_accepted=True)
        if result is None and stores.blobs.has_cancel(job_id):
            stores.jobs.cancel(job_id)
            publish_end(stores.jobs, stores.blobs, job_id)
        elif result is None:
            if stores.blobs.has_stop(job_id):
                stores.jobs.stop(job_id)
            ring(self._celery, stores.tenant, job_id)
        return submitted.outcome == "created"

    def _rings_are_missing(self) -> bool:
        # As long as as many messages wait as jobs that may run, each job will have its turn.
        able = (stores.jobs for stores in self._tenants.every() if stores.jobs.next_to_run())
        queued = sum(jobs.counts()["queued"] for jobs in able)
        return waiting_rings(self._tenants.redis, self._queue) < queued

    def _loop(self) -> None:
        pause, full_look_at = 0.0, 0.0
        while not self._stop.wait(pause):
            pause = self._seconds
            try:
                if self._worker is not None:
                    announce(self._tenants.redis, self._worker, 4 * self._seconds)
                self.reap_once()
                # After a loss of Redis all jobs are missing at once, and it shows. A full look at
                # the disk is cheap enough to have once a minute besides.
                if is_new(self._tenants.redis) or time.monotonic() >= full_look_at:
                    self.rebuild()
                    for stores in self._tenants.every():
                        sweep(stores.blobs)
                        expire(stores, self._settings)
                    pause_ms = _SETTLE_MS if self._has_young else _FULL_LOOK_MS
                    full_look_at = time.monotonic() + pause_ms / 1000
            except Exception as error:  # noqa: BLE001 - whatever it was, the next look must come
                _log.warning("reaper_failed", error=str(error))
                # Redis may come back without its data.
                full_look_at = 0.0


def _finish_published(stores: Stores, job_id: str) -> bool:
    result = stores.blobs.read_result(job_id)
    if result is None:
        return False
    outcome = stores.jobs.finish(result, token=None)
    _log.info("finished_published", job_id=job_id, outcome=outcome)
    if outcome == "ended":
        stores.jobs.reap(job_id, RECHECK_MS)
    return True


def publish_end(store: JobStore, blobs: BlobStore, job_id: str) -> None:
    """Write down how a job ended that ended in Redis first, so that a rebuild knows.

    Args:
        store: The job store.
        blobs: The blob store.
        job_id: A job that failed or was cancelled without a runner to say so.
    """
    job = store.get(job_id)
    if job is None or job.state not in ("failed", "cancelled") or blobs.read_spec(job_id) is None:
        return
    blobs.publish_result(
        JobResult(
            id=job.id,
            state=job.state,
            attempt=job.attempt,
            failure=job.failure,
            cache=job.cache,
            finished_ms=round(job.finished_at.timestamp() * 1000) if job.finished_at else now_ms(),
        )
    )
