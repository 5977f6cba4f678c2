"""POST /jobs: all that can be checked without a GPU is checked before the job is accepted."""

from pathlib import Path
from typing import Any

from flask import Blueprint, Response, request

from jobs.problems import Problem
from jobs.program import FORMAT
from jobs.queue import ring
from planning.forecast import check_budget
from planning.running import refuse_unrunnable
from service.contract import JSON, Form, Operation, declare, json_answer
from service.documents import JobDocument, SubmitRequest
from service.job_answers import answer_job, find_job
from service.model_routes import MODEL_PROBLEMS, find_dataset, find_model
from service.multipart import Multipart, is_multipart
from service.parts import own, parts
from service.plan_routes import known_levels
from service.quotas import open_upload, require_storage, stage_upload
from service.receive import MAX_TEXT_BYTES, Body
from service.submissions import Submission, accept, from_form, from_json, read_key

routes = Blueprint("submit", __name__)

_FORM = Form(
    files={"model": "The model, or the id of an uploaded one as plain text."},
    texts={
        "spec": "The recipe in YAML or JSON.",
        "labels": "A JSON object of strings.",
    },
    required=("model", "spec"),
)


@routes.post("/jobs")
@declare(
    Operation(
        summary="Submit a job",
        tag="jobs",
        scope="submit",
        body={JSON: SubmitRequest, "multipart/form-data": _FORM},
        headers=("Idempotency-Key", "Cache-Control"),
        answers=(
            json_answer(
                202,
                "The job is accepted and will reach an end, or has the end of an equal one.",
                JobDocument,
                "Location",
                "Retry-After",
                "ETag",
                "Idempotent-Replayed",
            ),
        ),
        problems=(
            *MODEL_PROBLEMS,
            "unsupported_media_type",
            "model_not_found",
            "dataset_not_found",
            "evaluation_unsupported",
            "job_not_found",
            "invalid_recipe",
            "output_unsupported",
            "step_unsupported",
            "finetune_unsupported",
            "already_quantized",
            "nothing_changed",
            "target_unreachable",
            "memory_budget_exceeded",
            "disk_budget_exceeded",
            "idempotency_key_reused",
            "queue_full",
            "store_unavailable",
        ),
    )
)
def create_job() -> Response:
    """Run a recipe on a model.

    The model is uploaded with the recipe in one form, or named by its id, in a form or in JSON. An
    Idempotency-Key whose job was removed since gets 404. Where a job with the same model, steps and
    output has its artifact, this one has the same at once, and `cache` is `hit`; with
    `Cache-Control: no-cache` it is run.
    """
    key = read_key(request)
    if is_multipart(request):
        return _create_from_form(key)
    if request.mimetype != JSON:
        raise Problem(
            "unsupported_media_type",
            f"{request.mimetype[:80]!a} is neither application/json nor multipart/form-data.",
        )
    submission = from_json(Body(request, MAX_TEXT_BYTES))
    _check(submission, find_model(submission.model), _files_of(submission.model))
    return _accept(submission, key)


def _create_from_form(key: str | None) -> Response:
    body = open_upload(request)
    with stage_upload() as staged:
        submission = from_form(Multipart(request, body), staged)
        upload = submission.upload
        if upload is None:
            _check(submission, find_model(submission.model), _files_of(submission.model))
        else:
            _check(submission, upload.meta, staged / "files")
        if upload is not None:
            # Asked before the upload is published, so that it leaves nothing where Redis is away.
            parts().tenants.redis.ping()
            own().blobs.publish("models", upload.digest, staged, upload.meta)
    return _accept(submission, key)


def _files_of(model_id: str) -> Path:
    return own().blobs.files("models", model_id.removeprefix("mdl_"))


def _check(submission: Submission, meta: dict[str, Any], files: Path) -> None:
    if meta["is_quantized"] and submission.recipe.compression is not None:
        raise Problem(
            "already_quantized",
            "The model's config.json has a quantization_config. Submit the model as it was before.",
        )
    if meta["format"] != FORMAT:
        _check_checkpoint(submission, meta)
    for dataset in submission.recipe.datasets:
        find_dataset(dataset)
    levels, _ = known_levels()
    check_budget(files, submission.recipe, levels, "/spec")


def _check_checkpoint(submission: Submission, meta: dict[str, Any]) -> None:
    wanted = submission.recipe.output.format
    if wanted == "compressed-tensors" and meta["format"] != "transformers":
        raise Problem(
            "output_unsupported",
            f"output.format compressed-tensors needs a transformers folder with its config.json; "
            f"the model is {meta['format']}. Leave output.format out.",
        )
    refuse_unrunnable(submission.recipe, "/spec", has_config=meta["format"] == "transformers")


def _accept(submission: Submission, key: str | None) -> Response:
    # A retry finds its job, however full the storage is by now.
    if key is None or not own().jobs.is_replayed(key):
        require_storage()
    # From here on the model counts as used.
    own().blobs.touch("models", submission.model.removeprefix("mdl_"))
    for dataset in submission.recipe.datasets:
        own().blobs.touch("datasets", dataset.removeprefix("ds_"))
    use_cache = not request.cache_control.no_cache
    job_id, is_new = accept(own(), submission, key, use_cache=use_cache)
    if is_new:
        # Even for a job that has ended: the worker completes its digests.
        ring(parts().celery, own().tenant, job_id)
    response = answer_job(find_job(job_id), status=202)
    response.headers["Location"] = f"/jobs/{job_id}"
    if not is_new:
        response.headers["Idempotent-Replayed"] = "true"
    return response
