"""Recipes for a goal as documents, and what was measured of the model that they are for."""

from collections.abc import Sequence
from typing import Any

from jobs.kept_sensitivities import read_sensitivities
from jobs.problems import Problem
from jobs.recipe import parse_recipe
from jobs.sensitivities import Sensitivities
from planning.goals import Suggestion, plain_members
from service.parts import own
from service.plan_documents import SuggestionDocument, SuggestionsDocument
from service.plans import document

#: The recipe of a job that measures.
MEASURING = parse_recipe({"steps": [{"op": "measure"}]})


def find_measured(model_id: str) -> Sensitivities:
    """Give what was measured of a model.

    Args:
        model_id: Id of a model that is there.

    Returns:
        That.

    Raises:
        Problem: `not_measured`, with the job that does it.
    """
    found = read_sensitivities(own().blobs, model_id)
    if found is None:
        job: dict[str, Any] = {"model": model_id, "spec": {"steps": [{"op": "measure"}]}}
        raise Problem(
            "not_measured",
            f"{model_id} was not measured yet. Submit `measure` of this answer to POST /jobs, wait "
            "for the job, and ask again; `modelpress suggest` does all of it.",
            extra={"measure": job},
        )
    return found


def suggestions_document(
    model_id: str, found: Sequence[Suggestion], *, is_measured: bool
) -> SuggestionsDocument:
    """Write suggestions down.

    Args:
        model_id: Of the model.
        found: At least one.
        is_measured: Whether a worker measured the levels that they were planned with.

    Returns:
        The document.
    """
    return SuggestionsDocument(
        model=model_id,
        model_bytes=found[0].made.plan.model_bytes,
        suggestions=tuple(
            SuggestionDocument(
                recipe=plain_members(one.recipe),
                loss=one.loss,
                plan=document(one.made, is_measured=is_measured),
                loaders=one.loaders,
            )
            for one in found
        ),
    )
