"""What was measured of a model, for people who want to look at it."""

from flask import Blueprint, Response, jsonify

from jobs.sensitivities import Sensitivities
from service.contract import Operation, declare, json_answer
from service.model_routes import find_model
from service.suggestions import find_measured

routes = Blueprint("sensitivities", __name__)


@routes.get("/models/<model_id>/sensitivities")
@declare(
    Operation(
        summary="What rounding and shrinking would lose",
        tag="models",
        scope="read",
        answers=(json_answer(200, "What was measured, weight by weight.", Sensitivities),),
        problems=("model_not_found", "not_measured"),
    )
)
def show_sensitivities(model_id: str) -> Response:
    """Give what a job with the step `measure` found out; it goes with the model."""
    found = find_measured(find_model(model_id)["id"])
    return jsonify(found.model_dump(mode="json"))
