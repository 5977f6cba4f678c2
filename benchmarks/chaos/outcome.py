"""What a run came to: as complaints where there are any, and as the table of the page."""

import json
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.chaos.faults import Faults
from benchmarks.chaos.ledger import Ledger
from benchmarks.chaos.plan import DOORBELL_SHARE, Plan
from benchmarks.chaos.recoveries import recovery_seconds
from benchmarks.chaos.stack import LEASE_SECONDS, Stack
from benchmarks.chaos.verdict import Verdict
from benchmarks.page import p99, table

#: Until another worker has a killed one's job, which cannot be before its lease has run out.
RECOVERY_SECONDS = 40.0
CANCEL_SECONDS = 5.0

_NAMES = {
    "runner": "SIGKILL of a runner",
    "worker": "SIGKILL of a worker",
    "supervisor": "SIGKILL of a worker's supervisor",
    "template": "SIGKILL of a runner's template",
    "redis": "SIGKILL of Redis, away for 0.1 to 2.5 s",
    "wipe": "FLUSHALL",
    "loss": "SIGKILL of Redis, its append-only file removed",
    "zombie": "SIGSTOP of a supervisor at work, SIGCONT after its lease",
    "service": "SIGKILL of the service",
    "submit": "SIGKILL of the service in the middle of a submit",
    "clock": "Redis's clock set an hour forward or back, and right again after a lease",
}


@dataclass(frozen=True)
class Outcome:
    """A run that is over.

    Attributes:
        plan: What was to happen.
        workers: How many there were.
        seconds: From the first start to the last end.
        ledger: What clients were told.
        faults: What was done.
        stack: What it was done to; it has ended.
        verdict: What was found in the end.
    """

    plan: Plan
    workers: int
    seconds: float
    ledger: Ledger
    faults: Faults
    stack: Stack
    verdict: Verdict


def complaints(outcome: Outcome) -> list[str]:
    """Give everything that must not be, in words; nothing where all is well."""
    verdict, ledger = outcome.verdict, outcome.ledger
    found = [*ledger.changed, *ledger.broken]
    found += [f"{name} {getattr(verdict, name)}" for name in _BAD if getattr(verdict, name)]
    if len(ledger.accepted) != len(outcome.plan.wishes):
        found.append(f"{len(ledger.accepted)} of {len(outcome.plan.wishes)} jobs were accepted")
    for what, taken, most in (
        ("killed workers' jobs waited", _recoveries(outcome), RECOVERY_SECONDS),
        ("cancels took", ledger.cancel_seconds, CANCEL_SECONDS),
    ):
        if taken and (found_p99 := p99(taken)) > most:
            found.append(
                f"{what} {found_p99:.1f} s (p99 of {len(taken)}); at most {most:g} s is the aim"
            )
    return found


_BAD = ("lost", "stuck", "orphans", "processes")


def describe(outcome: Outcome) -> str:
    """Write the text and the tables of the page."""
    done = Counter(fault.kind for _, fault in outcome.faults.done)
    planned = Counter(fault.kind for fault in outcome.plan.faults)
    bells = outcome.stack.doorbells
    counts = outcome.ledger.counts
    rows = [(name, f"{done[kind]:,} of {planned[kind]:,}") for kind, name in _NAMES.items()]
    rows += [
        (f"doorbells lost ({DOORBELL_SHARE:.0%})", f"{bells.dropped:,}"),
        (f"doorbells doubled ({DOORBELL_SHARE:.0%})", f"{bells.doubled:,}"),
        ("uploads cut", f"{counts['uploads cut']:,}"),
        ("downloads cut and gone on with", f"{counts['downloads cut']:,}"),
        ("cancels at a random moment", f"{len(outcome.ledger.cancel_seconds):,}"),
        ("requests that clients had to repeat", f"{counts['requests repeated']:,}"),
    ]
    return (
        f"Seed {outcome.plan.seed}: {len(outcome.plan.wishes):,} jobs, {outcome.workers} workers, "
        f"a lease of {LEASE_SECONDS:g} s, {outcome.seconds / 60:.1f} minutes.\n\n"
        f"{table(('what was done to it', 'times'), rows)}\n\n"
        f"{table(('what came of it', ''), _results(outcome))}"
    )


def _results(outcome: Outcome) -> Iterator[tuple[str, str]]:
    verdict, ledger = outcome.verdict, outcome.ledger
    yield "accepted jobs", f"{len(ledger.accepted):,}"
    for state, times in sorted(verdict.states.items()):
        yield f"… {state}", f"{times:,}"
    yield "**lost**: no end, or not known any more", f"**{len(verdict.lost):,}**"
    yield "**doubled**: another end than was seen before", f"**{len(ledger.changed):,}**"
    yield "**stuck**", f"**{len(verdict.stuck):,}**"
    yield "artifacts downloaded and equal to the reference", f"{counts_of(outcome):,}"
    yield "**orphan bytes** after the sweep", f"**{verdict.orphan_bytes:,}**"
    yield "processes left", f"{len(verdict.processes):,}"
    yield "late commits of zombies refused", f"{refused(outcome):,}"
    yield "jobs made twice, as the first submit was cut off", f"{verdict.unknown:,}"
    yield "killed worker's job claimed again, s: median, p99", _pair(_recoveries(outcome))
    yield "cancel accepted to job ended, s: median, p99", _pair(ledger.cancel_seconds)
    known = ledger.cancel_known_seconds
    yield "cancel asked for to end known, outages included, s: median, p99", _pair(known)


def counts_of(outcome: Outcome) -> int:
    """Count the artifacts that were compared."""
    return outcome.ledger.counts["artifacts compared"]


def refused(outcome: Outcome) -> int:
    """Count the zombies that woke up and were told that their job is another's, by their logs."""
    ended = Counter()
    for worker in outcome.stack.workers:
        for line in worker.log.read_text(errors="replace").splitlines():
            if '"event": "attempt"' in line and '"outcome": "lost"' in line:
                ended[json.loads(line)["job_id"]] += 1
    return sum(hit.kind == "zombie" and ended[hit.job_id] > 0 for hit in outcome.faults.hits)


def _recoveries(outcome: Outcome) -> list[float]:
    killed = [hit for hit in outcome.faults.hits if hit.kind != "zombie"]
    logs = [worker.log for worker in outcome.stack.workers]
    return recovery_seconds(killed, outcome.ledger.ends, logs)


def _pair(seconds: Sequence[float]) -> str:
    if not seconds:
        return "none"
    return f"{statistics.median(seconds):.2f}, {p99(seconds):.2f} ({len(seconds)})"
