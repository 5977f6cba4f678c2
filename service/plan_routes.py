"""POST /plans: what a job would cost, from headers alone, and which recipes reach a goal."""

from pathlib import Path
from typing import cast

import structlog
from flask import Blueprint, Response, jsonify, request
from redis.exceptions import RedisError

from jobs.checkpoint import Checkpoint, open_checkpoint
from jobs.dataset_rows import count_rows
from jobs.goal import Goal
from jobs.levels import read_levels
from jobs.problems import Problem
from jobs.program import FORMAT, Program, open_program
from jobs.program_archive import PROGRAM_NAME
from jobs.recipe import Recipe
from planning.forecast import forecast
from planning.inferring import join, predict_inference
from planning.memory_model import Levels, levels_of
from planning.program_limits import refuse_unsupported
from planning.program_prediction import predict_stages
from planning.program_stages import plan_program_stages
from planning.running import refuse_unrunnable
from planning.suggestions import suggest
from service.contract import JSON, Operation, check, declare, json_answer
from service.model_routes import find_model
from service.parts import own, parts
from service.plan_documents import PlanAnswer, PlanDocument, PlanRequest, SuggestionsDocument
from service.plans import answers_document, checkpoint_of, document, program_document
from service.receive import Body
from service.submissions import read_members
from service.suggestions import MEASURING, find_measured, suggestions_document

#: Room for the headers of a hundred thousand tensors.
MAX_PLAN_BYTES = 32 * 1024**2
#: A data set that is longer is not gone through to count its rows.
_MOST_COUNTED_BYTES = 64 * 1024**2

routes = Blueprint("plans", __name__)


@routes.post("/plans")
@declare(
    Operation(
        summary="Plan a job",
        tag="jobs",
        scope="read",
        body={JSON: PlanRequest},
        answers=(
            json_answer(
                200, "What the job would do and cost, or the recipes for the goal.", PlanAnswer
            ),
        ),
        problems=(
            "unsupported_media_type",
            "too_large",
            "upload_truncated",
            "digest_mismatch",
            "model_not_found",
            "invalid_recipe",
            "invalid_checkpoint",
            "invalid_header",
            "duplicate_tensor",
            "invalid_tensor",
            "tensor_overlap",
            "tensor_gap",
            "already_quantized",
            "nothing_changed",
            "target_unreachable",
            "output_unsupported",
            "step_unsupported",
            "finetune_unsupported",
            "evaluation_unsupported",
            "shrink_unsupported",
            "not_measured",
            "goal_unreachable",
        ),
    )
)
def create_plan() -> Response:
    """Predict a job's memory, artifact, reads and writes, and whether its budget allows them.

    The model is an uploaded one, or no more than the JSON headers of its safetensors files and its
    config.json: no weight needs to be sent. With a goal in place of a recipe, up to three recipes
    that reach it, from what a job with the step `measure` found out about the model. Nothing is run
    and nothing is kept.
    """
    if request.mimetype != JSON:
        raise Problem("unsupported_media_type", f"{request.mimetype[:80]!a} is not {JSON}.")
    members = read_members(Body(request, MAX_PLAN_BYTES))
    asked = check(PlanRequest, members, "The body")
    levels, is_measured = known_levels()
    if asked.goal is not None:
        found = _suggest(asked.model or "", asked.goal, levels, is_measured=is_measured)
        return jsonify(found.model_dump(mode="json"))
    recipe = cast("Recipe", asked.recipe)
    rows = _rows_of(recipe)
    if asked.model is not None and find_model(asked.model)["format"] == FORMAT:
        program = open_program(_files_of(asked.model) / PROGRAM_NAME)
        planned = _plan_program(program, recipe, rows, levels, is_measured)
    elif recipe.infer_step is not None and recipe.compression is None:
        checkpoint = _checkpoint(asked)
        refuse_unrunnable(recipe, "/spec", has_config=checkpoint.config is not None)
        prediction = predict_inference(checkpoint, recipe.infer_step, recipe.budget, levels, rows)
        nbytes = checkpoint.facts()["tensor_bytes"]
        planned = answers_document(recipe, prediction, levels, nbytes, is_measured=is_measured)
    else:
        made = forecast(_checkpoint(asked), recipe, levels, "/spec", rows)
        planned = document(made, is_measured=is_measured)
    return jsonify(planned.model_dump(mode="json"))


def _suggest(
    model_id: str, goal: Goal, levels: Levels, *, is_measured: bool
) -> SuggestionsDocument:
    meta = find_model(model_id)
    if meta["format"] == FORMAT:
        refuse_unsupported(MEASURING)
    checkpoint = open_checkpoint(_files_of(model_id))
    found = suggest(checkpoint, goal, find_measured(meta["id"]), levels)
    return suggestions_document(meta["id"], found, is_measured=is_measured)


def known_levels() -> tuple[Levels, bool]:
    """Give what workers measured of their processes, or the defaults, and whether it is measured.

    Nothing else of a plan needs Redis, so one that is away only makes the plan less certain.
    """
    try:
        measured = read_levels(parts().tenants.redis)
    except RedisError as error:
        structlog.get_logger(__name__).warning("levels_unknown", error=str(error))
        measured = {}
    return levels_of(measured), "idle_bytes" in measured


def _plan_program(
    program: Program, recipe: Recipe, rows: int | None, levels: Levels, is_measured: bool
) -> PlanDocument:
    step, compression = recipe.infer_step, recipe.compression
    inference = predict_inference(program, step, recipe.budget, levels, rows) if step else None
    if compression is None:
        assert inference is not None  # noqa: S101 - a recipe has a step
        return answers_document(
            recipe, inference, levels, program.file_bytes, is_measured=is_measured
        )
    stages = plan_program_stages(program, compression, "/spec")
    prediction = predict_stages(stages, levels)
    joined = prediction if inference is None else join(prediction, inference)
    return program_document(stages, joined, levels, is_measured)


def _rows_of(recipe: Recipe) -> int | None:
    """Count the rows of an infer step's data set, where it is stored and short enough for that."""
    step = recipe.infer_step
    digest = "" if step is None else step.dataset.removeprefix("ds_")
    if step is None or own().blobs.meta("datasets", digest) is None:
        return None
    return count_rows(own().blobs.files("datasets", digest) / "data", _MOST_COUNTED_BYTES)


def _checkpoint(asked: PlanRequest) -> Checkpoint:
    if asked.model is None:
        return checkpoint_of(asked)
    return open_checkpoint(_files_of(find_model(asked.model)["id"]))


def _files_of(model_id: str) -> Path:
    return own().blobs.files("models", model_id.removeprefix("mdl_"))
