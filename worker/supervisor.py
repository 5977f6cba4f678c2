"""The supervisor: takes a job, has a runner do it and another one verify it, and publishes it.

Trusted. It, `worker.endings` and `worker.announcements` are the only parts of the worker that hold
Redis.
"""

import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from celery import Celery
from redis.exceptions import RedisError

from jobs.blobs import now_ms
from jobs.equal_jobs import answer, deciding_parts, link_or_copy
from jobs.gate import check as check_gate
from jobs.gate import check_memory
from jobs.job import Job, JobResult
from jobs.kept_sensitivities import keep_sensitivities, read_sensitivities
from jobs.levels import read_levels
from jobs.problems import Problem
from jobs.program import is_program
from jobs.queue import ring
from jobs.reaper import publish_end
from jobs.recipe import ENGINE_VERSION, Budget
from jobs.report import Report
from jobs.settings import Settings
from jobs.tenants import Stores, Tenants
from planning.forecast import check_budget
from planning.memory_model import levels_of
from worker.announcements import Announcements
from worker.attempt import Outcome, interruption, watch
from worker.checksums import Checksums
from worker.collect import Row, measuring, read_report, seal_artifact
from worker.endings import Endings
from worker.evaluating import read_quality, with_stages
from worker.inferring import Made, take_answers
from worker.lease import Lease
from worker.limits import Limits
from worker.measuring import take_measured
from worker.order import Order
from worker.orders import answering_orders, making_orders, running_orders, stage_orders
from worker.runner_process import Runner
from worker.runners import Runners, most_kept_bytes
from worker.stage_reports import read_stages
from worker.work_files import ARTIFACT_NAME, REPORT_NAME

_log = structlog.get_logger(__name__)


class _Stopped(Exception):  # noqa: N818 - not an error: something outside says stop
    """The attempt was ended while its artifact was being collected."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome


@dataclass(frozen=True)
class _Held:
    """A job that this worker holds."""

    stores: Stores
    job: Job
    token: int


class Supervisor:
    """Runs jobs of all tenants, one at a time, each in a fresh runner.

    Args:
        settings: The worker's settings.
        tenants: Their stores.
        celery: Where to ring when a job goes back to the queue.
        drain: A descriptor that becomes readable when the worker is to shut down.

    Attributes:
        runners: What starts its runners.
        name: Its own, as the records of jobs show it.
    """

    runners: Runners
    name: str

    def __init__(
        self,
        settings: Settings,
        tenants: Tenants,
        celery: Celery,
        drain: int | None = None,
    ) -> None:
        self._settings = settings
        self._tenants = tenants
        self._celery = celery
        self._drain = drain
        device = choose_device(settings.device)
        # Hidden from a runner: not its tenant's folder alone, but that of all of them.
        self.runners = Runners(device, settings.sandbox, settings.data_dir.resolve())
        self._checksums = Checksums(lambda: (stores.blobs for stores in tenants.every()))
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self._announcements = Announcements(tenants.redis, self.runners)

    def stop(self) -> None:
        """End the template and finish what is being hashed."""
        self.runners.stop()
        self._checksums.stop()

    def run(self, tenant: str, job_id: str) -> None:
        """Do the tenant's job that has waited longest; without one, look at the one named.

        A job that was given back is older than most and so is next, although its doorbell is the
        last of many. And as long as any job waits, every doorbell does one: one that came twice
        makes up for another that was lost.

        Args:
            tenant: Whose job it is.
            job_id: The job that the doorbell named.
        """
        stores = self._tenants.stores(tenant)
        has_ended = stores.blobs.has_result(job_id)
        if has_ended:
            # It was answered by an equal job, and may lack digests still.
            self._take(stores, job_id)
        tried = None
        # Whoever was faster took the job out of the line, so the next look finds another one.
        while (waiting := stores.jobs.next_to_run()) is not None and waiting != tried:
            if self._take(stores, waiting):
                return
            tried = waiting
        if not has_ended:
            self._take(stores, job_id)

    def _take(self, stores: Stores, job_id: str) -> bool:
        """Do a job, and say whether it was to be had."""
        with structlog.contextvars.bound_contextvars(tenant=stores.tenant, job_id=job_id):
            published = stores.blobs.read_result(job_id)
            if published is not None:
                _log.info("already_published", outcome=stores.jobs.finish(published, token=None))
                self._checksums.take_up(stores.blobs, job_id)
                return False
            claim = stores.jobs.claim(job_id, self.name)
            _log.info("claim", outcome=claim.outcome, attempt=claim.attempt)
            if claim.outcome in ("exhausted", "ended"):
                publish_end(stores.jobs, stores.blobs, job_id)
            job = stores.jobs.get(job_id)
            if claim.outcome != "claimed" or job is None:
                return False
            outcome = self._attempt(_Held(stores, job, claim.token))
            _log.info("attempt", outcome=outcome.kind, problem=str(outcome.problem or ""))
            self._ring_for_refused(stores)
            return True

    def _ring_for_refused(self, stores: Stores) -> None:
        """Ring for a job whose own doorbell came while its tenant ran as many as it may."""
        if not self._settings.quota_running:
            return
        waiting = stores.jobs.next_to_run()
        if waiting is not None:
            ring(self._celery, stores.tenant, waiting)

    def _attempt(self, held: _Held) -> Outcome:
        lease = Lease(
            held.stores.jobs,
            held.job.id,
            held.token,
            lease_seconds=self._settings.lease_seconds,
            renew_seconds=self._settings.renew_seconds,
            is_cancelled=partial(held.stores.blobs.has_cancel, held.job.id),
        )
        with lease:
            try:
                outcome = self._work(held, lease)
            except Problem as problem:
                outcome = Outcome("failed", problem)
            except _Stopped as stopped:
                outcome = stopped.outcome
            except OSError as error:
                _log.exception("attempt_failed")
                outcome = Outcome("failed", Problem.from_os_error(error))
            except RedisError as error:
                # Nobody here can tell whose the job is by now; what was made stays for whoever
                # takes it next.
                _log.warning("store_lost", error=str(error))
                outcome = Outcome("lost")
            except Exception as error:  # noqa: BLE001 - no job is left running that nobody works on
                _log.exception("attempt_failed")
                unexpected = f"The supervisor raised {type(error).__name__}."
                outcome = Outcome("failed", Problem("internal_error", unexpected))
            self._endings(held).settle(held.job, held.token, outcome)
        return outcome

    def _endings(self, held: _Held) -> Endings:
        return Endings(held.stores, self._celery, self._checksums)

    def _work(self, held: _Held, lease: Lease) -> Outcome:
        if self._take_answer(held):
            return Outcome("done")
        job, blobs = held.job, held.stores.blobs
        work = blobs.work_folder(job.id, held.token)
        digest = job.model.removeprefix("mdl_")
        if blobs.meta("models", digest) is None:
            raise Problem("model_not_found", f"Model {job.model} is no longer stored.")
        datasets = self._datasets(held)
        levels = levels_of(read_levels(self._tenants.redis))
        files = blobs.files("models", digest)
        self._refuse_outside(files)
        check_budget(files, job.recipe, levels)
        order = Order(
            model_folder=str(files),
            work_folder=str(work),
            recipe=job.recipe.model_dump(mode="json"),
            device=self.runners.device,
            idle_bytes=levels.idle_bytes,
            requests_folder=_requests_folder(held),
        )
        budget, compression = job.recipe.budget, job.recipe.compression
        if compression is None or job.recipe.measures:
            return self._look(held, lease, order, datasets)
        stages = stage_orders(order, compression)
        first, *others = making_orders(order, compression, datasets)
        for stage in stages:
            Path(stage.work_folder).mkdir(exist_ok=True)
        runner = self._start_runner(first, budget)
        # After it was started: what comes before, such as the worker's own start, is not the job's.
        limits = self._limits(budget, [order, first, *others])
        outcome = watch(runner, lease, limits, self._drain)
        if outcome.kind == "done":
            outcome = self._do(others, budget, lease, limits)
        if outcome.kind != "done":
            return outcome
        # Whoever slept over its lease finds its scratch taken, which is no fault of the artifact.
        self._go_on(lease)
        # Before anything is verified: what a runner left is checked before it is looked at.
        read_report(work / REPORT_NAME)
        verifying = replace(stages[-1], task="verify")
        go_on = partial(self._go_on, lease)
        with measuring(work / ARTIFACT_NAME, limits.disk_bytes, go_on) as measured:
            # A second process, which knows nothing of the first but what that left on the disk.
            runner = self._start_runner(verifying, budget)
            outcome = watch(runner, lease, limits, self._drain)
            if outcome.kind != "done":
                return outcome
            rows = measured.result()
        report = read_stages(stages)
        if job.recipe.evaluate is not None:
            outcome = self._do(running_orders(order, compression, datasets), budget, lease, limits)
            if outcome.kind != "done":
                return outcome
            has_dataset = job.recipe.evaluate.dataset is not None
            report = report.evaluated(read_quality(work, has_dataset=has_dataset))
            report = with_stages(report, stages)
        return self._answer(held, lease, order, datasets, limits, (report, rows))

    def _answer(
        self,
        held: _Held,
        lease: Lease,
        order: Order,
        datasets: Mapping[str, Path],
        limits: Limits,
        made: Made | None,
    ) -> Outcome:
        """Have a data set run through what was made, where the recipe says so, and deliver."""
        recipe, work = held.job.recipe, Path(order.work_folder)
        outcome = self._do(answering_orders(order, recipe, datasets), recipe.budget, lease, limits)
        if outcome.kind != "done":
            return outcome
        if recipe.infer_step is not None:
            dataset, go_on = datasets[recipe.infer_step.dataset], partial(self._go_on, lease)
            made = take_answers(work, made, dataset, limits.disk_bytes, go_on)
        _require_lease(held)
        if made is not None:
            self._deliver(held, work, *made)
        return outcome

    def _look(self, held: _Held, lease: Lease, order: Order, datasets: dict[str, Path]) -> Outcome:
        """Do what leaves the model as it is."""
        if held.job.recipe.measures:
            return self._measure(held, lease, replace(order, task="measure"))
        limits = self._limits(held.job.recipe.budget, [order])
        return self._answer(held, lease, order, datasets, limits, None)

    def _measure(self, held: _Held, lease: Lease, order: Order) -> Outcome:
        """Keep what recipes would lose of the model, which makes no artifact."""
        job, blobs, budget = held.job, held.stores.blobs, held.job.recipe.budget
        is_known = job.cache != "bypass" and read_sensitivities(blobs, job.model) is not None
        if not is_known:
            runner = self._start_runner(order, budget)
            outcome = watch(runner, lease, self._limits(budget, [order]), self._drain)
            if outcome.kind != "done":
                return outcome
            found = take_measured(Path(order.work_folder), budget)
            keep_sensitivities(blobs, job.model, found)
        _require_lease(held)
        result = JobResult(
            id=job.id,
            state="succeeded",
            attempt=job.attempt,
            cache="hit" if is_known else job.cache or "miss",
            finished_ms=now_ms(),
        )
        self._endings(held).publish(job, held.token, result)
        return Outcome("done")

    def _do(self, orders: Iterable[Order], budget: Budget, lease: Lease, limits: Limits) -> Outcome:
        """Have orders done one after the other, until one is not."""
        outcome = Outcome("done")
        for order in orders:
            outcome = watch(self._start_runner(order, budget), lease, limits, self._drain)
            if outcome.kind != "done":
                break
        return outcome

    def _datasets(self, held: _Held) -> dict[str, Path]:
        """Give the uploaded files that the job's model is run on, by the data sets' ids."""
        recipe, blobs = held.job.recipe, held.stores.blobs
        if recipe.runs_model and self.runners.level == "none":
            raise Problem(
                "sandbox_unavailable",
                "evaluate, calibrate, finetune and infer run a model, which this worker does "
                "outside of a sandbox for nobody.",
            )
        found = {}
        for name in recipe.datasets:
            digest = name.removeprefix("ds_")
            if blobs.meta("datasets", digest) is None:
                raise Problem("dataset_not_found", f"Data set {name} is no longer stored.")
            found[name] = blobs.files("datasets", digest) / "data"
        return found

    def _refuse_outside(self, files: Path) -> None:
        """Refuse a model that is opened by running it, where there is no sandbox to do that in."""
        if is_program(files) and self.runners.level == "none":
            raise Problem(
                "sandbox_unavailable",
                "A .pt2 is opened by torch, which this worker does outside of a sandbox for "
                "nobody.",
            )

    def _take_answer(self, held: _Held) -> bool:
        """End a job as one that equals it ended, where there is one by now."""
        job, token, blobs = held.job, held.token, held.stores.blobs
        spec = blobs.read_spec(job.id)
        found = spec and answer(blobs, spec, link_or_copy, token=token, attempt=job.attempt)
        if not found:
            return False
        _require_lease(held)
        blobs.write_report(job.id, found.report)
        self._endings(held).publish(job, token, found.result)
        return True

    def _go_on(self, lease: Lease) -> None:
        stopped = interruption(lease, self._drain)
        if stopped is not None:
            raise _Stopped(stopped)

    def _limits(self, budget: Budget, orders: Sequence[Order]) -> Limits:
        return Limits(
            runtime_seconds=self._runtime_seconds(budget),
            host_memory_bytes=budget.host_memory,
            work_folder=Path(orders[0].work_folder),
            disk_bytes=most_kept_bytes(orders),
        )

    def _runtime_seconds(self, budget: Budget) -> float:
        most = self._settings.max_runtime_seconds
        return min(budget.runtime or most, most)

    def _start_runner(self, order: Order, budget: Budget) -> Runner:
        return self.runners.start(order, self._runtime_seconds(budget), budget.host_memory)

    def _deliver(self, held: _Held, work: Path, report: Report, rows: list[Row]) -> None:
        job, blobs = held.job, held.stores.blobs
        artifact = seal_artifact(work / ARTIFACT_NAME, _about(job, report), rows)
        blobs.write_report(job.id, report.model_dump(mode="json"))
        self._announcements.tell_inspection(report)
        check_memory(report)
        check_gate(report, job.recipe.gate)
        name = f"artifact-{held.token}"
        (work / ARTIFACT_NAME).rename(blobs.job_folder(job.id) / name)
        result = JobResult(
            id=job.id,
            state="succeeded",
            attempt=job.attempt,
            artifact_folder=name,
            artifact=artifact,
            cache=job.cache or "miss",
            finished_ms=now_ms(),
        )
        self._endings(held).publish(job, held.token, result)
        self._announcements.add(report)


def _requests_folder(held: _Held) -> str | None:
    """Give where a training is asked to end; None where the job has none."""
    is_trained = held.job.recipe.finetune_step is not None
    return str(held.stores.blobs.requests_folder(held.job.id)) if is_trained else None


def _require_lease(held: _Held) -> None:
    renewal = held.stores.jobs.renew(held.job.id, held.token)
    if not renewal.held:
        raise _Stopped(Outcome("lost"))
    if renewal.cancel_requested or held.stores.blobs.has_cancel(held.job.id):
        raise _Stopped(Outcome("cancelled"))


def choose_device(wanted: str) -> Any:  # noqa: ANN401 - Literal["cpu", "cuda"]
    """Decide where runners compute, without importing torch.

    Args:
        wanted: The setting: `auto`, `cpu` or `cuda`.

    Returns:
        `cuda` where it is wanted, or where `auto` finds NVIDIA's driver; else `cpu`.
    """
    if wanted != "auto":
        return wanted
    return "cuda" if Path("/proc/driver/nvidia/version").exists() else "cpu"


def _about(job: Job, report: Report) -> dict[str, Any]:
    about = {
        "model": job.model,
        "recipe": deciding_parts(job.recipe),
        "engine_version": ENGINE_VERSION,
    }
    training = report.training
    if training is not None and training.stopped_by == "request":
        # The recipe alone does not make this artifact.
        about["training"] = {"stopped_by": "request", "steps": training.steps}
    return about
