"""Delivery under fire: `python -m benchmarks.chaos --seed 1 --jobs 2000`.

The claim: whatever is killed, stopped or wiped, every accepted job ends, once, with the bytes of a
job that was left in peace, and nothing stays behind. Redis, the service and three workers run jobs
while the seed's faults happen to them.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.chaos.arguments import read_arguments
from benchmarks.chaos.clients import Crowd
from benchmarks.chaos.faults import Faults
from benchmarks.chaos.ledger import Ledger
from benchmarks.chaos.materials import Materials
from benchmarks.chaos.outcome import Outcome, complaints, describe
from benchmarks.chaos.plan import make_plan
from benchmarks.chaos.stack import running
from benchmarks.chaos.verdict import Verdict, judge_disk, judge_jobs, judge_processes
from benchmarks.machine import describe_machine
from benchmarks.page import publish

_TAIL_LINES = 40


def main() -> int:
    """Run, judge and publish.

    Returns:
        1 where anything was found that must not be, else 0.
    """
    arguments = read_arguments("Delivery under fire")
    machine = describe_machine("celery", "redis", "gunicorn")
    # A socket's path is limited to about 100 bytes.
    with tempfile.TemporaryDirectory(prefix="modelpress-chaos-", dir="/tmp") as name:
        outcome = run(Path(name), arguments.seed, arguments.jobs, arguments.workers)
        wrong = complaints(outcome)
        if wrong:
            print(*wrong, _story(outcome, Path(name) / "logs"), sep="\n", file=sys.stderr)
        publish(arguments.page, "chaos", f"{machine} {describe(outcome)}")
    return 1 if wrong else 0


def run(folder: Path, seed: int, jobs: int, workers: int) -> Outcome:
    """Run jobs under fire.

    Args:
        folder: Where everything lies.
        seed: Of all that is drawn.
        jobs: How many.
        workers: How many workers.

    Returns:
        What came of it.
    """
    plan = make_plan(seed, jobs)
    ledger, verdict = Ledger(), Verdict()
    materials = Materials(folder / "models", seed)
    started = time.monotonic()
    with running(folder, workers, seed) as stack:
        crowd = Crowd(stack.url, plan, materials, ledger)
        faults = Faults(stack, plan, ledger)
        crowd.start()
        faults.start()
        # A wish takes seconds; one that is stuck is told by its client long before.
        if not crowd.join(300 + jobs):
            ledger.complain("clients still wait")
        faults.stop()
        seconds = time.monotonic() - started
        judge_jobs(stack, ledger, verdict)
    judge_processes(verdict)
    judge_disk(stack.data, verdict)
    return Outcome(plan, workers, seconds, ledger, faults, stack, verdict)


def _story(outcome: Outcome, logs: Path) -> str:
    """Tell what whoever looks for the fault needs: seed, schedule, and how the logs end."""
    schedule = [
        f"{time.strftime('%H:%M:%S', time.gmtime(at))} {fault}" for at, fault in outcome.faults.done
    ]
    tails = [
        f"--- {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-_TAIL_LINES:])
        for log in sorted(logs.iterdir())
    ]
    counts = json.dumps(outcome.ledger.counts)
    return "\n".join([f"seed {outcome.plan.seed}", *schedule, counts, *tails])


if __name__ == "__main__":
    sys.exit(main())
