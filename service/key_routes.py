"""API keys: made, listed, revoked."""

from flask import Blueprint, Response, jsonify, request

from jobs.keys import Key
from jobs.problems import Detail, Problem
from jobs.tenants import is_tenant
from service.contract import JSON, Answer, Operation, check, declare, json_answer
from service.documents import KeyDocument, KeyList, KeyRequest, NewKeyDocument
from service.identity import identity
from service.parts import parts
from service.receive import MAX_TEXT_BYTES, Body, json_of

routes = Blueprint("keys", __name__)


@routes.post("/keys")
@declare(
    Operation(
        summary="Make a key",
        tag="keys",
        scope="admin",
        body={JSON: KeyRequest},
        answers=(json_answer(201, "The key, this once.", NewKeyDocument, "Location"),),
        problems=(
            "unsupported_media_type",
            "operator_only",
            "too_large",
            "upload_truncated",
            "digest_mismatch",
        ),
    )
)
def create_key() -> Response:
    """Make a key for the tenant that asks; one of `default` may make one for any.

    To rotate a key, make its successor, hand that out, and then revoke the first.
    """
    if request.mimetype != JSON:
        raise Problem("unsupported_media_type", f"{request.mimetype[:80]!a} is not {JSON}.")
    asked = check(KeyRequest, json_of(Body(request, MAX_TEXT_BYTES)), "The body")
    tenant = asked.tenant if asked.tenant is not None else identity().tenant
    if tenant != identity().tenant and not identity().is_operator:
        raise Problem("operator_only", "A key of this tenant makes keys of this tenant alone.")
    if not is_tenant(tenant):
        detail = f"{tenant[:80]!a} is not 1 to 32 of a-z, 0-9 and -."
        errors = [Detail("/tenant", "malformed", detail)]
        raise Problem("malformed_request", detail, errors=errors)
    text, key = parts().keys.create(tenant, asked.scopes, asked.name, asked.expires_at)
    response = jsonify({**_document(key).model_dump(mode="json"), "key": text})
    response.status_code = 201
    response.headers["Location"] = f"/keys/{key.id}"
    return response


@routes.get("/keys")
@declare(
    Operation(
        summary="List keys",
        tag="keys",
        scope="admin",
        answers=(json_answer(200, "All of them, oldest first.", KeyList),),
    )
)
def list_keys() -> Response:
    """Give what is known about the keys of the tenant that asks; `default` sees those of all."""
    keys = [key for key in parts().keys.all() if _is_ours(key)]
    return jsonify(KeyList(data=tuple(map(_document, keys))).model_dump(mode="json"))


@routes.delete("/keys/<key_id>")
@declare(
    Operation(
        summary="Revoke a key",
        tag="keys",
        scope="admin",
        answers=(Answer(204, "It is good for nothing from now on."),),
        problems=("key_not_found",),
    )
)
def revoke_key(key_id: str) -> Response:
    """End a key. It stays in the list; revoking it again does no harm."""
    key = parts().keys.find(key_id)
    if key is None or not _is_ours(key):
        raise Problem("key_not_found", f"There is no key {key_id[:80]!a}.")
    parts().keys.revoke(key)
    return Response(status=204)


def _is_ours(key: Key) -> bool:
    return identity().is_operator or key.tenant == identity().tenant


def _document(key: Key) -> KeyDocument:
    known = key.model_dump(exclude={"digest"})
    return KeyDocument(**known, links={"self": f"/keys/{key.id}"})
