"""The Lua scripts against a plain Python model of the same rules, on a real Redis."""

from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from jobs.job import TERMINAL_STATES, JobResult, JobSpec, Progress, new_job_id
from jobs.problems import Problem
from jobs.recipe import load_recipe
from jobs.store import JobStore, connect

MAX_ATTEMPTS = 3
RECIPE = load_recipe("steps: [{op: quantize, scheme: w8a16}]")
ENDS = ("succeeded", "failed", "cancelled")


@dataclass
class ModelJob:
    """What a job is, without Redis: the reference that the scripts are held to."""

    state: str = "queued"
    attempt: int = 0
    token: int | None = None
    lease_is_over: bool = False
    cancel_requested: bool = False
    stop_requested: bool = False
    progress: int | None = None
    outcomes: list[str | None] = field(default_factory=list)

    def end(self, state: str) -> None:
        if self.outcomes and self.outcomes[-1] is None:
            self.outcomes[-1] = state
        self.state = state

    def requeue(self) -> None:
        self.outcomes[-1] = "requeued"
        self.state, self.progress = "queued", None

    def claim(self) -> str:
        if self.state == "running" and not self.lease_is_over:
            return "held"
        if self.state in TERMINAL_STATES:
            return "ended"
        if self.cancel_requested:
            self.end("cancelled")
            return "ended"
        if self.attempt >= MAX_ATTEMPTS:
            self.end("failed")
            return "exhausted"
        if self.state == "running":
            self.outcomes[-1] = "requeued"
        self.attempt += 1
        self.outcomes.append(None)
        self.state, self.lease_is_over, self.progress = "running", False, None
        return "claimed"

    def holds(self, token: int) -> bool:
        return self.state == "running" and self.token == token

    def release(self, token: int, *, counted: bool) -> str:
        if not self.holds(token):
            return "stale"
        if self.cancel_requested:
            self.end("cancelled")
        elif counted and self.attempt >= MAX_ATTEMPTS:
            self.end("failed")
        else:
            self.attempt -= 0 if counted else 1
            self.requeue()
        return self.state

    def finish(self, state: str, token: int | None) -> str:
        if self.state in TERMINAL_STATES:
            return "ended"
        if token is None:
            self.attempt = max(self.attempt, 1)  # The result's own.
        elif not self.holds(token):
            return "stale"
        self.end(state)
        return "finished"

    def cancel(self) -> str:
        if self.state == "queued":
            self.cancel_requested = True
            self.end("cancelled")
        elif self.state == "running":
            self.cancel_requested = True
        return self.state

    def stop(self) -> str:
        self.stop_requested |= self.state not in TERMINAL_STATES
        return self.state

    def reap(self) -> str:
        if self.state in TERMINAL_STATES:
            return "closed"
        if self.state == "queued":
            return "queued"
        if not self.lease_is_over:
            return "held"
        if self.cancel_requested:
            self.end("cancelled")
            return "cancelled"
        if self.attempt >= MAX_ATTEMPTS:
            self.end("failed")
            return "failed"
        self.requeue()
        return "requeued"


class StoreMachine(RuleBasedStateMachine):
    redis_url = ""
    jobs = Bundle("jobs")
    tokens = Bundle("tokens")

    @initialize()
    def start(self):
        # A database of its own: a server that an earlier test stopped may still end a request.
        self.redis = connect(f"{self.redis_url}?db=1")
        self.redis.flushdb()
        self.store = JobStore(self.redis, "default", lease_seconds=60, max_attempts=MAX_ATTEMPTS)
        self.model: dict[str, ModelJob] = {}
        self.revisions: dict[str, int] = {}

    def teardown(self):
        self.redis.close()

    @rule(target=jobs)
    def submit(self):
        spec = JobSpec(id=new_job_id(), model="mdl_" + "0" * 64, recipe=RECIPE, created_ms=1)

        assert self.store.submit(spec).outcome == "created"
        assert self.store.submit(spec).outcome == "exists"

        self.model[spec.id] = ModelJob()
        return spec.id

    @rule(target=tokens, job=jobs)
    def claim(self, job):
        if job not in self.model:
            assert self.store.claim(job, "w").outcome == "missing"
            return 0
        claim = self.store.claim(job, "w")

        assert claim.outcome == self.model[job].claim()
        if claim.outcome == "claimed":
            self.model[job].token = claim.token
            assert claim.attempt == self.model[job].attempt
        return claim.token

    @rule(job=jobs, token=tokens, done=st.integers(0, 3))
    def renew(self, job, token, done):
        if job not in self.model:
            return
        model = self.model[job]
        progress = Progress(phase="p", step=1, steps=1, done=done, total=3, unit="tensors")

        renewal = self.store.renew(job, token, progress)

        assert renewal.held == model.holds(token)
        assert renewal.cancel_requested == (model.holds(token) and model.cancel_requested)
        if renewal.held:
            # A cancelled job's lease is not lengthened any more.
            model.progress = done
            model.lease_is_over &= model.cancel_requested

    @rule(job=jobs, token=tokens, counted=st.booleans())
    def release(self, job, token, counted):
        if job in self.model:
            answer = self.store.release(job, token, Problem("runner_died", "x"), counted=counted)
            assert answer == self.model[job].release(token, counted=counted)

    @rule(job=jobs, token=st.one_of(tokens, st.none()), state=st.sampled_from(ENDS))
    def finish(self, job, token, state):
        if job in self.model:
            result = JobResult(id=job, state=state, attempt=1, finished_ms=1)
            assert self.store.finish(result, token) == self.model[job].finish(state, token)

    @rule(job=jobs)
    def cancel(self, job):
        expected = self.model[job].cancel() if job in self.model else "missing"
        assert self.store.cancel(job) == expected

    @rule(job=jobs)
    def stop(self, job):
        expected = self.model[job].stop() if job in self.model else "missing"
        assert self.store.stop(job) == expected

    @rule(job=jobs)
    def reap(self, job):
        expected = self.model[job].reap() if job in self.model else "closed"
        assert self.store.reap(job, 1000) == expected

    @rule(job=jobs)
    def time_passes_beyond_the_lease(self, job):
        if job in self.model and self.model[job].state == "running":
            self.redis.hset(self.store.key(job), "lease_until_ms", 1)
            self.model[job].lease_is_over = True

    @rule(job=jobs)
    def remove(self, job):
        if job not in self.model:
            assert self.store.remove(job) == "missing"
        elif self.model[job].state in TERMINAL_STATES:
            assert self.store.remove(job) == "removed"
            del self.model[job], self.revisions[job]
        else:
            assert self.store.remove(job) == "live"

    @invariant()
    def records_equal_the_model(self):
        for job_id, model in self.model.items():
            job = self.store.get(job_id)
            shown = job.progress.done if job.progress else None
            assert (job.state, job.attempt, job.cancel_requested, job.stop_requested) == (
                model.state,
                model.attempt,
                model.cancel_requested,
                model.stop_requested,
            )
            assert [row.outcome for row in job.attempts] == model.outcomes
            if model.state == "running":
                assert shown == model.progress
            assert job.attempt <= MAX_ATTEMPTS
            assert (job.finished_at is not None) == (model.state in TERMINAL_STATES)
            self.see_revision(job_id, job.revision)

    def see_revision(self, job_id, revision):
        """Revisions never go back."""
        assert revision >= self.revisions.get(job_id, 1)
        self.revisions[job_id] = revision

    @invariant()
    def open_jobs_are_exactly_those_not_ended(self):
        expected = {i for i, model in self.model.items() if model.state not in TERMINAL_STATES}
        queued = sum(model.state == "queued" for model in self.model.values())
        assert set(self.store.open_ids()) == expected
        assert self.store.counts() == {
            "queued": queued,
            "running": len(expected) - queued,
            "known": len(self.model),
        }


def _machine(redis_url: str) -> type[StoreMachine]:
    return type("Machine", (StoreMachine,), {"redis_url": redis_url})


def test_the_scripts_do_what_the_model_does(redis_url):
    run_state_machine_as_test(
        _machine(redis_url),
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


@pytest.mark.slow
def test_the_scripts_do_what_the_model_does_over_many_more_steps(redis_url):
    run_state_machine_as_test(
        _machine(redis_url),
        settings=settings(max_examples=150, stateful_step_count=100, deadline=None),
    )
