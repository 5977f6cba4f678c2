"""Equal jobs: the same model, the same recipe and the same engine make the same artifact, once.

    equal/<key>/<job id>     an empty file for each job that has the artifact of the key

A job that equals an earlier one gets links to its files, so either can be removed without harm to
the other, and the bytes go with the last of them. All of it is on the disk: a loss of Redis changes
nothing, and a mark that was lost costs no more than making the artifact again.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from blake3 import blake3

from jobs.blobs import SHA256_NAME, BlobStore, now_ms
from jobs.durable_files import fsync, remove_tree
from jobs.gate import check as check_gate
from jobs.job import Artifact, Job, JobResult, JobSpec, is_job_id
from jobs.problems import Problem
from jobs.recipe import ENGINE_VERSION, Recipe
from jobs.report import Report

Put = Callable[[Path, Path], None]

_log = structlog.get_logger(__name__)


def deciding_parts(recipe: Recipe) -> dict[str, Any]:
    """Give what of a recipe decides the bytes of an artifact.

    Args:
        recipe: The recipe.

    Returns:
        Its steps, the data that these go by, and its output; budget and gate only decide whether
        there is an artifact. What was left open is left out, so that a recipe's key outlives what
        recipes learn later.
    """
    deciding = {"steps", "calibrate", "output"}
    return recipe.model_dump(mode="json", include=deciding, exclude_none=True)


def equality_key(model: str, recipe: Recipe) -> str:
    """Give what is the same for jobs with the same artifact and evaluation, and for no others.

    Args:
        model: Id of the model, which holds the digest of its bytes.
        recipe: What to do to it.

    Returns:
        A blake3 hex digest.
    """
    members: list[Any] = [ENGINE_VERSION, model, deciding_parts(recipe)]
    if recipe.evaluate is not None:
        # It decides what the report says.
        members.append(recipe.evaluate.model_dump(mode="json"))
    if recipe.finetune_step is not None:
        # How many rows fit decides how sums are rounded, and what saved memory what is summed.
        members.append(recipe.budget.model_dump(mode="json", exclude={"disk", "runtime"}))
    return blake3(json.dumps(members, sort_keys=True).encode()).hexdigest()


def remember(blobs: BlobStore, job: Job | JobSpec) -> None:
    """Mark a job as one that can answer those that equal it.

    Args:
        blobs: Where it is.
        job: A job that succeeded; it stays so if it cannot be marked.
    """
    mark = _marks(blobs, job) / job.id
    try:
        mark.parent.mkdir(exist_ok=True)
        mark.touch()
    except OSError as error:
        _log.warning("equal_job_not_marked", job_id=job.id, error=str(error))


def forget_removed(blobs: BlobStore) -> None:
    """Remove the marks of jobs that are gone.

    Args:
        blobs: Where.
    """
    for marks in (blobs.root / "equal").iterdir():
        for mark in marks.iterdir():
            if not blobs.job_folder(mark.name).exists():
                mark.unlink(missing_ok=True)
        with suppress(OSError):
            marks.rmdir()


@dataclass(frozen=True)
class Answer:
    """What an equal job answers for a job.

    Attributes:
        result: The job's end, not published yet; its artifact's folder is in place.
        report: What was measured when the artifact was made.
    """

    result: JobResult
    report: dict[str, Any]


def answer(
    blobs: BlobStore, spec: JobSpec, put: Put = os.link, *, token: int = 0, attempt: int = 0
) -> Answer | None:
    """Answer a job with the files of one that equals it.

    Args:
        blobs: Where both are.
        spec: The job; its folder exists.
        put: Makes a file appear in a second place.
        token: Of the attempt; 0 where there was none.
        attempt: Number of the attempt; 0 where there was none.

    Returns:
        The answer: that the job succeeded, or that what was measured of the artifact does not pass
        its gate. None where the job is to be run whatever there is, no equal job has its files any
        more, or they cannot be put here; then nothing is left behind.
    """
    if not spec.use_cache:
        return None
    end = partial(JobResult, id=spec.id, attempt=attempt, cache="hit", finished_ms=now_ms())
    for job_id in _marked(blobs, spec):
        try:
            found = _answer_with(blobs, job_id, spec, put, f"artifact-{token}", end)
        except (OSError, ValueError) as error:
            # It was removed meanwhile, or damaged; or the disk is full, as the job will find.
            _log.info("equal_job_unusable", job_id=spec.id, equal_to=job_id, error=str(error))
            continue
        _log.info("equal_job_found", job_id=spec.id, equal_to=job_id)
        return found
    return None


def link_or_copy(source: Path, target: Path) -> None:
    """Make a file appear in a second place, at the price of its bytes where links are not possible.

    Args:
        source: The file.
        target: The second place.
    """
    try:
        target.hardlink_to(source)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)
        fsync(target)


def _answer_with(
    blobs: BlobStore,
    job_id: str,
    spec: JobSpec,
    put: Put,
    folder_name: str,
    end: Callable[..., JobResult],
) -> Answer:
    result, folder = blobs.read_result(job_id), blobs.artifact_folder(job_id)
    report = blobs.report(job_id)
    if result is None or result.artifact is None or folder is None or report is None:
        raise ValueError("it has no artifact or no report")
    known = Report.model_validate(report)
    is_timed = known.quality is None or bool(known.quality.after.latency_seconds)
    if spec.recipe.gate.max_latency_ratio is not None and not is_timed:
        # Its budget had the model run block by block, which this one's may not.
        raise ValueError("it measured no latency")
    try:
        check_gate(known, spec.recipe.gate)
    except Problem as problem:
        return Answer(end(state="failed", failure=problem.to_dict()), report)
    own = blobs.job_folder(spec.id)
    _put_all(result.artifact, folder, own / folder_name, put)
    with suppress(OSError):
        # Where it is not there yet, a worker computes it, as for the other job.
        put(blobs.job_folder(job_id) / SHA256_NAME, own / SHA256_NAME)
    succeeded = end(state="succeeded", artifact=result.artifact, artifact_folder=folder_name)
    return Answer(succeeded, report)


def _put_all(artifact: Artifact, source: Path, target: Path, put: Put) -> None:
    if any((source / file.path).stat().st_size != file.bytes for file in artifact.files):
        raise ValueError("its artifact is damaged")
    target.mkdir()
    try:
        for file in artifact.files:
            path = target / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            put(source / file.path, path)
        for folder in (target, *(path for path in target.rglob("*") if path.is_dir())):
            fsync(folder)
    except BaseException:
        remove_tree(target)
        raise


def _marked(blobs: BlobStore, job: JobSpec) -> Iterator[str]:
    """Yield the jobs that can answer a job, newest first."""
    with suppress(FileNotFoundError):
        yield from filter(is_job_id, sorted(os.listdir(_marks(blobs, job)), reverse=True))


def _marks(blobs: BlobStore, job: Job | JobSpec) -> Path:
    return blobs.root / "equal" / equality_key(job.model, job.recipe)
