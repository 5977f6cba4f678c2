"""What every request needs, made once per application."""

from dataclasses import dataclass
from typing import cast

from celery import Celery
from flask import current_app

from jobs.keys import KeyStore
from jobs.settings import Settings
from jobs.tenants import Stores, Tenants
from service.identity import identity
from service.metrics import Metrics
from service.waiting_room import Room

EXTENSION = "modelpress"


@dataclass(frozen=True)
class Parts:
    """The collaborators of the routes.

    Attributes:
        settings: Limits and addresses.
        tenants: The stores of all; a route takes those of `own`.
        keys: Who may ask.
        celery: Where to ring.
        room: Where requests wait for jobs.
        metrics: What is counted.
    """

    settings: Settings
    tenants: Tenants
    keys: KeyStore
    celery: Celery
    room: Room
    metrics: Metrics


def parts() -> Parts:
    """Give the parts of the application that handles this request."""
    return cast("Parts", current_app.extensions[EXTENSION])


def own() -> Stores:
    """Give the stores of the tenant that this request speaks for, and of no other."""
    return parts().tenants.stores(identity().tenant)
