"""How many requests a tenant may still make, counted in Redis for all processes together."""

from dataclasses import dataclass
from importlib import resources

from redis import Redis

WINDOW_SECONDS = 60


@dataclass(frozen=True)
class Taken:
    """What became of one request.

    Attributes:
        is_allowed: Whether it was among those that may be made.
        left: How many more may be made at once.
        seconds: Until all of them may be made again, or the next one where this was refused.
    """

    is_allowed: bool
    left: int
    seconds: int


class RequestRate:
    """A bucket of requests for each tenant, filled evenly by Redis's own clock.

    Args:
        redis: Where the buckets are.
        most: How many requests may be made per minute, and at once.

    Attributes:
        most: The same.
    """

    most: int

    def __init__(self, redis: Redis, most: int) -> None:
        self.most = most
        text = (resources.files("jobs") / "lua" / "take_request.lua").read_text()
        self._script = redis.register_script(text)

    def take(self, tenant: str) -> Taken:
        """Count a request.

        Args:
            tenant: Who makes it.

        Returns:
            Whether it may be made, and how many more.
        """
        key = f"modelpress:{tenant}:requests"
        is_allowed, left, seconds = self._script(keys=[key], args=[self.most, WINDOW_SECONDS])
        return Taken(bool(is_allowed), int(left), int(seconds))
