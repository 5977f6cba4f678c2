"""What workers measured of their own processes, where the service finds it to plan with."""

from collections.abc import Mapping
from typing import cast

from redis import Redis

_KEY = "modelpress:levels"
#: A worker that was not started for this long says nothing about those of today.
_SECONDS = 30 * 86400


def publish_levels(redis: Redis, levels: Mapping[str, int]) -> None:
    """Tell the service what was measured; a later measurement takes an earlier one's place."""
    redis.hset(_KEY, mapping={name: str(value) for name, value in levels.items()})
    redis.expire(_KEY, _SECONDS)


def read_levels(redis: Redis) -> dict[str, int]:
    """Give what workers measured, by name; empty where none was seen."""
    found = cast("dict[str, str]", redis.hgetall(_KEY))
    return {name: int(value) for name, value in found.items()}
