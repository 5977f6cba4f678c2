"""How long the jobs of killed workers waited, by the logs: no wipe of Redis hides one."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from benchmarks.chaos.clock import undo
from benchmarks.chaos.ledger import End
from benchmarks.chaos.plan import FaultKind


@dataclass(frozen=True)
class Hit:
    """A job whose worker fell silent.

    Attributes:
        job_id: The job.
        at: When, in seconds since the epoch.
        kind: How.
    """

    job_id: str
    at: float
    kind: FaultKind


def recovery_seconds(
    hits: Iterable[Hit], ends: Mapping[str, End], logs: Iterable[Path]
) -> list[float]:
    """Measure from each kill of a worker to the moment at which its job was cared for again.

    Args:
        hits: Who was killed.
        ends: How jobs ended.
        logs: Of the workers.

    Returns:
        Seconds to the next claim of the job, or to its end where it ended without one. A job that
        ended before its worker was hit has waited for nobody and is left out.
    """
    claims = _claims(logs)
    seconds = []
    for hit in hits:
        moments = [at for at in claims[hit.job_id] if at > hit.at]
        if hit.job_id in ends:
            ended = datetime.fromisoformat(ends[hit.job_id].finished_at).timestamp()
            moments.append(undo(ended, hit.at))
        if moments and min(moments) > hit.at:
            seconds.append(min(moments) - hit.at)
    return seconds


def _claims(logs: Iterable[Path]) -> dict[str, list[float]]:
    """Give when each job was claimed, in seconds since the epoch."""
    found: dict[str, list[float]] = defaultdict(list)
    for log in logs:
        for line in log.read_text(errors="replace").splitlines():
            if '"event": "claim"' in line and '"outcome": "claimed"' in line:
                said = json.loads(line)
                found[said["job_id"]].append(datetime.fromisoformat(said["timestamp"]).timestamp())
    return found
