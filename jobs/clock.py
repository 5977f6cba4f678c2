"""Redis's own clock, which every lease goes by, and how far ahead of it anything is put off."""

from redis import Redis

#: Pauses between attempts and checks are shorter. What lies further ahead, and is no lease, was put
#: there before the clock was set back, and is not waited for.
LONGEST_PAUSE_MS = 60_000


def now_ms_of(redis: Redis) -> int:
    """Give Redis's clock in milliseconds since the epoch."""
    seconds, microseconds = redis.time()
    return int(seconds) * 1000 + int(microseconds) // 1000
