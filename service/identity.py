"""Who asks: told from a request's API key alone, before any of its body is read."""

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast

import structlog
from flask import Flask, Response, current_app, g, request

from jobs.keys import SCOPES, Key, KeyStore, Scope, is_whole
from jobs.problems import Problem
from jobs.settings import Settings
from jobs.tenants import DEFAULT_TENANT
from service.contract import ATTRIBUTE, Operation

#: These change nothing, so nothing is written down.
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True)
class Identity:
    """Who asks.

    Attributes:
        tenant: Whose jobs and models it sees.
        scopes: What it may do.
        key_id: Its key; None where the service needs none.
    """

    tenant: str
    scopes: tuple[Scope, ...]
    key_id: str | None = None

    @property
    def is_operator(self) -> bool:
        """Whether it may see to other tenants' keys and the machine's figures."""
        return self.tenant == DEFAULT_TENANT


def install(app: Flask, settings: Settings, keys: KeyStore) -> None:
    """Have an application know who asks before any route does, and write down every change.

    Args:
        app: The application; its errors are answered already.
        settings: `host` decides whether the service can do without keys.
        keys: The keys.
    """
    is_local = is_loopback(settings.host)

    def identify() -> None:
        g.identity = None
        operation = _operation()
        if operation is not None and operation.scope is None:
            return
        g.identity = _identify(keys, is_local=is_local)
        scope = operation.scope if operation is not None else None
        if scope is not None and scope not in g.identity.scopes:
            raise Problem(
                "scope_missing", f"The key has no scope {scope!r}.", extra={"scope": scope}
            )

    app.before_request(identify)
    app.after_request(_audit)


def identity() -> Identity:
    """Give who makes this request; its route is one that asks for a scope."""
    return cast("Identity", g.identity)


def is_loopback(host: str) -> bool:
    """Tell whether an address to listen on can be reached from this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _operation() -> Operation | None:
    view = current_app.view_functions.get(request.endpoint or "")
    return cast("Operation | None", getattr(view, ATTRIBUTE, None))


def _identify(keys: KeyStore, *, is_local: bool) -> Identity:
    if is_local and not keys.has_any():
        _refuse_foreign_page()
        return Identity(DEFAULT_TENANT, SCOPES)
    key = _present_key(keys, request.headers.get("Authorization", ""))
    return Identity(key.tenant, key.scopes, key.id)


def _refuse_foreign_page() -> None:
    # A page that a browser on this machine shows can send requests here: in its own site's name, or
    # in a name of its own that leads to this machine, which then stands in Host.
    origin, host = request.headers.get("Origin"), request.host
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if not is_loopback(name) or (origin is not None and origin.partition("://")[2] != host):
        raise Problem(
            "foreign_page",
            "Without keys the service is for this machine alone: it answers to localhost and "
            "127.0.0.1, and to no page of another site.",
        )


def _present_key(keys: KeyStore, header: str) -> Key:
    if not header:
        raise Problem(
            "key_required",
            "Send an API key: `Authorization: Bearer mp_...`, or MODELPRESS_API_KEY to the client.",
        )
    scheme, _, text = header.partition(" ")
    if scheme.lower() != "bearer" or not is_whole(text.strip()):
        # Nothing of it is repeated: it may be all but a letter of a key.
        raise Problem("key_invalid", "This is no whole API key; it was cut off or mistyped.")
    key = keys.match(text.strip())
    if key is None:
        raise Problem("key_invalid", "The API key is not known here.")
    flaw = key.flaw(datetime.now(UTC))
    if flaw is not None:
        raise Problem("key_invalid", f"The API key {key.id} {flaw}.")
    return key


def _audit(response: Response) -> Response:
    operation = _operation()
    if request.method in _SAFE_METHODS or operation is None or operation.scope in (None, "read"):
        return response
    who: Identity | None = g.get("identity")
    named = list((request.view_args or {}).values())
    made = response.headers.get("Location", "").rpartition("/")[2]
    structlog.get_logger("audit").info(
        "audit",
        request_id=g.request_id,
        key=who.key_id if who else None,
        tenant=who.tenant if who else None,
        what=operation.summary.lower(),
        id=str(named[0])[:80] if named else made or None,
        outcome="done" if response.status_code < 400 else "refused",
        status=response.status_code,
    )
    return response
