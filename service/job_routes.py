"""Jobs: listed, polled, cancelled, removed."""

import base64
import binascii
import re
from urllib.parse import urlencode

from flask import Blueprint, Response, jsonify, request

from jobs.job import Job, is_job_id
from jobs.problems import Problem
from jobs.reaper import publish_end
from service.contract import JSON, Answer, Operation, check, declare, json_answer, read_query
from service.documents import CancelRequest, JobDocument, JobPage, JobsQuery
from service.job_answers import answer_job, find_job, job_document
from service.parts import own, parts
from service.receive import MAX_TEXT_BYTES, Body, json_of
from service.waiting import MAX_WAIT_SECONDS, wait_for_change

routes = Blueprint("jobs", __name__)

_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,6})\"?", re.IGNORECASE)


@routes.get("/jobs")
@declare(
    Operation(
        summary="List jobs",
        tag="jobs",
        scope="read",
        query=JobsQuery,
        answers=(json_answer(200, "A page, newest first.", JobPage, "Link"),),
        problems=("invalid_cursor", "store_unavailable"),
    )
)
def list_jobs() -> Response:
    """Give a page of jobs, newest first, perhaps only those in a state or with labels."""
    query = read_query(request, JobsQuery)
    before = _read_cursor(query.cursor) if query.cursor is not None else None
    labels = dict(label.split(":", 1) for label in query.label)
    jobs, following = own().jobs.page(query.limit, before, query.state, labels)
    cursor = _make_cursor(following) if following else None
    page = JobPage(data=tuple(job_document(job) for job in jobs), next_cursor=cursor)
    response = jsonify(page.model_dump(mode="json"))
    if cursor:
        members = [(name, value) for name, value in request.args.items(multi=True)]
        kept = [(name, value) for name, value in members if name != "cursor"]
        response.headers["Link"] = f'</jobs?{urlencode([*kept, ("cursor", cursor)])}>; rel="next"'
    return response


@routes.get("/jobs/<job_id>")
@declare(
    Operation(
        summary="Poll a job",
        tag="jobs",
        scope="read",
        headers=("If-None-Match", "Prefer"),
        answers=(
            json_answer(
                200, "The job as it is.", JobDocument, "ETag", "Retry-After", "Preference-Applied"
            ),
            Answer(304, "Nothing has changed.", headers=("ETag", "Retry-After")),
        ),
        problems=("job_not_found", "store_unavailable"),
    )
)
def show_job(job_id: str) -> Response:
    """Give a job as it is now, or, with `Prefer: wait=N`, as soon as it has changed."""
    job = find_job(job_id)
    wait = _WAIT.search(request.headers.get("Prefer", ""))
    if wait is not None:
        seconds = min(int(wait[1]), MAX_WAIT_SECONDS)
        changed = wait_for_change(
            parts().room, own().jobs, job, _known_revision(job.revision), seconds
        )
        job = changed or find_job(job_id)
    response = answer_job(job)
    if wait is not None:
        response.headers["Preference-Applied"] = f"wait={seconds}"
    response.make_conditional(request)
    return response


@routes.post("/jobs/<job_id>/cancel")
@declare(
    Operation(
        summary="Cancel a job",
        tag="jobs",
        scope="submit",
        body={JSON: CancelRequest},
        needs_body=False,
        answers=(
            json_answer(202, "It is running and will stop soon.", JobDocument, "Retry-After"),
            json_answer(200, "It has ended.", JobDocument),
        ),
        problems=(
            "unsupported_media_type",
            "too_large",
            "upload_truncated",
            "digest_mismatch",
            "job_not_found",
            "nothing_to_keep",
            "store_unavailable",
        ),
    )
)
def cancel_job(job_id: str) -> Response:
    """Ask for a job to stop. Asking again does no harm; a job that has ended stays as it is.

    With `keep` only its training stops, at its next step and at least one, as if the recipe had
    asked for no more: the best weights are taken where the recipe keeps them, the latest elsewhere,
    the steps that follow are done, and the job succeeds with an artifact. A cancel without it ends
    the job still. 409 where the recipe trains nothing, or the job waits for its first attempt.
    """
    asked = _read_cancel()
    job = find_job(job_id)
    if asked.keep:
        _keep(job)
    else:
        _cancel(job_id)
    job = find_job(job_id)
    return answer_job(job, status=200 if job.is_terminal else 202)


def _read_cancel() -> CancelRequest:
    body = Body(request, MAX_TEXT_BYTES)
    if body.is_empty:
        return CancelRequest()
    if request.mimetype != JSON:
        raise Problem("unsupported_media_type", f"{request.mimetype[:80]!a} is not {JSON}.")
    return check(CancelRequest, json_of(body), "The body")


def _cancel(job_id: str) -> None:
    state = own().jobs.cancel(job_id)
    if state == "cancelled":
        publish_end(own().jobs, own().blobs, job_id)
    elif state == "running":
        own().blobs.note_cancel(job_id)


def _keep(job: Job) -> None:
    """Ask for the end of a job's training."""
    blobs = own().blobs
    if job.is_terminal:
        return
    if job.recipe.finetune_step is None:
        raise Problem(
            "nothing_to_keep", "The recipe trains nothing; cancel the job without keep, or wait."
        )
    if job.state == "queued" and not blobs.was_begun(job.id):
        raise Problem(
            "nothing_to_keep", "The job was not begun yet; cancel it without keep, or wait."
        )
    # The disk first: it is what the runner goes by, and what outlives a loss of Redis.
    blobs.note_stop(job.id)
    own().jobs.stop(job.id)


@routes.delete("/jobs/<job_id>")
@declare(
    Operation(
        summary="Remove a job",
        tag="jobs",
        scope="submit",
        answers=(Answer(204, "It is gone, with its artifact."),),
        problems=("job_not_found", "job_not_terminal", "store_unavailable"),
    )
)
def delete_job(job_id: str) -> Response:
    """Remove a job that has ended, with its report and artifact."""
    job = find_job(job_id)
    if not job.is_terminal:
        raise Problem("job_not_terminal", f"{job_id} is {job.state}; cancel it first.")
    # The disk first: what is left in Redis alone can be removed again, but what is left on the
    # disk alone would come back.
    own().blobs.remove_job(job_id)
    own().jobs.remove(job_id)
    return Response(status=204)


def _known_revision(current: int) -> int:
    for tag in request.if_none_match.as_set():
        revision = tag.partition("-")[0]
        if revision.isdecimal() and len(revision) < 18:
            return int(revision)
    return current


def _make_cursor(job_id: str) -> str:
    return base64.urlsafe_b64encode(job_id.encode()).decode().rstrip("=")


def _read_cursor(cursor: str) -> str:
    try:
        job_id = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
    except (binascii.Error, ValueError) as error:
        raise _invalid_cursor(cursor) from error
    if not is_job_id(job_id):
        raise _invalid_cursor(cursor)
    return job_id


def _invalid_cursor(cursor: str) -> Problem:
    return Problem("invalid_cursor", f"{cursor[:80]!a} is no cursor of ours.")
