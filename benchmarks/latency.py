"""How long a small job takes, and a poll under load: `python -m benchmarks.latency`.

The claim: on a warm worker a small job takes a fraction of a second, of which a few milliseconds
pass before its end is known; and dozens of clients can poll at once.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import datetime
from itertools import count
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx
import yaml

from benchmarks.machine import describe_machine, describe_program
from benchmarks.nginx import running_nginx
from benchmarks.page import publish, read_arguments, table
from benchmarks.polling import Polls, poll
from benchmarks.processes import running_stack
from modelpress import Client, Job

ROOT = Path(__file__).parents[1]
_CLIENTS = (1, 8, 32)
# Long enough for thousands of polls, short enough for three rounds of everything in two minutes.
_LONGEST_POLLING_SECONDS = 3


@dataclass(frozen=True)
class Times:
    """One job, in milliseconds.

    Attributes:
        total: From the submit's first byte to the client's knowing that it succeeded.
        submit: Until the service had answered 202.
        queue: From the record's creation to the claim, by the record.
        run: From the claim to the end, by the record.
        notice: From the end, by the record, to the client's knowing.
    """

    total: float
    submit: float
    queue: float
    run: float
    notice: float


def main() -> None:
    arguments = read_arguments("A small job, and a poll under load", size="", rounds=50)
    machine = describe_machine("gunicorn", "flask", "celery", "redis", "httpx")
    with tempfile.TemporaryDirectory(prefix="modelpress-latency-") as name:
        folder = Path(name)
        model = folder / "net.safetensors"
        maker = ROOT / "examples" / "make_two_layer_net.py"
        subprocess.run([sys.executable, maker, model], check=True, stdout=subprocess.DEVNULL)
        with running_stack(folder / "data") as stack, Client(stack.url) as client:
            json_times, form_times, job = run_jobs(client, stack.url, model, arguments.rounds)
            with running_nginx(folder / "nginx") as nginx:
                seconds = min(_LONGEST_POLLING_SECONDS, arguments.rounds)
                polls = poll(stack.url, job.id, nginx, _CLIENTS, seconds)
    publish(arguments.page, "latency", _latency_text(machine, json_times, form_times))
    programs = f"{describe_program('wrk', '-v')}, {describe_program('nginx', '-v')}"
    publish(arguments.page, "polls", _polls_text(polls, programs, seconds))


def run_jobs(
    client: Client, url: str, model: Path, rounds: int
) -> tuple[list[Times], list[Times], Job]:
    """Run jobs one after another, in turn by JSON and as one form with the model in it.

    Each has a seed of its own, so that none can be answered from an earlier one.

    Returns:
        The times of both kinds, and the last job.
    """
    recipe = yaml.safe_load((ROOT / "examples" / "recipes" / "tutorial.yaml").read_text())
    model_id = client.upload_model(model).id
    seeds = count()

    def by_json() -> str:
        return client.submit(model_id, _seeded(recipe, next(seeds))).id

    with httpx.Client(base_url=url, timeout=60) as plain:

        def by_form() -> str:
            spec = yaml.safe_dump(_seeded(recipe, next(seeds)))
            with model.open("rb") as file:
                answer = plain.post("/jobs", files={"model": file, "spec": ("recipe.yaml", spec)})
            return str(answer.raise_for_status().json()["id"])

        _timed(client, by_json)  # The first job is what makes the worker warm.
        json_times, form_times = [], []
        for _ in range(rounds):
            times, _ = _timed(client, by_json)
            json_times.append(times)
            times, job = _timed(client, by_form)
            form_times.append(times)
    return json_times, form_times, job


def _timed(client: Client, submit: Callable[[], str]) -> tuple[Times, Job]:
    # Wall clocks, because the record's times are such; all are this machine's.
    began = time.time()
    job_id = submit()
    submitted = time.time()
    job = client.wait(job_id)
    known = time.time()
    created, started, finished = (
        datetime.fromisoformat(job.raw[name]).timestamp()
        for name in ("created_at", "started_at", "finished_at")
    )
    seconds = (known - began, submitted - began, started - created, finished - started)
    return Times(*(1000 * value for value in (*seconds, known - finished))), job


def _seeded(recipe: dict[str, Any], seed: int) -> dict[str, Any]:
    prune, *others = recipe["steps"]
    return {**recipe, "steps": [{**prune, "seed": seed}, *others]}


def _latency_text(machine: str, json_times: list[Times], form_times: list[Times]) -> str:
    rows = []
    kinds = {"POST /jobs, JSON": json_times, "POST /jobs, one form": form_times}
    for kind, times in kinds.items():
        for field in fields(Times):
            values = [getattr(one, field.name) for one in times]
            row = f"{kind}: **total**" if field.name == "total" else f"… {field.name}"
            p90 = quantiles(values, n=10, method="inclusive")[-1] if len(values) > 1 else values[0]
            rows.append((row, f"{median(values):.1f}", f"{p90:.1f}", f"{max(values):.1f}"))
    head = ("milliseconds", "median", "p90", "max")
    return f"{machine} {len(json_times)} jobs of each kind, in turn.\n\n{table(head, rows)}"


def _polls_text(polls: list[Polls], programs: str, seconds: int) -> str:
    note = f"Load from {programs}; {seconds} s for each row, after the jobs above."
    if not polls:
        return f"{note}\n\nwrk is not installed, so there is no table."
    rows = [
        (p.what, str(p.clients), f"{p.per_second:,.0f}", f"{p.p50_ms:.1f}", f"{p.p99_ms:.1f}")
        for p in polls
    ]
    head = ("request", "clients", "per second", "p50 ms", "p99 ms")
    return f"{note}\n\n{table(head, rows)}"


if __name__ == "__main__":
    main()
