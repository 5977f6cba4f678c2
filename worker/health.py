"""`python -m worker.health`: exit 0 while this machine's worker lives and reaches Redis.

Asking the worker through Celery would need its remote control, which anyone who reaches Redis
could use to stop it; so the worker announces itself instead.
"""

import socket
import sys

from redis import Redis
from redis.exceptions import RedisError

from jobs.machine import workers
from jobs.settings import Settings
from jobs.store import connect


def is_alive(redis: Redis, worker: str) -> bool:
    """Tell whether a worker announced itself lately."""
    return worker in workers(redis)


if __name__ == "__main__":
    try:
        sys.exit(0 if is_alive(connect(Settings().redis), socket.gethostname()) else 1)
    except RedisError as error:
        sys.exit(f"Redis cannot be reached: {error}")
