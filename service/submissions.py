"""What a client submits: read from JSON or a form, checked, and made a job."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blake3
import structlog
from flask import Request
from redis.exceptions import RedisError

from jobs.blobs import BlobStore, now_ms
from jobs.equal_jobs import answer, remember
from jobs.job import JobResult, JobSpec, new_job_id
from jobs.problems import Detail, Problem
from jobs.recipe import Recipe, parse_recipe
from jobs.recipe_text import load_document
from jobs.records import Submitted
from jobs.store import JobStore
from jobs.tenants import Stores
from service.contract import check
from service.documents import LabelsDocument, SubmitRequest
from service.model_routes import store_model
from service.multipart import Multipart, Part
from service.receive import MAX_TEXT_BYTES, Body, json_of
from service.uploads import Received

_QUOTED = re.compile(r'"((?:[^"\\]|\\["\\])*)"')
_MAX_KEY_LENGTH = 255


@dataclass(frozen=True)
class Submission:
    """A job that a client asks for.

    Attributes:
        model: Id of the model.
        recipe: What to do.
        labels: What the client attached.
        upload: The model's upload, staged and not yet published; None for a known model.
    """

    model: str
    recipe: Recipe
    labels: dict[str, str]
    upload: Received | None = None

    @property
    def fingerprint(self) -> str:
        """A digest, equal for equal submissions."""
        members = [self.model, self.recipe.model_dump(mode="json"), self.labels]
        return blake3.blake3(json.dumps(members, sort_keys=True).encode()).hexdigest()


def from_json(body: Body) -> Submission:
    """Read a submission in JSON.

    Args:
        body: The body.

    Returns:
        The submission.

    Raises:
        Problem: `malformed_request`, `invalid_recipe`, or what `Body.chunks` raises.
    """
    read = check(SubmitRequest, read_members(body), "The body")
    return Submission(read.model, read.recipe, read.labels)


def read_members(body: Body) -> Any:  # noqa: ANN401 - whatever the client sent
    """Read a JSON body, its recipe checked where it has one.

    Args:
        body: The body.

    Returns:
        Its plain values, and a `Recipe` at ``spec``.

    Raises:
        Problem: `malformed_request`, `invalid_recipe`, or what `Body.chunks` raises.
    """
    members = json_of(body)
    if isinstance(members, dict) and "spec" in members:
        return {**members, "spec": parse_recipe(members["spec"], "/spec")}
    return members


def from_form(form: Multipart, staged: Path) -> Submission:
    """Read a submission in multipart/form-data, its parts in any order.

    Args:
        form: The body.
        staged: Where an uploaded model goes.

    Returns:
        The submission.

    Raises:
        Problem: `malformed_multipart`, `malformed_request`, `invalid_recipe`, or whatever is wrong
            with the model.
    """
    found: dict[str, Any] = {}
    for part in form.parts():
        if part.name not in ("model", "spec", "labels") or part.name in found:
            raise Problem(
                "malformed_multipart",
                f"Part {part.name[:80]!a} is not expected; the form takes one model, one spec "
                "and perhaps one labels.",
            )
        found[part.name] = _read_part(part, staged)
    for name in ("model", "spec"):
        if name not in found:
            raise Problem(
                "malformed_multipart",
                f"The form has no part named {name!r}.",
                errors=[Detail(f"/{name}", "missing", "is needed")],
            )
    model, labels = found["model"], found.get("labels", {})
    if isinstance(model, Received):
        return Submission(model.meta["id"], found["spec"], labels, model)
    return Submission(model, found["spec"], labels)


def read_key(request: Request) -> str | None:
    """Give a request's Idempotency-Key, or None.

    Args:
        request: The request.

    Returns:
        The key without its quotes.

    Raises:
        Problem: `malformed_request`.
    """
    raw = request.headers.get("Idempotency-Key")
    if raw is None:
        return None
    quoted = _QUOTED.fullmatch(raw.strip())
    key = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else raw.strip()
    if not 1 <= len(key) <= _MAX_KEY_LENGTH or not (key.isascii() and key.isprintable()):
        raise Problem(
            "malformed_request",
            f"Idempotency-Key is not 1 to {_MAX_KEY_LENGTH} printable ASCII characters.",
        )
    return key


def accept(
    stores: Stores, submission: Submission, key: str | None, *, use_cache: bool
) -> tuple[str, bool]:
    """Make a submission a job, durably; one that an equal job answers has ended at once.

    Args:
        stores: Whose job it will be; the model is there.
        submission: What to run.
        key: The Idempotency-Key.
        use_cache: Whether the artifact of an equal job will do.

    Returns:
        The job's id, and whether it is new rather than found by the key.

    Raises:
        Problem: `idempotency_key_reused`, `queue_full`.
        RedisError: The job store did not answer. Where it died while it was asked, nobody knows
            whether the job is one; its spec stays then, so that it becomes one, and the same key
            finds it.
    """
    jobs, blobs = stores.jobs, stores.blobs
    spec = _spec(submission, key, use_cache)
    # Asked before anything is written, so that it leaves nothing where Redis is away.
    jobs.redis.ping()
    blobs.write_spec(spec)
    try:
        result = _publish_answer(blobs, spec)
    except BaseException:
        blobs.remove_job(spec.id)
        raise
    submitted = _submit(jobs, blobs, spec, result)
    if submitted.outcome == "full":
        blobs.remove_job(spec.id)
        raise Problem("queue_full", "As many jobs wait as may; submit it again when one has begun.")
    # redis-py repeats a call whose answer was lost; then the job that is there already is this one.
    if submitted.job_id == spec.id:
        return spec.id, True
    blobs.remove_job(spec.id)
    if submitted.outcome == "mismatch":
        raise Problem(
            "idempotency_key_reused",
            f"The key belongs to {submitted.job_id}, which was asked for with another model, "
            "recipe or labels.",
        )
    return submitted.job_id, False


def _spec(submission: Submission, key: str | None, use_cache: bool) -> JobSpec:
    return JobSpec(
        id=new_job_id(),
        model=submission.model,
        recipe=submission.recipe,
        labels=submission.labels,
        created_ms=now_ms(),
        use_cache=use_cache,
        idempotency_key=key,
        fingerprint=submission.fingerprint,
    )


def _publish_answer(blobs: BlobStore, spec: JobSpec) -> JobResult | None:
    found = answer(blobs, spec)
    if found is None:
        return None
    blobs.write_report(spec.id, found.report)
    blobs.publish_result(found.result)
    if found.result.state == "succeeded":
        remember(blobs, spec)
    return found.result


def _submit(
    store: JobStore, blobs: BlobStore, spec: JobSpec, result: JobResult | None
) -> Submitted:
    try:
        return store.submit(
            spec, result, idempotency_key=spec.idempotency_key, fingerprint=spec.fingerprint
        )
    except RedisError:
        # The answer may be what was lost, not the call.
        if store.get(spec.id) is None:
            blobs.remove_job(spec.id)
            raise
        structlog.get_logger(__name__).warning("submit_answer_lost", job_id=spec.id)
        return Submitted("created", spec.id)


def _read_part(part: Part, staged: Path) -> Received | Recipe | str | dict[str, str]:
    if part.name == "model":
        # curl -F model=@file sends a file name, -F model=mdl_… does not.
        if part.filename is not None:
            return store_model(part.pieces(), staged)
        return part.read(MAX_TEXT_BYTES).decode("utf-8", "replace").strip()
    text = part.read(MAX_TEXT_BYTES)
    if part.name == "spec":
        return parse_recipe(load_document(text), "/spec")
    try:
        members = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Problem("malformed_request", f"The labels are not JSON: {error}.") from error
    return check(LabelsDocument, {"labels": members}, "The form").labels
