"""What all tenants share in Redis: which workers live, and whether Redis was emptied."""

from typing import cast

from redis import Redis

from jobs.clock import LONGEST_PAUSE_MS, now_ms_of

_WORKERS = "modelpress:workers"
_KNOWN = "modelpress:known"


def announce(redis: Redis, worker: str, seconds: float) -> None:
    """Say that a worker lives, and for how long that is to be believed."""
    now = now_ms_of(redis)
    redis.zremrangebyscore(_WORKERS, "-inf", str(now))
    redis.zadd(_WORKERS, {worker: now + int(seconds * 1000)})


def workers(redis: Redis) -> list[str]:
    """Give the workers that live."""
    now = now_ms_of(redis)
    return cast(
        "list[str]", redis.zrange(_WORKERS, str(now), str(now + LONGEST_PAUSE_MS), byscore=True)
    )


def is_new(redis: Redis) -> bool:
    """Tell, once, that Redis is empty or was emptied: what it knew must be brought back."""
    return bool(redis.set(_KNOWN, 1, nx=True))
