"""Models and data sets: uploaded, looked at, removed."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from flask import Blueprint, Response, jsonify, request

from jobs.job import Job, is_dataset_id, is_model_id
from jobs.problems import Problem
from service.contract import BINARY, Answer, Form, Operation, declare, json_answer
from service.documents import DatasetDocument, ModelDocument
from service.multipart import Multipart, is_multipart
from service.parts import own, parts
from service.quotas import left_bytes, open_upload, stage_upload
from service.uploads import Pieces, Received, receive_dataset, receive_model

routes = Blueprint("models", __name__)

_UPLOAD_PROBLEMS = (
    "malformed_multipart",
    "upload_truncated",
    "digest_mismatch",
    "too_large",
    "empty_upload",
    "too_many_uploads",
    "storage_quota",
    "storage_full",
)
#: What a model's upload can be refused for.
MODEL_PROBLEMS = (
    *_UPLOAD_PROBLEMS,
    "unsupported_format",
    "invalid_archive",
    "unsafe_archive",
    "invalid_checkpoint",
    "invalid_config",
    "invalid_header",
    "header_too_large",
    "duplicate_tensor",
    "invalid_tensor",
    "tensor_overlap",
    "tensor_gap",
    "tensor_out_of_bounds",
    "invalid_program",
    "unsafe_program",
    "unsupported_operator",
    "invalid_expression",
)
_DIGESTS = ("Content-Digest", "Repr-Digest")
_MODEL_FORM = Form({"model": "The model."}, required=("model",))
_DATASET_FORM = Form({"dataset": "The data set."}, required=("dataset",))


@routes.post("/models")
@declare(
    Operation(
        summary="Upload a model",
        tag="models",
        scope="submit",
        body={BINARY: None, "multipart/form-data": _MODEL_FORM},
        headers=_DIGESTS,
        answers=(
            json_answer(201, "It is stored.", ModelDocument, "Location"),
            json_answer(200, "The same bytes were there already.", ModelDocument, "Location"),
        ),
        problems=MODEL_PROBLEMS,
    )
)
def create_model() -> Response:
    """Store a .safetensors file, a .tar or .zip of shards or of a transformers folder, or a .pt2.

    Send it raw (`curl -T`) or as the `model` part of a form.
    """
    return _create("models", "model", store_model)


@routes.post("/datasets")
@declare(
    Operation(
        summary="Upload a data set",
        tag="datasets",
        scope="submit",
        body={BINARY: None, "multipart/form-data": _DATASET_FORM},
        headers=_DIGESTS,
        answers=(
            json_answer(201, "It is stored.", DatasetDocument, "Location"),
            json_answer(200, "The same bytes were there already.", DatasetDocument, "Location"),
        ),
        problems=_UPLOAD_PROBLEMS,
    )
)
def create_dataset() -> Response:
    """Store a file as it is sent."""
    return _create("datasets", "dataset", receive_dataset)


@routes.get("/models/<model_id>")
@declare(
    Operation(
        summary="Look at a model",
        tag="models",
        scope="read",
        answers=(json_answer(200, "What its headers tell.", ModelDocument),),
        problems=("model_not_found",),
        with_head=True,
    )
)
def show_model(model_id: str) -> Response:
    """Give the facts read from the model's headers when it was uploaded."""
    return jsonify(model_document(find_model(model_id)))


@routes.get("/datasets/<dataset_id>")
@declare(
    Operation(
        summary="Look at a data set",
        tag="datasets",
        scope="read",
        answers=(json_answer(200, "What is known about it.", DatasetDocument),),
        problems=("dataset_not_found",),
        with_head=True,
    )
)
def show_dataset(dataset_id: str) -> Response:
    """Give what is known about an uploaded data set."""
    return jsonify(stored_document("datasets", find_dataset(dataset_id)))


@routes.delete("/models/<model_id>")
@declare(
    Operation(
        summary="Remove a model",
        tag="models",
        scope="submit",
        answers=(Answer(204, "It is gone."),),
        problems=("model_not_found", "model_in_use", "store_unavailable"),
    )
)
def delete_model(model_id: str) -> Response:
    """Remove a model that no unfinished job needs. Artifacts made from it stay."""
    find_model(model_id)
    for job in _open_jobs():
        if job.model == model_id:
            raise Problem("model_in_use", f"{job.id} needs {model_id}; it is {job.state}.")
    own().blobs.remove("models", model_id[4:])
    return Response(status=204)


@routes.delete("/datasets/<dataset_id>")
@declare(
    Operation(
        summary="Remove a data set",
        tag="datasets",
        scope="submit",
        answers=(Answer(204, "It is gone."),),
        problems=("dataset_not_found", "dataset_in_use", "store_unavailable"),
    )
)
def delete_dataset(dataset_id: str) -> Response:
    """Remove a data set that no unfinished job needs. Reports made with it stay."""
    find_dataset(dataset_id)
    for job in _open_jobs():
        if dataset_id in job.recipe.datasets:
            raise Problem("dataset_in_use", f"{job.id} needs {dataset_id}; it is {job.state}.")
    own().blobs.remove("datasets", dataset_id[3:])
    return Response(status=204)


def find_model(model_id: str) -> dict[str, Any]:
    """Give what is known about a model.

    Args:
        model_id: As the client wrote it.

    Returns:
        Its meta.

    Raises:
        Problem: `model_not_found`.
    """
    meta = own().blobs.meta("models", model_id[4:]) if is_model_id(model_id) else None
    if meta is None:
        raise Problem("model_not_found", f"There is no model {model_id[:80]!a}.")
    return meta


def find_dataset(dataset_id: str) -> dict[str, Any]:
    """Give what is known about a data set.

    Args:
        dataset_id: As the client wrote it.

    Returns:
        Its meta.

    Raises:
        Problem: `dataset_not_found`.
    """
    meta = own().blobs.meta("datasets", dataset_id[3:]) if is_dataset_id(dataset_id) else None
    if meta is None:
        raise Problem("dataset_not_found", f"There is no data set {dataset_id[:80]!a}.")
    return meta


def store_model(pieces: Pieces, staged: Path) -> Received:
    """Store a model's upload, within the service's limits and the tenant's quota.

    Args:
        pieces: The uploaded bytes.
        staged: Where to.

    Returns:
        What was received.
    """
    most = int(min(parts().settings.max_extracted, left_bytes()))
    return receive_model(pieces, staged, most)


def model_document(meta: dict[str, Any]) -> dict[str, Any]:
    """Give a model's document."""
    return stored_document("models", meta)


def _create(
    store: Literal["models", "datasets"],
    field: str,
    receive: Callable[[Pieces, Path], Received],
) -> Response:
    body = open_upload(request)
    with stage_upload() as staged:
        if is_multipart(request):
            received = _receive_part(Multipart(request, body), field, staged, receive)
        else:
            received = receive(body.chunks(), staged)
        created = own().blobs.publish(store, received.digest, staged, received.meta)
    meta = own().blobs.meta(store, received.digest) or received.meta
    response = jsonify(stored_document(store, meta))
    response.status_code = 201 if created else 200
    response.headers["Location"] = f"/{store}/{meta['id']}"
    return response


def _receive_part(
    form: Multipart, field: str, staged: Path, receive: Callable[[Pieces, Path], Received]
) -> Received:
    received = None
    for part in form.parts():
        if part.name != field or received is not None:
            raise Problem(
                "malformed_multipart", f"The form takes exactly one part, named {field!r}."
            )
        received = receive(part.pieces(), staged)
    if received is None:
        raise Problem("malformed_multipart", f"The form has no part named {field!r}.")
    return received


def stored_document(store: str, meta: dict[str, Any]) -> dict[str, Any]:
    """Give the document of a model or a data set.

    Args:
        store: Which of the two.
        meta: What is known about it.

    Returns:
        The document.
    """
    return {**meta, "links": {"self": f"/{store}/{meta['id']}"}}


def _open_jobs() -> Iterator[Job]:
    store = own().jobs
    for job_id in store.open_ids():
        job = store.get(job_id)
        if job is not None and not job.is_terminal:
            yield job
