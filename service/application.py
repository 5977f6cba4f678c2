"""Puts the parts together into one Flask application."""

import contextlib

import structlog
from flask import Flask, Response, g, request

from jobs.keys import KeyStore
from jobs.queue import make_celery
from jobs.request_rate import RequestRate
from jobs.settings import Settings
from jobs.store import connect
from jobs.tenants import Tenants
from service import (
    artifact_routes,
    docs_routes,
    event_routes,
    headers,
    identity,
    job_routes,
    key_routes,
    metrics,
    model_routes,
    ops_routes,
    plan_routes,
    problems,
    quotas,
    report_routes,
    sensitivity_routes,
    storage_routes,
    submit_routes,
)
from service.parts import EXTENSION, Parts
from service.streams import PausingStreams
from service.waiting_room import Room

#: A peer that neither sends nor takes a byte for this long is gone; its thread is wanted elsewhere.
SILENCE_SECONDS = 60.0

_ROUTES = (
    artifact_routes,
    docs_routes,
    event_routes,
    job_routes,
    key_routes,
    model_routes,
    ops_routes,
    plan_routes,
    report_routes,
    sensitivity_routes,
    storage_routes,
    submit_routes,
)


def create_app(settings: Settings) -> Flask:
    """Make the WSGI application.

    Args:
        settings: Where the data and Redis are, and the limits.

    Returns:
        The application. Neither Redis nor a worker needs to be there yet.
    """
    app = Flask("service", static_folder=None)
    app.json.sort_keys = False  # type: ignore[attr-defined] # only the default provider has it
    redis = connect(settings.redis)
    keys = KeyStore(settings.data_dir, settings.key_secret.get_secret_value())
    app.extensions[EXTENSION] = Parts(
        settings=settings,
        tenants=Tenants(settings, redis),
        keys=keys,
        celery=make_celery(settings),
        room=Room(redis, settings.max_long_polls),
        metrics=metrics.Metrics(),
    )
    app.before_request(_limit_silence)
    headers.install(app)
    metrics.install(app)
    problems.install(app)
    identity.install(app, settings, keys)
    if settings.quota_requests:
        quotas.install(app, RequestRate(redis, settings.quota_requests))
    for module in _ROUTES:
        app.register_blueprint(module.routes)
    app.after_request(_log_request)
    app.wsgi_app = PausingStreams(app.wsgi_app)  # type: ignore[method-assign]
    return app


def _limit_silence() -> None:
    # gunicorn's threads block on their sockets without end; under another server there is none.
    sock = request.environ.get("gunicorn.socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.settimeout(SILENCE_SECONDS)


def _log_request(response: Response) -> Response:
    structlog.get_logger("service").info(
        "request",
        request_id=g.request_id,
        method=request.method,
        path=request.path,
        status=response.status_code,
    )
    return response
