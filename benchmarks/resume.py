"""Jobs that are killed and gone on with: `python -m benchmarks.resume`.

The claims: after kill -9 at any point the next attempt ends with the bytes of a job that was not
killed, and reads again no more than what lay behind the last line of the journal; and the journal
costs nothing worth mentioning.
"""

import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from benchmarks.checkpoints import llama_of_size, write_llama
from benchmarks.machine import describe_machine
from benchmarks.page import publish, read_arguments, table
from engine.pipeline import compress
from jobs.recipe import parse_recipe
from jobs.report import Report

_W8A16, _W8A8 = ({"op": "quantize", "scheme": scheme} for scheme in ("w8a16", "w8a8"))
RECIPES: dict[str, list[dict[str, Any]]] = {
    "w8a16": [_W8A16],
    "w8a8, 50 % per tensor": [{"op": "prune", "sparsity": 0.5}, _W8A8],
    "w8a16, 2:4": [{"op": "prune", "structure": "2:4"}, _W8A16],
    "w8a16, 50 % global": [{"op": "prune", "sparsity": 0.5, "scope": "global"}, _W8A16],
}
_JOURNAL_ROUNDS = 15
_HEAD = ("recipe", "killed at", "had read MB", "skipped MB", "read again MB", "seconds", "digest")


@dataclass(frozen=True)
class Attempt:
    """What one process did.

    Attributes:
        nbytes: What it read, whether from the disk or from the page cache.
        seconds: How long it took.
        cpu_seconds: User and system time of that.
        report: The job's report; None where it was killed.
    """

    nbytes: int
    seconds: float
    cpu_seconds: float
    report: Report | None


@dataclass(frozen=True)
class Resumed:
    """A job that was killed once.

    Attributes:
        recipe: Its recipe's name.
        whole: The same job, not killed.
        killed: The first attempt.
        last: The second.
        is_equal: Whether the artifact has the digest of that other job's.
    """

    recipe: str
    whole: Attempt
    killed: Attempt
    last: Attempt
    is_equal: bool

    @property
    def again_bytes(self) -> int:
        """How much was read a second time."""
        return self.killed.nbytes + self.last.nbytes - self.whole.nbytes

    @property
    def skipped_bytes(self) -> int:
        """How much the second attempt found done."""
        resumed = self.last.report.resumed if self.last.report else None
        return resumed.bytes_skipped if resumed else 0


def main() -> None:
    arguments = read_arguments("Jobs that are killed", size="2.2GB", rounds=20)
    machine = describe_machine("numba", "safetensors")
    with tempfile.TemporaryDirectory(prefix="modelpress-resume-") as name:
        folder = Path(name)
        write_llama(folder / "model", llama_of_size(arguments.size))
        nbytes = sum(path.stat().st_size for path in (folder / "model").iterdir())
        jobs = list(kill_and_resume(folder, arguments.rounds))
        cost = journal_cost(folder)
    text = (
        f"{machine} A Llama in bfloat16 of {nbytes / 1e6:,.0f} MB, in the page cache. "
        f"{len(jobs)} jobs, each killed with SIGKILL when it had read a share of its bytes that "
        "was drawn at random. Read again is what both attempts read together less what a job reads "
        "that is not killed, by the kernel's count; seconds are the second attempt's beside those "
        f"of such a job.\n\n{resume_table(jobs)}\n\n{cost}"
    )
    publish(arguments.page, "resume", text)


def kill_and_resume(folder: Path, rounds: int) -> Iterator[Resumed]:
    """Kill jobs at random points and have them go on, the recipes in turn.

    Args:
        folder: Where the model is.
        rounds: How many jobs to kill.

    Yields:
        What became of each.
    """
    chance = random.Random(0)
    wholes: dict[str, tuple[Attempt, str]] = {}
    for number in range(rounds):
        recipe = list(RECIPES)[number % len(RECIPES)]
        if recipe not in wholes:
            whole = attempt(folder, recipe)
            wholes[recipe] = whole, _take_digest(folder)
        whole, digest = wholes[recipe]
        killed = attempt(folder, recipe, kill_at=round(chance.random() * whole.nbytes))
        last = attempt(folder, recipe)
        yield Resumed(recipe, whole, killed, last, _take_digest(folder) == digest)


def journal_cost(folder: Path) -> str:
    """Tell what a journal adds to a job, in words."""
    taken: dict[bool, list[Attempt]] = {True: [], False: []}
    lines = nbytes = 0
    for number in range(2 * _JOURNAL_ROUNDS):
        has_journal = number % 2 == 0
        taken[has_journal].append(attempt(folder, "w8a16", has_journal=has_journal))
        if has_journal:
            journal = (folder / "work" / "journal").read_bytes()
            lines, nbytes = journal.count(b"\n"), len(journal)
        shutil.rmtree(folder / "work")
    wall, cpu = (
        [min(getattr(one, name) for one in taken[kind]) for kind in (True, False)]
        for name in ("seconds", "cpu_seconds")
    )
    return (
        f"A whole job's journal has {lines} lines, {nbytes / 1e3:.0f} kB. With it the job took "
        f"{wall[0]:.2f} s and {cpu[0]:.2f} s of the processor, without it {wall[1]:.2f} s and "
        f"{cpu[1]:.2f} s: the least of {_JOURNAL_ROUNDS} rounds each, interleaved."
    )


def attempt(
    folder: Path, recipe: str, *, kill_at: int | None = None, has_journal: bool = True
) -> Attempt:
    """Work on a job in a process of its own, from where an attempt before left it.

    Args:
        folder: Where the model is, and the folder to work in.
        recipe: The recipe's name.
        kill_at: How many bytes it may have read before it is killed.
        has_journal: Whether it keeps one.

    Returns:
        What it did.
    """
    work = folder / "work"
    (work / "artifact").mkdir(parents=True, exist_ok=True)
    os.sync()
    started = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        _compress(folder / "model", work, recipe, has_journal=has_journal)
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if kill_at is not None and _bytes_read(pid) >= kill_at:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.001)
    # The dead count for nothing any more, but until they are waited for they are listed.
    nbytes = _bytes_read(pid)
    _, status, usage = os.wait4(pid, 0)
    seconds = time.perf_counter() - started
    report = None
    if os.WIFEXITED(status):
        report = Report.model_validate_json((work / "report.json").read_text())
    return Attempt(nbytes, seconds, usage.ru_utime + usage.ru_stime, report)


def resume_table(jobs: list[Resumed]) -> str:
    """Write the table: a row for each job that was killed, and one for the worst."""
    rows = [
        (
            job.recipe,
            f"{job.killed.nbytes / job.whole.nbytes:.0%}",
            f"{job.killed.nbytes / 1e6:,.0f}",
            f"{job.skipped_bytes / 1e6:,.0f}",
            f"{job.again_bytes / 1e6:,.1f}",
            f"{job.last.seconds:.2f} of {job.whole.seconds:.2f}",
            "equal" if job.is_equal else "**differs**",
        )
        for job in jobs
    ]
    equal = sum(job.is_equal for job in jobs)
    most = max(job.again_bytes for job in jobs)
    worst = (
        "**all**",
        "",
        "",
        "",
        f"{most / 1e6:,.1f} at most",
        "",
        f"{equal} of {len(jobs)} equal",
    )
    return table(_HEAD, [*rows, worst])


def _compress(model: Path, work: Path, recipe: str, *, has_journal: bool) -> None:
    """Do a job and leave no other way than by the exit of the process."""
    code = 1
    try:
        report = compress(
            model,
            work / "artifact",
            parse_recipe({"steps": RECIPES[recipe]}),
            on_progress=lambda _: None,
            journal=work / "journal" if has_journal else None,
        )
        (work / "report.json").write_text(report.model_dump_json())
        code = 0
    finally:
        os._exit(code)


def _bytes_read(pid: int) -> int:
    counts = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(counts["rchar"])


def _take_digest(folder: Path) -> str:
    """Give the digest of all files of the artifact, and remove it."""
    hasher = blake3()
    for path in sorted((folder / "work" / "artifact").iterdir()):
        hasher.update(json.dumps([path.name, path.stat().st_size]).encode()).update_mmap(path)
    shutil.rmtree(folder / "work")
    return hasher.hexdigest()


if __name__ == "__main__":
    main()
