"""Every way from one checkpoint to its int8 form, measured round by round in turn."""

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path

from benchmarks.checkpoints import Llama
from benchmarks.errors import Errors
from benchmarks.finished import run_job
from benchmarks.warmth import Warmth
from benchmarks.watching import Watched, watch
from benchmarks.ways import JOB, JOB_STEP, Way
from modelpress import Client


@dataclass
class Row:
    """What was measured of one way.

    Attributes:
        way: Its name.
        is_peer: Whether it is another tool.
        taken: One entry for each round.
        output_bytes: Of all files that it wrote.
        errors: Of its output; None where nothing was rounded.
        failure: Why there is no measurement.
    """

    way: str
    is_peer: bool = False
    taken: list[Watched] = field(default_factory=list)
    output_bytes: int = 0
    errors: Errors | None = None
    failure: str = ""


@dataclass(frozen=True)
class Comparison:
    """All ways on one checkpoint.

    Attributes:
        size: Its name, such as `1.1B`.
        llama: Its measures.
        rows: One for each way.
    """

    size: str
    llama: Llama
    rows: list[Row]


@dataclass(frozen=True)
class Entrant:
    """One who takes part.

    Attributes:
        row: Its row.
        rounds: How often it is measured.
        model: The folder that it reads.
        measure: Adds one measurement to the row, told the number of the round, and what brings
            the machine into the state from which everything is measured.
    """

    row: Row
    rounds: int
    model: Path
    measure: Callable[[int, Callable[[], None]], None]


def take_rounds(entrants: list[Entrant], scratch: Path) -> list[Row]:
    """Measure every entrant once in each of its rounds, all from the same state of the machine.

    Args:
        entrants: What is measured. Their order moves on by one from round to round.
        scratch: A folder that does not exist, on the disk that is measured.

    Returns:
        The rows, in the order of the entrants. One that failed says so, and is not tried again.
    """
    warmth = Warmth(entrants[0].model, scratch)
    for number in range(max(entrant.rounds for entrant in entrants)):
        shift = number % len(entrants)
        for entrant in entrants[shift:] + entrants[:shift]:
            if number >= entrant.rounds or entrant.row.failure:
                continue
            try:
                entrant.measure(number, partial(warmth.restore, entrant.model))
            except RuntimeError as error:
                entrant.row.failure = "failed"
                print(f"{entrant.row.way}: {error}", flush=True)
            else:
                _tell(entrant.row)
    return [entrant.row for entrant in entrants]


def enter_way(way: Way, rounds: int, model: Path, output: Path) -> Entrant:
    """Enter a command.

    Args:
        way: What is run.
        rounds: How often.
        model: The checkpoint's folder.
        output: Where the output is made, judged once, and removed.
    """
    row = Row(way.name, way.is_peer)

    def measure(number: int, prepare: Callable[[], None]) -> None:
        try:
            command = way.command(model, output)
            row.taken.append(watch(command, prepare, has_stopwatch=way.has_stopwatch))
            if number == 0:
                row.output_bytes = sum(path.stat().st_size for path in output.iterdir())
                row.errors = _judge(way, model, output)
        finally:
            shutil.rmtree(output, ignore_errors=True)

    return Entrant(row, rounds, model, measure)


def enter_job(client: Client, model_id: str, stored: Path, rounds: int) -> Entrant:
    """Enter the whole job, from claim to success, in a service that runs.

    Args:
        client: Speaks to the service.
        model_id: The checkpoint.
        stored: Where the service keeps it.
        rounds: How often.
    """
    row = Row(JOB)

    def measure(number: int, prepare: Callable[[], None]) -> None:
        prepare()
        # A recipe of its own for each round, so that none can be answered from an earlier one.
        step = {**JOB_STEP, "exclude": [f"round-{number}"]}
        job = run_job(client, model_id, {"steps": [step]})
        began, ended = (
            datetime.fromisoformat(job.raw[name]) for name in ("started_at", "finished_at")
        )
        memory = client.report(job.id)["memory"]
        row.output_bytes = sum(file.bytes for file in job.files)
        client.delete(job.id)
        row.taken.append(
            Watched(
                seconds=(ended - began).total_seconds(),
                added_anonymous_bytes=memory["added_anonymous_bytes"],
                anonymous_bytes=memory["peak"]["anonymous_peak_bytes"],
                resident_bytes=memory["measured_peak_bytes"],
            )
        )

    return Entrant(row, rounds, stored, measure)


def _judge(way: Way, model: Path, output: Path) -> Errors | None:
    if way.judge is None:
        return None
    command = [way.judge, "-m", "benchmarks.errors", model, output]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return Errors(**json.loads(said.splitlines()[-1]))


def _tell(row: Row) -> None:
    last = row.taken[-1]
    added = last.added_anonymous_bytes / 1e6
    print(f"{row.way}: {last.seconds:.2f} s, {added:,.0f} MB added", flush=True)
