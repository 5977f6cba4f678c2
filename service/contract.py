"""What each route promises, declared beside it. `service.openapi` writes it down."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from flask import Request
from pydantic import BaseModel, ValidationError

from jobs.keys import Scope
from jobs.problems import Detail, Problem

JSON = "application/json"
BINARY = "application/octet-stream"
ATTRIBUTE = "operation"

#: What can go wrong at every address.
COMMON_PROBLEMS = ("internal_error", "malformed_request", "address_too_long", "headers_too_large")

#: What can go wrong besides where a key is asked for.
KEY_PROBLEMS = ("key_required", "key_invalid", "scope_missing", "foreign_page", "rate_limited")

#: Request headers that routes understand.
REQUEST_HEADERS: dict[str, str] = {
    "Idempotency-Key": "At most 255 characters, quoted or bare. The same key and request find the "
    "same job for 7 days.",
    "Cache-Control": "`no-cache`: run the job even where an equal one has its artifact.",
    "If-None-Match": "The ETag that the client has; 304 where it is still the right one.",
    "Prefer": "`wait=N`: answer when the job has changed, or after N seconds (at most 60).",
    "Last-Event-ID": "Id of the last event seen; the stream goes on behind it.",
    "Range": "One range of bytes.",
    "If-Range": "Take the range only where the file still has this ETag.",
    "Content-Digest": "RFC 9530: sha-256, sha-512 or blake3 of the body; checked.",
    "Repr-Digest": "RFC 9530: sha-256, sha-512 or blake3 of the body; checked.",
}

#: Response headers that answers may carry.
RESPONSE_HEADERS: dict[str, str] = {
    "Location": "Where the resource is.",
    "WWW-Authenticate": "`Bearer`: how to say who asks.",
    "Retry-After": "Seconds until it is worth asking again.",
    "RateLimit": "What is left of the requests per minute, where they are limited.",
    "ETag": "Strong validator.",
    "Link": "`rel=next`: the next page.",
    "Idempotent-Replayed": "`true`: the job was made by an earlier request.",
    "Preference-Applied": "The wait that was honoured.",
    "Accept-Ranges": "`bytes`.",
    "Content-Range": "Which bytes these are.",
    "Content-Disposition": "The file's name.",
    "Repr-Digest": "RFC 9530: sha-256 of the whole file, once it is known.",
}

Query = TypeVar("Query", bound=BaseModel)
View = TypeVar("View", bound=Callable[..., Any])


@dataclass(frozen=True)
class Answer:
    """One way in which a route answers.

    Attributes:
        status: The HTTP status.
        description: When.
        content: Model by media type; None where it is no JSON. Empty without a body.
        headers: Keys of `RESPONSE_HEADERS`.
    """

    status: int
    description: str
    content: Mapping[str, type[BaseModel] | None] = field(default_factory=dict)
    headers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Form:
    """A multipart/form-data body.

    Attributes:
        files: Description of each part that carries a file, by name.
        texts: Description of each part that is a short text, by name.
        required: The parts that must be there.
    """

    files: Mapping[str, str]
    texts: Mapping[str, str] = field(default_factory=dict)
    required: tuple[str, ...] = ()


@dataclass(frozen=True)
class Operation:
    """What a route promises.

    Attributes:
        summary: One line.
        tag: Under which heading.
        scope: What the key must be for; None where everybody may ask.
        answers: How it answers when all goes well.
        problems: Codes of the problems that it may answer with, beside the common ones.
        query: The query's parameters.
        headers: Keys of `REQUEST_HEADERS` that it understands.
        body: Model by media type, or a form; None for bytes.
        needs_body: Whether there has to be one.
        with_head: Whether HEAD is part of the contract.
    """

    summary: str
    tag: str
    scope: Scope | None
    answers: tuple[Answer, ...]
    problems: tuple[str, ...] = ()
    query: type[BaseModel] | None = None
    headers: tuple[str, ...] = ()
    body: Mapping[str, type[BaseModel] | Form | None] | None = None
    needs_body: bool = True
    with_head: bool = False


def declare(operation: Operation) -> Callable[[View], View]:
    """Attach its contract to a view.

    Args:
        operation: The contract.

    Returns:
        A decorator that returns the view itself.
    """

    def attach(view: View) -> View:
        setattr(view, ATTRIBUTE, operation)
        return view

    return attach


def json_answer(status: int, description: str, model: type[BaseModel], *headers: str) -> Answer:
    """Declare an answer in JSON."""
    return Answer(status, description, {JSON: model}, headers)


def read_query(request: Request, model: type[Query]) -> Query:
    """Check a request's query.

    Args:
        request: The request.
        model: The query's model. A member that is a tuple takes a parameter's every occurrence.

    Returns:
        The query.

    Raises:
        Problem: `malformed_request`, with a pointer to each parameter.
    """
    members: dict[str, Any] = {}
    for name, values in request.args.lists():
        known = model.model_fields.get(name)
        is_list = known is not None and isinstance(known.default, tuple)
        if len(values) > 1 and not is_list:
            raise Problem("malformed_request", f"The query names {name!r} more than once.")
        members[name] = tuple(values) if is_list else values[0]
    return check(model, members, "The query")


def check(model: type[Query], members: object, what: str) -> Query:
    """Check plain values against a model.

    Args:
        model: The model.
        members: The values.
        what: What they are, for the problem's detail.

    Returns:
        The model.

    Raises:
        Problem: `malformed_request`, with a pointer for each fault.
    """
    try:
        return model.model_validate(members)
    except ValidationError as error:
        details = [
            Detail(
                "".join(f"/{_escape(str(part))}" for part in fault["loc"]),
                fault["type"],
                fault["msg"],
            )
            for fault in error.errors(include_url=False, include_input=False)
        ]
        shown = "; ".join(f"{d.pointer or '/'}: {d.detail}" for d in details[:5])
        raise Problem(
            "malformed_request", f"{what} is not valid: {shown}.", errors=details
        ) from error


def _escape(part: str) -> str:
    return part.replace("~", "~0").replace("/", "~1")
