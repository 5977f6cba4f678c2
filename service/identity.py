"""Who asks: the tenant that a request speaks for."""

from dataclasses import dataclass
from typing import cast

from flask import Flask, g

from jobs.tenants import DEFAULT_TENANT


@dataclass(frozen=True)
class Identity:
    """Who asks.

    Attributes:
        tenant: Whose jobs and models it sees.
    """

    tenant: str


def install(app: Flask) -> None:
    """Have an application know who asks before any route does.

    Args:
        app: The application.
    """
    app.before_request(_identify)


def identity() -> Identity:
    """Give who makes this request."""
    return cast("Identity", g.identity)


def _identify() -> None:
    g.identity = Identity(DEFAULT_TENANT)
