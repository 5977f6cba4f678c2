"""Cancels at random moments of a job: `python -m benchmarks.cancels`.

The claim: whatever a job is doing, it has ended within seconds of its cancel, by its record, and no
process works on it any more by then.
"""

import random
import statistics
import tempfile
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from safetensors.numpy import save_file

from benchmarks.chaos.programs import children, living
from benchmarks.machine import describe_machine
from benchmarks.page import publish, read_arguments, table
from benchmarks.processes import running_stack
from modelpress import Client

_RECIPE = {
    "steps": [
        {"op": "prune", "sparsity": 0.5, "scope": "global"},
        {"op": "quantize", "scheme": "w8a8"},
    ]
}
_GONE_SECONDS = 5.0


def main() -> None:
    arguments = read_arguments("Cancels at random moments", size="512MiB", rounds=200)
    machine = describe_machine("celery", "redis")
    with tempfile.TemporaryDirectory(prefix="modelpress-cancels-", dir="/tmp") as name:
        folder = Path(name)
        model = folder / "model.safetensors"
        _write(model, arguments.size)
        with running_stack(folder / "data") as stack, Client(stack.url) as client:
            model_id = client.upload_model(model).id
            whole = client.wait(client.submit(model_id, _RECIPE, use_cache=False).id)
            longest = _moment(whole.raw, "finished_at") - _moment(whole.raw, "created_at")
            chance = random.Random(1)
            seconds, ends, left = [], Counter[str](), 0
            for _ in range(arguments.rounds):
                job, took, survivors = _cancel(client, model_id, chance.uniform(0, longest), stack)
                ends[job["state"]] += 1
                left += len(survivors)
                if job["state"] == "cancelled":
                    seconds.append(took)
    ordered = sorted(seconds)
    p99 = ordered[min(len(ordered) - 1, round(0.99 * len(ordered)))]
    row = (
        f"{len(ordered)}",
        f"{statistics.median(ordered):.2f}",
        f"{p99:.2f}",
        f"{ordered[-1]:.2f}",
        str(left),
    )
    head = (
        "cancelled",
        "median s",
        "p99 s",
        "max s",
        f"processes that outlived it by {_GONE_SECONDS:g} s",
    )
    text = (
        f"{machine} A model of {arguments.size / 1e6:,.0f} MB, pruned and quantized in "
        f"{longest:.1f} s; {arguments.rounds} cancels at random moments of it, of which "
        f"{ends['succeeded']} came too late."
    )
    publish(
        arguments.page,
        "cancels",
        f"{text}\n\n{table(('', *head), [('cancel accepted to job ended', *row)])}",
    )


def _cancel(
    client: Client,
    model_id: str,
    after: float,
    stack: Any,
) -> tuple[dict[str, Any], float, list[psutil.Process]]:
    job_id = client.submit(model_id, _RECIPE, use_cache=False).id
    time.sleep(after)
    at_work = _runners(stack.manager.pid)
    client.cancel(job_id)
    accepted = time.time()
    job = client.job(job_id).raw
    while job["state"] in ("queued", "running"):
        time.sleep(0.01)
        job = client.job(job_id).raw
    ended = _moment(job, "finished_at")
    return job, max(0.0, ended - accepted), living(at_work, _GONE_SECONDS)


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
