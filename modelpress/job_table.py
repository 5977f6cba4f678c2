"""Jobs as text for a terminal."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from modelpress.sizes import format_bytes, printable
from modelpress.values import Job


def render_job(job: Job) -> Table:
    """Lay one job out, one fact a line."""
    table = Table.grid(padding=(0, 2))
    facts = [("job", job.id), ("state", job.state), ("model", job.model)]
    if job.attempt > 1:
        facts.append(("attempt", str(job.attempt)))
    if job.queue_position is not None:
        facts.append(("ahead in queue", str(job.queue_position)))
    if job.progress is not None and not job.is_terminal:
        progress = job.progress
        facts.append(
            ("progress", f"{progress.phase} {progress.done} of {progress.total} {progress.unit}")
        )
    if job.raw.get("stop_requested") and not job.is_terminal:
        facts.append(("training", "asked to end; what was trained is kept"))
    facts += [("label", f"{key}={value}") for key, value in job.labels.items()]
    times = (("created", job.created_at), ("started", job.started_at), ("ended", job.finished_at))
    facts += [(name, time) for name, time in times if time]
    if job.cache == "hit":
        facts.append(("cache", "hit: an equal job had the artifact"))
    if job.files:
        total = format_bytes(sum(file.bytes for file in job.files))
        facts.append(("artifact", f"{total} in {len(job.files)} files"))
    if job.failure:
        facts.append(("failure", f"{job.failure.get('code')}: {job.failure.get('detail')}"))
    for name, value in facts:
        table.add_row(name, Text(printable(value), overflow="fold"))
    return table


def render_jobs(jobs: Sequence[Job]) -> Table:
    """Lay jobs out, one a line."""
    table = Table(box=None, pad_edge=False)
    for column in ("job", "state", "created", "labels"):
        table.add_column(column, overflow="fold")
    for job in jobs:
        labels = " ".join(f"{key}={value}" for key, value in job.labels.items())
        cells = (job.id, job.state, job.created_at or "", labels)
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table
