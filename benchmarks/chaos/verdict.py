"""What must be true in the end, whatever was done: looked at through the API and on the disk."""

import json
import os
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from redis import Redis

from benchmarks.chaos.ledger import Ledger, end_of
from benchmarks.chaos.programs import living
from benchmarks.chaos.stack import Stack
from jobs.blobs import CANCEL_NAME, RESULT_NAME, SHA256_NAME, BlobStore
from jobs.sweeping import sweep
from jobs.tenants import DEFAULT_TENANT
from modelpress import Client
from modelpress.backoff import Backoff
from modelpress.values import Job

#: Longer than a reaper needs to look at everything: then nothing is still on its way.
_SETTLE_SECONDS = 150.0
_LOOK_SECONDS = 0.5
_LAST_SECONDS = 10.0
_AGED_SECONDS = 2 * 86_400
_OWN_FILES = frozenset({"spec.json", RESULT_NAME, "report.json", SHA256_NAME, CANCEL_NAME})
_BACKOFF = Backoff(attempts=20, first_seconds=0.2, cap_seconds=2.0)


@dataclass
class Verdict:
    """What was found in the end.

    Attributes:
        lost: Accepted jobs that have no end, or that nobody knows any more.
        stuck: Jobs that had not ended long after everything was repaired.
        unknown: Jobs that no client was told of: their submit was cut off and repeated.
        states: How many jobs ended in which state, and failed for what.
        orphans: Paths that no job and no model owns, after the sweep.
        orphan_bytes: Their size.
        processes: What still ran after everything was told to end.
    """

    lost: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    unknown: int = 0
    states: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    orphans: list[str] = field(default_factory=list)
    orphan_bytes: int = 0
    processes: list[str] = field(default_factory=list)


def judge_jobs(stack: Stack, ledger: Ledger, verdict: Verdict) -> None:
    """Look at every job, wipe Redis once more, and look at every job again.

    Args:
        stack: Runs, and is left in peace by now.
        ledger: What clients were told; it hears of every end that is no longer what it was.
        verdict: Is told what was found.
    """
    with Client(stack.url, backoff=_BACKOFF) as client:
        jobs = _settled(client, verdict)
        for job in jobs.values():
            failure = job.raw["failure"]
            verdict.states[f"failed: {failure['code']}" if failure else job.state] += 1
        verdict.unknown = len(jobs.keys() - ledger.accepted.keys())
        _compare(jobs, ledger, verdict)
        _check_digests(jobs, ledger)
        _wait_for_results(BlobStore(stack.data, DEFAULT_TENANT), set(jobs))
        with Redis.from_url(stack.redis_url) as redis:
            redis.flushall()
        again = _settled(client, verdict, at_least=len(jobs))
        _compare(again, ledger, verdict)


def judge_disk(data: Path, verdict: Verdict) -> None:
    """Sweep the data folder as if two days had passed, and see what is left that nobody owns.

    Args:
        data: The data folder; nothing runs on it any more.
        verdict: Is told what was found.
    """
    past = time.time() - _AGED_SECONDS
    for path in (data, *data.rglob("*")):
        os.utime(path, (past, past), follow_symlinks=False)
    blobs = BlobStore(data, DEFAULT_TENANT)
    sweep(blobs)
    orphans = list((blobs.root / "staging").iterdir())
    used_models = set()
    for folder in (blobs.root / "jobs").iterdir():
        spec, result = blobs.read_spec(folder.name), blobs.read_result(folder.name)
        if spec is None or result is None:
            orphans.append(folder)
            continue
        used_models.add(spec.model.removeprefix("mdl_"))
        owned = _OWN_FILES | {result.artifact_folder}
        orphans += [path for path in folder.iterdir() if path.name not in owned]
    orphans += [path for path in (blobs.root / "models").iterdir() if path.name not in used_models]
    verdict.orphans = [str(path.relative_to(data)) for path in orphans]
    verdict.orphan_bytes = sum(map(_bytes_of, orphans))


def judge_processes(verdict: Verdict) -> None:
    """See whether anything still runs that was started."""
    children = psutil.Process().children(recursive=True)
    verdict.processes = [str(process) for process in living(children, _LAST_SECONDS)]


def _settled(client: Client, verdict: Verdict, at_least: int = 0) -> dict[str, Job]:
    """Wait until no job is open, and give all jobs."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while True:
        jobs = {job.id: job for job in client.jobs(page_size=200)}
        open_ids = [job.id for job in jobs.values() if end_of(job.raw) is None]
        if not open_ids and len(jobs) >= at_least:
            return jobs
        if time.monotonic() > deadline:
            verdict.stuck += open_ids
            return jobs
        time.sleep(_LOOK_SECONDS)


def _compare(jobs: dict[str, Job], ledger: Ledger, verdict: Verdict) -> None:
    for job_id in ledger.accepted:
        if job_id not in jobs or ledger.see(jobs[job_id].raw) is None:
            verdict.lost.append(job_id)


def _check_digests(jobs: dict[str, Job], ledger: Ledger) -> None:
    """See that jobs of the same model and recipe have the same artifact, the manifest included."""
    digests: dict[str, set[str]] = defaultdict(set)
    for job in jobs.values():
        if job.state == "succeeded":
            key = json.dumps([job.model, job.recipe], sort_keys=True)
            digests[key].add(job.raw["artifact"]["digest"])
    for key, found in digests.items():
        if len(found) > 1:
            ledger.complain(f"{key} has {len(found)} different artifacts")


def _wait_for_results(blobs: BlobStore, job_ids: set[str]) -> None:
    """Wait until every end is on the disk too; who wrote it may have been killed before."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while time.monotonic() < deadline:
        job_ids = {job_id for job_id in job_ids if not blobs.has_result(job_id)}
        if not job_ids:
            return
        time.sleep(_LOOK_SECONDS)
    raise TimeoutError(f"{len(job_ids)} ends are not on the disk: {sorted(job_ids)[:3]}")


def _bytes_of(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
