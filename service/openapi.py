"""openapi.yaml, written from the routes' declarations and the pydantic models.

``python -m service.openapi > openapi.yaml`` writes it, ``--check`` compares it with the one in the
current folder.
"""

import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from flask import Flask
from openapi_pydantic import OpenAPI
from openapi_pydantic.util import PydanticSchema, construct_open_api_with_schema_class
from pydantic import BaseModel

from jobs.problems import CATALOGUE
from jobs.settings import Settings
from service.application import create_app
from service.contract import (
    ATTRIBUTE,
    COMMON_PROBLEMS,
    KEY_PROBLEMS,
    REQUEST_HEADERS,
    RESPONSE_HEADERS,
    Answer,
    Form,
    Operation,
)
from service.documents import ProblemDocument
from service.problems import PROBLEM_JSON

FILE_NAME = "openapi.yaml"
_VARIABLE = re.compile(r"<(?:[a-z]+:)?([a-z_]+)>")
_TEXT = {"type": "string"}
_PROBLEM_HEADERS = {
    401: ("WWW-Authenticate",),
    429: ("Retry-After", "RateLimit"),
    503: ("Retry-After",),
    507: ("Retry-After",),
}
_KEY = "key"
_KEY_SCHEME = {
    "type": "http",
    "scheme": "bearer",
    "description": "An API key. None is needed on a service that has none and listens on loopback.",
}


def operations(app: Flask) -> Iterator[tuple[str, str, Operation, str]]:
    """Walk over the routes of an application.

    Args:
        app: The application.

    Yields:
        The path as OpenAPI writes it, the method, the declaration and the view's docstring.

    Raises:
        LookupError: A route has no declaration.
    """
    for rule in sorted(app.url_map.iter_rules(), key=lambda rule: rule.rule):
        view = app.view_functions[rule.endpoint]
        operation = getattr(view, ATTRIBUTE, None)
        if operation is None:
            raise LookupError(f"{rule.rule} has no declaration")
        for method in sorted((rule.methods or set()) - {"OPTIONS"}):
            if method != "HEAD" or operation.with_head:
                doc = " ".join((view.__doc__ or "").split())
                yield _VARIABLE.sub(r"{\1}", rule.rule), method.lower(), operation, doc


def document(app: Flask) -> dict[str, Any]:
    """Give the OpenAPI 3.1 document of an application.

    Args:
        app: The application.

    Returns:
        Plain values. Equal declarations give equal documents.

    Raises:
        LookupError: A route has no declaration.
    """
    paths: dict[str, dict[str, Any]] = defaultdict(dict)
    for path, method, operation, doc in operations(app):
        paths[path][method] = _operation(path, method, operation, doc)
    bare = OpenAPI.model_validate(
        {
            "openapi": "3.1.1",
            "info": {
                "title": "Modelpress",
                "version": metadata.version("modelpress"),
                "description": "Makes PyTorch models smaller, inside a memory budget.",
            },
            "paths": paths,
            "components": {"securitySchemes": {_KEY: _KEY_SCHEME}},
        }
    )
    full = construct_open_api_with_schema_class(bare)
    return full.model_dump(mode="json", by_alias=True, exclude_none=True)


def render(app: Flask) -> str:
    """Give the document of an application as YAML."""
    return yaml.safe_dump(document(app), sort_keys=False, width=100, allow_unicode=True)


def _operation(path: str, method: str, operation: Operation, doc: str) -> dict[str, Any]:
    name = "_".join(re.findall(r"[a-z]+", path)) or "root"
    members: dict[str, Any] = {
        "operationId": f"{method}_{name}",
        "summary": operation.summary,
        "description": doc,
        "tags": [operation.tag],
        "parameters": list(_parameters(path, operation)),
        "responses": {
            **{str(answer.status): _answer(answer, method) for answer in operation.answers},
            **_problems(operation, method),
        },
    }
    if operation.scope is not None:
        members["security"] = [{_KEY: [operation.scope]}, {}]
    if operation.body is not None:
        members["requestBody"] = {
            "required": operation.needs_body,
            "content": {kind: _content(model) for kind, model in operation.body.items()},
        }
    return members


def _parameters(path: str, operation: Operation) -> Iterator[dict[str, Any]]:
    for name in re.findall(r"{([a-z_]+)}", path):
        yield {"name": name, "in": "path", "required": True, "schema": _TEXT}
    if operation.query is not None:
        schema = operation.query.model_json_schema()
        for name, member in schema.get("properties", {}).items():
            yield {
                "name": name,
                "in": "query",
                "description": member.pop("description", ""),
                "schema": member,
            }
    for name in operation.headers:
        yield {
            "name": name,
            "in": "header",
            "description": REQUEST_HEADERS[name],
            "schema": _TEXT,
        }


def _answer(answer: Answer, method: str) -> dict[str, Any]:
    members: dict[str, Any] = {"description": answer.description}
    if answer.headers:
        members["headers"] = {
            name: {"description": RESPONSE_HEADERS[name], "schema": _TEXT}
            for name in answer.headers
        }
    if answer.content and method != "head":
        members["content"] = {kind: _content(model) for kind, model in answer.content.items()}
    return members


def _problems(operation: Operation, method: str) -> dict[str, Any]:
    by_status: dict[int, list[str]] = defaultdict(list)
    asking = KEY_PROBLEMS if operation.scope is not None else ()
    for code in (*operation.problems, *asking, *COMMON_PROBLEMS):
        by_status[CATALOGUE[code].status].append(code)
    return {
        str(status): _answer(
            Answer(
                status,
                ", ".join(f"`{c}`" for c in sorted(codes)),
                {PROBLEM_JSON: ProblemDocument},
                _PROBLEM_HEADERS.get(status, ()),
            ),
            method,
        )
        for status, codes in sorted(by_status.items())
    }


def _content(model: type[BaseModel] | Form | None) -> dict[str, Any]:
    if model is None:
        return {"schema": {}}
    if isinstance(model, Form):
        return {"schema": _form(model)}
    return {"schema": PydanticSchema(schema_class=model)}


def _form(form: Form) -> dict[str, Any]:
    files = {
        name: {**_TEXT, "contentMediaType": "application/octet-stream", "description": text}
        for name, text in form.files.items()
    }
    texts = {name: {**_TEXT, "description": text} for name, text in form.texts.items()}
    return {"type": "object", "properties": files | texts, "required": list(form.required)}


def main(arguments: list[str]) -> int:
    """Write the document to stdout, or compare it with the file.

    Args:
        arguments: `--check`, or nothing.

    Returns:
        The exit status: 1 where the file is stale.
    """
    with tempfile.TemporaryDirectory() as folder:
        text = render(create_app(Settings(data_dir=Path(folder))))
    if arguments == ["--check"]:
        path = Path(FILE_NAME)
        if path.exists() and path.read_text() == text:
            return 0
        sys.stderr.write(f"{FILE_NAME} is stale: python -m service.openapi > {FILE_NAME}\n")
        return 1
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
