"""What every request needs, made once per application."""

from dataclasses import dataclass
from typing import cast

from celery import Celery
from flask import current_app

from jobs.blobs import BlobStore
from jobs.settings import Settings
from jobs.store import JobStore
from service.metrics import Metrics
from service.waiting import Waiters

EXTENSION = "modelpress"


@dataclass(frozen=True)
class Parts:
    """The collaborators of the routes.

    Attributes:
        settings: Limits and addresses.
        store: Records of jobs.
        blobs: Everything on disk.
        celery: Where to ring.
        waiters: Who may hold a thread while waiting.
        metrics: What is counted.
    """

    settings: Settings
    store: JobStore
    blobs: BlobStore
    celery: Celery
    waiters: Waiters
    metrics: Metrics


def parts() -> Parts:
    """Give the parts of the application that handles this request."""
    return cast("Parts", current_app.extensions[EXTENSION])
