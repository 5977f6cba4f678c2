"""What a tenant may take of the service: bytes, uploads at a time, requests per minute."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import structlog
from flask import Flask, Request, Response, g
from redis.exceptions import RedisError

from jobs.problems import Problem
from jobs.request_rate import WINDOW_SECONDS, RequestRate, Taken
from jobs.usage import stored_bytes
from service.identity import Identity
from service.parts import own, parts
from service.receive import Body
from service.uploads import require_space
from service.waiting import is_again

_log = structlog.get_logger(__name__)


def install(app: Flask, rate: RequestRate) -> None:
    """Have an application count every tenant's requests.

    Args:
        app: The application; it knows who asks by then.
        rate: Where they are counted.
    """

    def count() -> None:
        who = cast("Identity | None", g.identity)
        if who is None or is_again():
            # A request that has waited was counted when it came.
            return
        try:
            g.taken = rate.take(who.tenant)
        except RedisError as error:
            # Whoever needs Redis will be told that it is away; the others need not wait for it.
            _log.warning("requests_not_counted", error=str(error))
            return
        if not g.taken.is_allowed:
            raise Problem(
                "rate_limited",
                f"{rate.most} requests per minute are allowed; come back in {g.taken.seconds} s.",
                extra={"retry_after_seconds": g.taken.seconds},
            )

    def tell(response: Response) -> Response:
        taken: Taken | None = g.get("taken")
        if taken is not None:
            # draft-ietf-httpapi-ratelimit-headers-10.
            response.headers["RateLimit-Policy"] = f'"requests";q={rate.most};w={WINDOW_SECONDS}'
            response.headers["RateLimit"] = f'"requests";r={taken.left};t={taken.seconds}'
        return response

    app.before_request(count)
    app.after_request(tell)


def left_bytes() -> float:
    """Give how many bytes more the tenant that asks may store; infinity without a quota."""
    quota = parts().settings.quota_bytes
    return max(0, quota - stored_bytes(own().blobs.root)) if quota else math.inf


def require_storage() -> None:
    """Refuse what makes an artifact where the tenant that asks, or the disk, takes nothing more.

    Raises:
        Problem: `storage_quota`, `storage_full`.
    """
    _require(left_bytes(), 1)
    require_space(own().blobs.root, None, parts().settings.disk_reserve)


def open_upload(request: Request) -> Body:
    """Begin with an upload, if the limits, the tenant's quota and the disk allow it.

    Args:
        request: The request; its body was not touched.

    Returns:
        Its body, which ends in `too_large` where it turns out larger than what is left.

    Raises:
        Problem: `storage_quota`, `storage_full`, or what `Body` raises.
    """
    body, left = Body(request, parts().settings.max_upload), left_bytes()
    _require(left, body.announced or 1)
    require_space(own().blobs.root, body.announced, parts().settings.disk_reserve)
    return body if body.announced else Body(request, int(min(parts().settings.max_upload, left)))


def _require(left: float, nbytes: int) -> None:
    if nbytes > left:
        raise Problem(
            "storage_quota",
            f"{left} bytes are left of {parts().settings.quota_bytes}; this takes at least "
            f"{nbytes}. Remove models or jobs that are no longer needed.",
        )


@contextmanager
def stage_upload() -> Iterator[Path]:
    """Give a folder for one upload; see `BlobStore.stage`.

    Yields:
        The folder.

    Raises:
        Problem: `too_many_uploads`.
    """
    most = parts().settings.quota_uploads
    with own().blobs.stage() as staged:
        # Counted with this one among them: of two that begin at once none slips through.
        if most and own().blobs.uploads() > most:
            raise Problem("too_many_uploads", f"{most} uploads at a time are allowed.")
        yield staged
