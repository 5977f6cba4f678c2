"""The contract for people: the OpenAPI document, Swagger UI over it, and what each code means."""

from functools import cache
from importlib import resources
from pathlib import Path

from flask import Blueprint, Response, current_app, render_template, send_from_directory

from jobs.problems import CATALOGUE
from service.contract import Answer, Operation, declare
from service.headers import PAGE_POLICY

routes = Blueprint("docs", __name__)

_HTML = "text/html"
# Swagger UI writes style attributes and draws its icons from data URLs.
_SWAGGER_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'"
)


@routes.get("/openapi.yaml")
@declare(
    Operation(
        summary="This contract",
        tag="service",
        scope=None,
        answers=(Answer(200, "OpenAPI 3.1.", {"application/yaml": None}),),
    )
)
def show_openapi() -> Response:
    """Give the contract, written from the code that answers."""
    from service.openapi import render  # noqa: PLC0415 - it builds the application

    return Response(render(current_app), mimetype="application/yaml")


@routes.get("/docs")
@declare(
    Operation(
        summary="The contract, to read and try",
        tag="service",
        scope=None,
        answers=(Answer(200, "A page.", {_HTML: None}),),
    )
)
def show_docs() -> Response:
    """Draw Swagger UI."""
    return _page(render_template("docs.html"), _SWAGGER_POLICY)


@routes.get("/docs/problems")
@declare(
    Operation(
        summary="Every problem code",
        tag="service",
        scope=None,
        answers=(Answer(200, "A page with an anchor for each code.", {_HTML: None}),),
    )
)
def show_problems() -> Response:
    """List every code that a problem document can carry."""
    return _page(render_template("problems.html", catalogue=CATALOGUE), PAGE_POLICY)


@routes.get("/docs/assets/<path:name>")
@declare(
    Operation(
        summary="Scripts and styles of the pages",
        tag="service",
        scope=None,
        answers=(Answer(200, "The file.", {"text/javascript": None, "text/css": None}),),
        problems=("not_found",),
    )
)
def show_asset(name: str) -> Response:
    """Give a file of Swagger UI, or the script that starts it."""
    folder = Path(__file__).parent / "templates" if name == "docs.js" else _swagger_folder()
    return send_from_directory(folder, name, max_age=3600)


@cache
def _swagger_folder() -> Path:
    return Path(str(resources.files("flask_openapi3_swagger.templates") / "swagger"))


def _page(html: str, policy: str) -> Response:
    response = Response(html, mimetype=_HTML)
    response.headers["Content-Security-Policy"] = policy
    return response
