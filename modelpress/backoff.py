"""The pause between two attempts at the same request."""

import random
import time
from dataclasses import dataclass

MAX_RETRY_AFTER_SECONDS = 60.0


@dataclass(frozen=True)
class Backoff:
    """How patiently a request is repeated.

    Attributes:
        attempts: How often it is sent at most.
        first_seconds: Longest pause after the first attempt; it doubles with each further one.
        cap_seconds: Longest pause at all, unless the service asks for more with Retry-After.
    """

    attempts: int = 5
    first_seconds: float = 0.25
    cap_seconds: float = 8.0

    def pause(self, attempt: int, retry_after: float | None = None) -> None:
        """Sleep after a failed attempt.

        The pause is drawn from the upper half of its range, so that clients that failed together
        do not come back together.

        Args:
            attempt: How many attempts have failed.
            retry_after: Seconds that the service asked for; they are kept to, up to a minute.
        """
        if retry_after is not None:
            time.sleep(min(max(retry_after, 0.0), MAX_RETRY_AFTER_SECONDS))
            return
        longest = min(self.first_seconds * 2 ** (attempt - 1), self.cap_seconds)
        time.sleep(longest * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
