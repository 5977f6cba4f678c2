"""What the store's scripts take and give: answers, events and records, and how Redis holds them."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, cast

from jobs.job import Artifact, Attempt, Cache, Job, JobResult, JobState
from jobs.recipe import Recipe


@dataclass(frozen=True)
class Submitted:
    """What became of a submit.

    Attributes:
        outcome: `created`; `replayed`: the same Idempotency-Key and request made the job before;
            `mismatch`: the key was used for a different request; `exists`: the id is taken; `full`:
            as many jobs wait as may.
        job_id: The job, new or known.
    """

    outcome: Literal["created", "replayed", "mismatch", "exists", "full"]
    job_id: str


@dataclass(frozen=True)
class Claim:
    """What became of a claim.

    Attributes:
        outcome: `claimed`; `held` by another; `ended` or `missing`: nothing to do; `exhausted`:
            the attempts were used up and the job failed by this call; `full`: as many jobs of the
            tenant run as may.
        token: The fencing token, where claimed.
        attempt: The attempt's number, where claimed.
    """

    outcome: Literal["claimed", "held", "ended", "missing", "exhausted", "full"]
    token: int = 0
    attempt: int = 0


@dataclass(frozen=True)
class Renewal:
    """What a renewal brings back.

    Attributes:
        held: Whether the lease is still ours; where not, the runner must stop at once.
        cancel_requested: Whether the client wants the job to end.
    """

    held: bool
    cancel_requested: bool


@dataclass(frozen=True)
class Event:
    """One visible change of a job.

    Attributes:
        id: Its place in the job's stream.
        type: A state, `progress`, `cancel_requested`, `stop_requested` or `requeued`.
        data: Revision, state, attempt, progress and failure at that moment.
    """

    id: str
    type: str
    data: dict[str, Any]


def end_arguments(result: JobResult | None) -> tuple[str | int, ...]:
    """Give what the scripts take to end a job.

    Args:
        result: How it ended; None where it has not, which makes all of it empty.

    Returns:
        State, failure, its code, artifact, the moment in ms, attempt and cache.
    """
    if result is None:
        return ("",) * 7
    return (
        result.state,
        json.dumps(result.failure) if result.failure else "",
        result.failure["code"] if result.failure else "",
        result.artifact.model_dump_json() if result.artifact else "",
        result.finished_ms,
        result.attempt,
        result.cache or "",
    )


def job_from_fields(job_id: str, fields: dict[str, str], position: int | None) -> Job:
    """Read a job's record.

    Args:
        job_id: Which.
        fields: Of its hash in Redis.
        position: How many queued jobs come before it; None where it is not queued.

    Returns:
        The job.
    """

    def moment(milliseconds: str | None) -> datetime | None:
        return datetime.fromtimestamp(int(milliseconds) / 1000, UTC) if milliseconds else None

    def members(name: str) -> Any:  # noqa: ANN401 - whatever the field holds
        return json.loads(fields[name]) if fields.get(name) else None

    attempts = [
        Attempt(
            number=row["number"],
            worker=row["worker"],
            started_at=cast("datetime", moment(row["started_ms"])),
            ended_at=moment(row.get("ended_ms")),
            outcome=row.get("outcome"),
            reason=row.get("reason"),
        )
        for row in members("attempts") or []
    ]
    artifact = members("artifact")
    return Job(
        id=job_id,
        state=cast("JobState", fields["state"]),
        revision=int(fields["revision"]),
        attempt=int(fields["attempt"]),
        attempts=tuple(attempts),
        model=fields["model"],
        recipe=Recipe.model_validate_json(fields["recipe"]),
        labels=members("labels") or {},
        cancel_requested=fields.get("cancel_requested") == "1",
        stop_requested=fields.get("stop_requested") == "1",
        progress=members("progress"),
        queue_position=position,
        created_at=cast("datetime", moment(fields["created_ms"])),
        started_at=moment(fields.get("started_ms")),
        finished_at=moment(fields.get("finished_ms")),
        failure=members("failure"),
        artifact=Artifact.model_validate(artifact) if artifact else None,
        cache=cast("Cache | None", fields.get("cache") or None),
    )
