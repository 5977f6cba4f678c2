"""A job as an answer: its document, its validator and when to ask again."""

from datetime import UTC, datetime

from flask import Response, jsonify

from jobs.blobs import SHA256_NAME
from jobs.durable_files import read_json
from jobs.job import Job, is_job_id
from jobs.problems import Problem
from service.documents import JobDocument
from service.parts import own


def find_job(job_id: str) -> Job:
    """Give a job's record.

    Args:
        job_id: As the client wrote it.

    Returns:
        The record.

    Raises:
        Problem: `job_not_found`; `store_unavailable`: the job is on the disk, and its record will
            be back in a moment.
    """
    job = own().jobs.get(job_id) if is_job_id(job_id) else None
    if job is None and is_job_id(job_id) and own().blobs.has_spec(job_id):
        raise Problem(
            "store_unavailable", f"The record of {job_id} was lost; it is brought back just now."
        )
    if job is None:
        raise Problem("job_not_found", f"There is no job {job_id[:80]!a}.")
    return job


def with_digests(job: Job) -> Job:
    """Fill in the SHA-256 digests of a job's artifact that are known by now."""
    artifact = job.artifact
    if artifact is None:
        return job
    known = read_json(own().blobs.job_folder(job.id) / SHA256_NAME) or {}
    files = tuple(
        file.model_copy(update={"sha256": file.sha256 or known.get(file.path)})
        for file in artifact.files
    )
    return job.model_copy(update={"artifact": artifact.model_copy(update={"files": files})})


def job_document(job: Job) -> JobDocument:
    """Give a job's document."""
    own = f"/jobs/{job.id}"
    links = {"self": own, "model": f"/models/{job.model}"}
    if job.recipe.measures:
        links["sensitivities"] = f"/models/{job.model}/sensitivities"
    made = () if job.recipe.measures else ("report", "artifact")
    links |= {name: f"{own}/{name}" for name in ("events", *made, "cancel")}
    return JobDocument(**dict(with_digests(job)), links=links)


def etag_of(document: JobDocument) -> str:
    """Give the validator of a job's document, without quotes.

    It is the revision, marked once the digests are in that come after the last revision.
    """
    files = document.artifact.files if document.artifact else ()
    is_complete = bool(files) and all(file.sha256 for file in files)
    return f"{document.revision}-sha256" if is_complete else str(document.revision)


def answer_job(job: Job, status: int = 200) -> Response:
    """Answer with a job.

    Args:
        job: The job.
        status: The HTTP status.

    Returns:
        The response, with its validator, and with when to ask again unless the job has ended.
    """
    document = job_document(job)
    response = jsonify(document.model_dump(mode="json"))
    response.status_code = status
    response.set_etag(etag_of(document))
    if not job.is_terminal:
        response.headers["Retry-After"] = str(_retry_seconds(job))
    return response


def _retry_seconds(job: Job) -> int:
    # A job that has run for long will hardly end in the next second.
    elapsed = (datetime.now(UTC) - job.created_at).total_seconds()
    return max(1, min(30, int(elapsed / 20)))
