"""What jobs came to, added up in Redis for the service's metrics, whichever process ended them.

A loss of Redis begins at zero again, as Prometheus' counters may.
"""

from dataclasses import dataclass
from typing import cast

from redis import Redis

from jobs.report import Report

#: Fields `ended|<state>|<code>` and the seconds of jobs come from the script that ends a job.
TALLY = "modelpress:tally:"
_MIB = 1024**2
#: Upper bounds of the peaks that are told apart.
PEAK_BOUNDS_BYTES = tuple(2**power * _MIB for power in (6, 7, 8, 9, 10, 12, 14, 16, 18))


@dataclass(frozen=True)
class Tally:
    """Sums since Redis was last empty, by the names of what they are of.

    Attributes:
        sums: By name, then by the values that tell one from another, `|` between them.
    """

    sums: dict[str, dict[str, float]]

    def of(self, name: str) -> dict[str, float]:
        """Give the sums of a name; none where nothing was added."""
        return self.sums.get(name, {})

    def one(self, name: str) -> float:
        """Give the sum of a name that has one only."""
        return sum(self.of(name).values())


def add_report(redis: Redis, report: Report) -> None:
    """Add what a job measured, once it has succeeded.

    Args:
        redis: The store.
        report: Of a job that was run, not of one that an equal job answered.
    """
    peak = report.memory.measured_peak_bytes
    bound = next((bound for bound in PEAK_BOUNDS_BYTES if peak <= bound), None)
    pipe = redis.pipeline(transaction=False)
    for step in report.steps:
        pipe.hincrbyfloat(TALLY, f"step_seconds|{step.op}|{step.method}", step.seconds)
        pipe.hincrby(TALLY, f"step_runs|{step.op}|{step.method}", 1)
    pipe.hincrby(TALLY, "model_bytes", report.model.bytes)
    pipe.hincrby(TALLY, "artifact_bytes", report.artifact.bytes)
    pipe.hincrby(TALLY, f"peak_runs|{bound or '+Inf'}", 1)
    pipe.hincrby(TALLY, "peak_bytes", peak)
    pipe.execute()


def read_tally(redis: Redis) -> Tally:
    """Give all sums.

    Args:
        redis: The store.

    Returns:
        The sums.
    """
    sums: dict[str, dict[str, float]] = {}
    for field, value in cast("dict[str, str]", redis.hgetall(TALLY)).items():
        name, _, rest = field.partition("|")
        sums.setdefault(name, {})[rest] = float(value)
    return Tally(sums)
