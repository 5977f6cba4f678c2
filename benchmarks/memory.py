"""The memory and time of a large job beside `cp -r`: `python -m benchmarks.memory`.

The claim: the runner's memory does not grow with the checkpoint.
"""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from benchmarks.checkpoints import llama_of_size, write_llama
from benchmarks.finished import run_job
from benchmarks.machine import describe_machine
from benchmarks.page import publish, read_arguments, spread, table
from benchmarks.processes import running_stack
from modelpress import Client

_QUANTIZE = {"op": "quantize", "scheme": "w8a16"}
RECIPES: dict[str, dict[str, Any]] = {
    "quantize w8a16": {"steps": [_QUANTIZE]},
    "prune 50 %, quantize w8a16": {
        "steps": [{"op": "prune", "method": "magnitude", "sparsity": 0.5}, _QUANTIZE]
    },
}
_HEAD = (
    "what", "model MB", "artifact MB", "seconds", "model MB/s", "idle MB", "peak MB", "added MB",
    "planned MB", "held MB",
)  # fmt: skip


@dataclass(frozen=True)
class Taken:
    """What one job or copy took.

    Attributes:
        what: The row.
        nbytes: Of the checkpoint.
        seconds: From claim to end, by the job's record: compressing, hashing and publishing.
        report: The job's report; None for a copy.
    """

    what: str
    nbytes: int
    seconds: float
    report: dict[str, Any] | None = None


def main() -> None:
    arguments = read_arguments("Memory of a large job, beside cp -r", size="2GB", rounds=3)
    machine = describe_machine("torch", "numba", "safetensors")
    with tempfile.TemporaryDirectory(prefix="modelpress-memory-") as name:
        taken = measure_sizes(Path(name), (arguments.size // 4, arguments.size), arguments.rounds)
    text = (
        f"{machine} A Llama in bfloat16 in two sizes, in the page cache; {arguments.rounds} "
        "rounds, interleaved; median (min..max). Idle, peak and added are the runner's anonymous "
        "memory, planned is the resident peak predicted for the whole job and held what it "
        "was, all from the job's report. `cp -r` is timed as it is, and until all is on the disk, "
        "as a job's artifact is when the job has succeeded."
    )
    publish(arguments.page, "memory", f"{text}\n\n{memory_table(taken)}")


def measure_sizes(folder: Path, sizes: Iterable[int], rounds: int) -> list[Taken]:
    """Take rounds of a copy and each recipe, for each size.

    Args:
        folder: An empty folder.
        sizes: About how large the checkpoints are, in bytes.
        rounds: How many.

    Returns:
        Everything, in the order of the rows.
    """
    taken = []
    with running_stack(folder / "data") as stack, Client(stack.url) as client:
        for size in sizes:
            model = folder / f"llama-{size}"
            write_llama(model, llama_of_size(size))
            nbytes = sum(path.stat().st_size for path in model.iterdir())
            model_id = client.upload_model(model).id
            for _ in range(rounds):
                taken += _copy(model, folder / "copy", nbytes)
                taken += [_compress(client, model_id, what, nbytes) for what in RECIPES]
            httpx.delete(f"{stack.url}/models/{model_id}", timeout=60).raise_for_status()
            shutil.rmtree(model)
    return taken


def memory_table(taken: list[Taken]) -> str:
    """Write the table: a row for each thing and size."""
    groups: dict[tuple[str, int], list[Taken]] = {}
    for one in taken:
        groups.setdefault((one.what, one.nbytes), []).append(one)
    rows = []
    for (what, nbytes), group in groups.items():
        times = spread((one.seconds for one in group), 2)
        speeds = spread(nbytes / 1e6 / one.seconds for one in group)
        reports = [one.report for one in group if one.report]
        artifact = f"{reports[0]['artifact']['bytes'] / 1e6:,.0f}" if reports else ""
        rows.append(
            (what, f"{nbytes / 1e6:,.0f}", artifact, times, speeds, *_memory_cells(reports))
        )
    return table(_HEAD, rows)


def _memory_cells(reports: list[dict[str, Any]]) -> tuple[str, ...]:
    if not reports:
        return ()
    memories = [report["memory"] for report in reports]
    return (
        spread(memory["idle"]["anonymous_peak_bytes"] / 1e6 for memory in memories),
        spread(memory["peak"]["anonymous_peak_bytes"] / 1e6 for memory in memories),
        spread((memory["added_anonymous_bytes"] / 1e6 for memory in memories), 1),
        spread(memory["predicted_peak_bytes"] / 1e6 for memory in memories),
        spread(memory["measured_peak_bytes"] / 1e6 for memory in memories),
    )


def _copy(model: Path, target: Path, nbytes: int) -> list[Taken]:
    os.sync()
    began = time.perf_counter()
    subprocess.run(["cp", "-r", model, target], check=True)
    copied = time.perf_counter()
    subprocess.run(["sync", *target.iterdir()], check=True)
    flushed = time.perf_counter()
    shutil.rmtree(target)
    return [
        Taken("`cp -r`", nbytes, copied - began),
        Taken("`cp -r` + fsync", nbytes, flushed - began),
    ]


def _compress(client: Client, model_id: str, what: str, nbytes: int) -> Taken:
    os.sync()
    job = run_job(client, model_id, RECIPES[what])
    began, ended = (datetime.fromisoformat(job.raw[name]) for name in ("started_at", "finished_at"))
    report = client.report(job.id)
    client.delete(job.id)
    return Taken(what, nbytes, (ended - began).total_seconds(), report)


if __name__ == "__main__":
    main()
