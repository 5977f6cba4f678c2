"""The truth about jobs: records in Redis that change only through Lua scripts.

Every change of state is one script, so two processes cannot both make it. A worker holds a job
under a lease with a fencing token: whoever comes back from the dead holds an old token and is
refused. The scripts lie in `jobs/lua`, one file per change.
"""

import json
from collections.abc import Iterator
from importlib import resources
from typing import Any, Literal, cast

from redis import Redis
from redis.commands.core import Script

from jobs.clock import LONGEST_PAUSE_MS, now_ms_of
from jobs.job import Job, JobResult, JobSpec, JobState, Progress
from jobs.problems import Problem
from jobs.records import Claim, Event, Renewal, Submitted, end_arguments, job_from_fields

IDEMPOTENCY_SECONDS = 7 * 86400
#: The channel on which every change of a job is published, by the key of its record.
CHANGED = "modelpress:changed"
#: Renewals come more often; a holder that is silent for longer is not waited for.
_CANCEL_GRACE_MS = 2500
_SCRIPTS = ("submit", "claim", "renew", "release", "finish", "cancel", "stop", "reap", "remove")


class JobStore:
    """Records of one tenant's jobs: every key begins with its name.

    Args:
        redis: A connection made with ``decode_responses=True``.
        tenant: Whose jobs; from a name that `jobs.tenants.is_tenant` knows.
        lease_seconds: How long a worker may be silent.
        max_attempts: How often a job may be claimed.
        most_queued: How many jobs may wait; 0 for any number.
        most_running: How many jobs may run at a time; 0 for any number.
    """

    def __init__(
        self,
        redis: Redis,
        tenant: str,
        lease_seconds: float = 30,
        max_attempts: int = 3,
        most_queued: int = 0,
        most_running: int = 0,
    ) -> None:
        self.redis = redis
        self._prefix = f"modelpress:{tenant}:"
        self._open, self._queued, self._index, self._fence = (
            self._prefix + name for name in ("open", "queued", "index", "fence")
        )
        self._lease_ms = int(lease_seconds * 1000)
        self._max_attempts = max_attempts
        self._most_queued = most_queued
        self._most_running = most_running
        prelude = _read_lua("prelude")
        self._scripts: dict[str, Script] = {
            name: redis.register_script(prelude + _read_lua(name)) for name in _SCRIPTS
        }

    # Changes.

    def submit(
        self,
        spec: JobSpec,
        result: JobResult | None = None,
        *,
        idempotency_key: str | None = None,
        fingerprint: str = "",
        was_accepted: bool = False,
    ) -> Submitted:
        """Create the record of a job whose spec is on disk already.

        Args:
            spec: The job.
            result: Its published result, where it has ended; then nobody ever sees it queued.
            idempotency_key: The client's key; the same key finds the same job for 7 days.
            fingerprint: Of the request, to tell a retry from a different request.
            was_accepted: Whether it only comes back, however many wait.

        Returns:
            What became of it. Where not `created`, nothing changed.
        """
        extra = self._replay_key(idempotency_key) if idempotency_key else None
        ttl = IDEMPOTENCY_SECONDS * 1000 if idempotency_key else 0
        fields = {
            "model": spec.model,
            "recipe": spec.recipe.model_dump_json(),
            "labels": json.dumps(spec.labels),
            "cache": "" if spec.use_cache else "bypass",
        }
        flat = [part for pair in fields.items() for part in pair]
        outcome, job_id = self._run(
            "submit",
            spec.id,
            spec.created_ms,
            5000,
            ttl,
            fingerprint,
            0 if was_accepted else self._most_queued,
            *end_arguments(result),
            *flat,
            extra_key=extra or self.key(spec.id),
        )
        return Submitted(outcome, job_id)

    def claim(self, job_id: str, worker: str) -> Claim:
        """Take a job, if it may be taken.

        Args:
            job_id: Which.
            worker: Who asks, kept in the job's attempts.

        Returns:
            What became of it. At most one claim in force exists per job at any time, and at most
            `max_attempts` were ever counted.
        """
        last = self.last_reason(job_id)
        failure = _failure(last, f"The job was given up after {self._max_attempts} attempts.")
        answer = self._run(
            "claim",
            job_id,
            worker,
            self._lease_ms,
            self._max_attempts,
            *failure,
            self._most_running,
            extra_key=self._fence,
        )
        return Claim(answer[0], *(int(number) for number in answer[1:]))

    def renew(self, job_id: str, token: int, progress: Progress | None = None) -> Renewal:
        """Keep a lease.

        Args:
            job_id: Which.
            token: From the claim.
            progress: What to show, if it changed.

        Returns:
            Whether the lease is held still, and whether a cancel was asked for.
        """
        shown = progress.model_dump_json() if progress else ""
        held, cancel = self._run("renew", job_id, token, self._lease_ms, shown)
        return Renewal(bool(held), bool(cancel))

    def release(
        self, job_id: str, token: int, failure: Problem, *, counted: bool = True, delay_ms: int = 0
    ) -> JobState | Literal["stale"]:
        """Give a job back after a failure that another attempt may survive.

        Args:
            job_id: Which.
            token: From the claim.
            failure: Why; it is the job's failure where this was the last attempt.
            counted: False where the attempt was not to blame, as when a worker is shut down.
            delay_ms: How long to wait before the reaper rings for it.

        Returns:
            The job's state now, or `stale` where the token is no longer in force.
        """
        answer = self._run(
            "release",
            job_id,
            token,
            int(counted),
            self._max_attempts,
            delay_ms,
            json.dumps(failure.to_dict()),
            failure.code,
        )
        return cast("JobState | Literal['stale']", answer)

    def finish(
        self, result: JobResult, token: int | None
    ) -> Literal["finished", "ended", "stale", "missing"]:
        """End a job whose result is published.

        Args:
            result: The published result.
            token: From the claim; None where the published result itself is the proof, as when a
                worker died between publishing and this call.

        Returns:
            `finished`, or why not.
        """
        answer = self._run(
            "finish", result.id, "" if token is None else token, *end_arguments(result)
        )
        return cast("Literal['finished', 'ended', 'stale', 'missing']", answer)

    def cancel(self, job_id: str) -> JobState | Literal["missing"]:
        """End a queued job at once, ask for the end of a running one, leave an ended one alone.

        Its holder has 2.5 s to stop, after which a reaper ends the job without it.

        Args:
            job_id: Which.

        Returns:
            The job's state now.
        """
        state = self._run("cancel", job_id, _CANCEL_GRACE_MS)
        return cast("JobState | Literal['missing']", state)

    def stop(self, job_id: str) -> JobState | Literal["missing"]:
        """Show that a job's training was asked to end early; one that has ended stays as it is.

        Args:
            job_id: Which; the request is on the disk, where its runner finds it.

        Returns:
            The job's state now.
        """
        return cast("JobState | Literal['missing']", self._run("stop", job_id))

    def reap(
        self, job_id: str, recheck_ms: int
    ) -> Literal["closed", "queued", "held", "cancelled", "failed", "requeued"]:
        """Look after one open job whose check is due.

        Args:
            job_id: Which.
            recheck_ms: When to look at a queued job again.

        Returns:
            What was found or done. `queued` and `requeued` want a ring.
        """
        failure = _failure("worker_lost", f"The worker was lost {self._max_attempts} times.")
        answer = self._run(
            "reap", job_id, recheck_ms, self._max_attempts, *failure, self._lease_ms,
            LONGEST_PAUSE_MS,
        )  # fmt: skip
        return cast(
            "Literal['closed', 'queued', 'held', 'cancelled', 'failed', 'requeued']", answer
        )

    def remove(self, job_id: str) -> Literal["removed", "live", "missing"]:
        """Forget a job that has ended."""
        return cast("Literal['removed', 'live', 'missing']", self._run("remove", job_id))

    # Questions.

    def key(self, job_id: str) -> str:
        """Give the key of a job's record; its events' key is that and `:events`."""
        return f"{self._prefix}job:{job_id}"

    def get(self, job_id: str) -> Job | None:
        """Give a job's record, or None where there is none."""
        pipe = self.redis.pipeline(transaction=False)
        pipe.hgetall(self.key(job_id))
        pipe.zrank(self._queued, job_id)
        fields, position = pipe.execute()
        return job_from_fields(job_id, fields, position) if fields else None

    def last_reason(self, job_id: str) -> str:
        """Give the problem code that ended the job's last attempt, or `worker_lost`."""
        attempts = json.loads(self.redis.hget(self.key(job_id), "attempts") or "[]")
        return (attempts[-1].get("reason") if attempts else None) or "worker_lost"

    def page(
        self,
        limit: int,
        before: str | None = None,
        state: JobState | None = None,
        labels: dict[str, str] | None = None,
    ) -> tuple[list[Job], str | None]:
        """Give a page of jobs, newest first.

        Args:
            limit: At most this many.
            before: Only jobs older than this id.
            state: Only jobs in this state.
            labels: Only jobs with all of these labels.

        Returns:
            The jobs, and the id to continue before, or None at the end.
        """
        jobs: list[Job] = []
        for job in self._walk(before):
            if state is not None and job.state != state:
                continue
            if labels and any(job.labels.get(key) != value for key, value in labels.items()):
                continue
            if len(jobs) == limit:
                return jobs, jobs[-1].id
            jobs.append(job)
        return jobs, None

    def due(self, limit: int = 100) -> list[str]:
        """Give open jobs whose check is due, the most overdue first.

        Before them come those whose check lies further ahead than any is put off: the clock was set
        back, and they are not to wait until it is as late again.
        """
        now = now_ms_of(self.redis)
        too_far = now + max(self._lease_ms, LONGEST_PAUSE_MS)
        pipe = self.redis.pipeline(transaction=False)
        for first, last in ((f"({too_far}", "+inf"), ("-inf", str(now))):
            pipe.zrange(self._open, first, last, byscore=True, offset=0, num=limit)
        stranded, overdue = pipe.execute()
        return [*stranded, *overdue][:limit]

    def open_ids(self) -> list[str]:
        """Give every job that has not ended."""
        return cast("list[str]", self.redis.zrange(self._open, 0, -1))

    def is_replayed(self, idempotency_key: str) -> bool:
        """Tell whether a client's key has found its job before."""
        return bool(self.redis.exists(self._replay_key(idempotency_key)))

    def next_to_run(self) -> str | None:
        """Give the queued job that has waited longest, where one more may run; else None."""
        counts = self.counts()
        if self._most_running and counts["running"] >= self._most_running:
            return None
        # A job that is to wait for a while has a place in line that is still to come.
        now = now_ms_of(self.redis)
        ids = self.redis.zrange(self._queued, "-inf", str(now), byscore=True, offset=0, num=1)
        return cast("str", ids[0]) if ids else None

    def waits_since_ms(self) -> int | None:
        """Give since when the first in line waits, in ms since the epoch; None where none does."""
        first = self.redis.zrange(self._queued, 0, 0, withscores=True)
        return int(cast("float", first[0][1])) if first else None

    def counts(self) -> dict[str, int]:
        """Count queued, open and all jobs."""
        pipe = self.redis.pipeline(transaction=False)
        for key in (self._queued, self._open, self._index):
            pipe.zcard(key)
        queued, open_, known = pipe.execute()
        return {"queued": queued, "running": max(0, open_ - queued), "known": known}

    def events(self, job_id: str, after: str = "0") -> list[Event]:
        """Give the events after one of them.

        Args:
            job_id: Which job.
            after: The last event's id that the caller has seen; "0" for all that are kept.

        Returns:
            The events, oldest first; empty where there is none.
        """
        answer = self.redis.xread({self.key(job_id) + ":events": after})
        if not answer:
            return []
        [[_, rows]] = cast("list[Any]", answer)
        return [Event(row, fields["type"], json.loads(fields["data"])) for row, fields in rows]

    # Inside.

    def _run(self, name: str, job_id: str, *args: str | int, extra_key: str | None = None) -> Any:  # noqa: ANN401 - each script has its own answer
        key = self.key(job_id)
        keys = [key, key + ":events", self._open, self._queued, self._index]
        if extra_key is not None:
            keys.append(extra_key)
        return self._scripts[name](keys=keys, args=[job_id, *args])

    def _replay_key(self, idempotency_key: str) -> str:
        return f"{self._prefix}idempotency:{idempotency_key}"

    def _walk(self, before: str | None) -> Iterator[Job]:
        end = f"({before}" if before else "+"
        while True:
            ids = cast(
                "list[str]",
                self.redis.zrange(self._index, end, "-", desc=True, bylex=True, offset=0, num=100),
            )
            pipe = self.redis.pipeline(transaction=False)
            for job_id in ids:
                pipe.hgetall(self.key(job_id))
                pipe.zrank(self._queued, job_id)
            rows = pipe.execute()
            for i, job_id in enumerate(ids):
                if rows[2 * i]:
                    yield job_from_fields(job_id, rows[2 * i], rows[2 * i + 1])
            if len(ids) < 100:
                return
            end = f"({ids[-1]}"


def connect(url: str) -> Redis:
    """Open a connection pool to Redis.

    Args:
        url: ``redis://…``, ``rediss://…`` or ``unix://…``.

    Returns:
        A client that decodes answers and notices a dead server.
    """
    return Redis.from_url(
        url,
        decode_responses=True,
        socket_connect_timeout=5,
        socket_timeout=70,
        health_check_interval=25,
    )


def _read_lua(name: str) -> str:
    return (resources.files("jobs") / "lua" / f"{name}.lua").read_text()


def _failure(code: str, detail: str) -> tuple[str, str]:
    problem = Problem(code, detail)
    return json.dumps(problem.to_dict()), problem.code
