"""What is stored: models and data sets, listed."""

from itertools import islice

from flask import Blueprint, Response, jsonify, request

from jobs.blobs import StoreName
from jobs.job import is_dataset_id, is_model_id
from jobs.problems import Problem
from service.contract import Operation, declare, json_answer, read_query
from service.documents import DatasetPage, ModelPage, StoredQuery
from service.model_routes import stored_document
from service.parts import own

routes = Blueprint("storage", __name__)


@routes.get("/models")
@declare(
    Operation(
        summary="List models",
        tag="models",
        scope="read",
        query=StoredQuery,
        answers=(json_answer(200, "A page, by id.", ModelPage),),
        problems=("invalid_cursor",),
    )
)
def list_models() -> Response:
    """Give a page of the models, in the order of their ids."""
    return _page("models", "mdl_")


@routes.get("/datasets")
@declare(
    Operation(
        summary="List data sets",
        tag="datasets",
        scope="read",
        query=StoredQuery,
        answers=(json_answer(200, "A page, by id.", DatasetPage),),
        problems=("invalid_cursor",),
    )
)
def list_datasets() -> Response:
    """Give a page of the data sets, in the order of their ids."""
    return _page("datasets", "ds_")


def _page(store: StoreName, prefix: str) -> Response:
    query = read_query(request, StoredQuery)
    after = query.cursor or ""
    if after and not (is_model_id(after) if store == "models" else is_dataset_id(after)):
        raise Problem("invalid_cursor", f"{after[:80]!a} is no cursor of ours.")
    digests = (digest for digest in own().blobs.digests(store) if prefix + digest > after)
    # One that is removed meanwhile is left out; one more than asked for tells of a next page.
    metas = (meta for digest in digests if (meta := own().blobs.meta(store, digest)) is not None)
    found = list(islice(metas, query.limit + 1))
    data = [stored_document(store, meta) for meta in found[: query.limit]]
    following = data[-1]["id"] if len(found) > query.limit else None
    return jsonify({"data": data, "next_cursor": following})
