"""Retention: jobs that ended long ago, and models that nobody uses, are removed."""

from collections.abc import Iterator
from typing import get_args

import structlog

from jobs.blobs import StoreName, now_ms
from jobs.job import created_ms_of
from jobs.settings import Settings
from jobs.tenants import Stores

_log = structlog.get_logger(__name__)

_DAY_MS = 86_400_000


def expire(stores: Stores, settings: Settings) -> list[str]:
    """Remove what a tenant has had for long enough.

    Args:
        stores: The tenant's.
        settings: How many days each is kept; 0 keeps it for ever.

    Returns:
        The ids of the jobs, models and data sets removed. No job that is open is among them, and no
        model or data set of one.
    """
    removed = [*_expire_jobs(stores, settings), *_expire_uploads(stores, settings.keep_models_days)]
    if removed:
        _log.info("expired", tenant=stores.tenant, ids=removed)
    return removed


def _expire_jobs(stores: Stores, settings: Settings) -> Iterator[str]:
    days = {
        "succeeded": settings.keep_succeeded_days,
        "failed": settings.keep_failed_days,
        "cancelled": settings.keep_cancelled_days,
    }
    shortest = min(filter(None, days.values()), default=None)
    if shortest is None:
        return
    now = now_ms()
    for job_id in stores.blobs.job_ids():
        if now - created_ms_of(job_id) <= shortest * _DAY_MS:
            # Ids are in the order of time, and no job ends before it begins.
            return
        try:
            result = stores.blobs.read_result(job_id)
        except ValueError:
            continue  # Damaged: a person may still want what lies beside it.
        if result is None or not days[result.state]:
            continue
        if now - result.finished_ms > days[result.state] * _DAY_MS:
            # The disk first, for what is on the disk alone would come back.
            stores.blobs.remove_job(job_id)
            stores.jobs.remove(job_id)
            yield job_id


def _expire_uploads(stores: Stores, days: float) -> Iterator[str]:
    if not days:
        return
    jobs = map(stores.jobs.get, stores.jobs.open_ids())
    needed = {name for job in jobs if job is not None for name in (job.model, *job.recipe.datasets)}
    for store, prefix in zip(get_args(StoreName), ("mdl_", "ds_"), strict=True):
        for digest in list(stores.blobs.digests(store)):
            name = prefix + digest
            if name not in needed and stores.blobs.remove_unused(store, digest, days * 86_400):
                yield name
