"""Cancels at random moments of a job: `python -m benchmarks.cancels`.

The claim: whatever a job is doing, it has ended within seconds of its cancel, by its record, and no
process works on it any more by then.
"""

import random
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from safetensors.numpy import save_file

from benchmarks.chaos.programs import children, living
from benchmarks.machine import describe_machine
from benchmarks.page import p99, publish, read_arguments, table
from benchmarks.processes import running_stack
from modelpress import Client

_RECIPE = {
    "steps": [
        {"op": "prune", "sparsity": 0.5, "scope": "global"},
        {"op": "quantize", "scheme": "w8a8"},
    ]
}
_GONE_SECONDS = 5.0


@dataclass(frozen=True)
class Cancel:
    """One cancel.

    Attributes:
        state: How the job ended.
        seconds: From the answer to the cancel to the job's end; 0 where that came first.
        survivors: How many of the processes that worked on it lived much longer than that.
    """

    state: str
    seconds: float
    survivors: int


def main() -> None:
    arguments = read_arguments("Cancels at random moments", size="512MiB", rounds=200)
    machine = describe_machine("celery", "redis")
    with tempfile.TemporaryDirectory(prefix="modelpress-cancels-", dir="/tmp") as name:
        folder = Path(name)
        model = folder / "model.safetensors"
        _write(model, arguments.size)
        with running_stack(folder / "data") as stack, Client(stack.url) as client:
            model_id = client.upload_model(model).id
            # The first job is what makes the worker warm.
            longest = [_whole_seconds(client, model_id) for _ in range(2)][-1]
            chance = random.Random(1)
            cancels = [
                cancel(client, model_id, chance.uniform(0, longest), stack.manager.pid)
                for _ in range(arguments.rounds)
            ]
    text = (
        f"{machine} A model of {arguments.size / 1e6:,.0f} MB, pruned and quantized in "
        f"{longest:.1f} s, cancelled {len(cancels)} times at a random moment of that."
    )
    publish(arguments.page, "cancels", f"{text}\n\n{describe(cancels)}")


def cancel(client: Client, model_id: str, after: float, manager: int) -> Cancel:
    """Submit a job, and cancel it a while later.

    Args:
        client: Speaks to the service.
        model_id: Of which the job is.
        after: How long, in seconds.
        manager: The process that started all others.

    Returns:
        What came of it.
    """
    job_id = client.submit(model_id, _RECIPE, use_cache=False).id
    time.sleep(after)
    at_work = _runners(manager)
    client.cancel(job_id)
    accepted = time.time()
    job = client.job(job_id).raw
    while job["state"] in ("queued", "running"):
        time.sleep(0.01)
        job = client.job(job_id).raw
    seconds = max(0.0, _moment(job, "finished_at") - accepted)
    return Cancel(job["state"], seconds, len(living(at_work, _GONE_SECONDS)))


def describe(cancels: list[Cancel]) -> str:
    """Write the table of the page."""
    seconds = [one.seconds for one in cancels]
    states = Counter(one.state for one in cancels)
    rows = [
        ("cancelled", f"{states['cancelled']}"),
        ("had succeeded before", f"{states['succeeded']}"),
        (
            "cancel accepted to job ended, s: median, p99, max",
            f"{statistics.median(seconds):.2f}, {p99(seconds):.2f}, {max(seconds):.2f}",
        ),
        (
            f"processes that lived {_GONE_SECONDS:g} s longer",
            str(sum(one.survivors for one in cancels)),
        ),
    ]
    return table(("what came of it", ""), rows)


def _whole_seconds(client: Client, model_id: str) -> float:
    job = client.wait(client.submit(model_id, _RECIPE, use_cache=False).id)
    return _moment(job.raw, "finished_at") - _moment(job.raw, "created_at")


def _runners(manager: int) -> list[psutil.Process]:
    """Give the processes in sandboxes: what agents have started, which templates have."""
    found = []
    for process in psutil.Process(manager).children(recursive=True):
        try:
            if "worker.template" in process.cmdline() and process.parent() is not None:
                found += [
                    psutil.Process(runner)
                    for agent in children(process.pid)
                    for runner in children(agent)
                ]
        except psutil.NoSuchProcess:
            continue
    return found


def _write(path: Path, nbytes: int) -> None:
    rng = np.random.default_rng(0)
    layers = max(1, nbytes // (4 * 4096 * 4096))
    shape = (4096, 4096)
    save_file(
        {f"{i}.weight": rng.standard_normal(shape, dtype=np.float32) for i in range(layers)}, path
    )


def _moment(job: dict[str, Any], name: str) -> float:
    return datetime.fromisoformat(job[name]).timestamp()


if __name__ == "__main__":
    main()
