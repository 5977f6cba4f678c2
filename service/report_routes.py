"""The report of a job: JSON for programs, a page with charts for people."""

from flask import Blueprint, Response, jsonify, render_template, request

from jobs.job import Job
from jobs.problems import Problem
from jobs.report import Report
from service.contract import JSON, Answer, Operation, declare
from service.headers import PAGE_POLICY
from service.job_answers import find_job
from service.parts import own
from service.report_page import draw

routes = Blueprint("report", __name__)

_HTML = "text/html"


@routes.get("/jobs/<job_id>/report")
@declare(
    Operation(
        summary="Read the report",
        tag="artifacts",
        scope="read",
        answers=(
            Answer(200, "What was measured, or a page about it.", {JSON: Report, _HTML: None}),
        ),
        problems=("job_not_found", "no_report", "artifact_not_ready", "store_unavailable"),
    )
)
def show_report(job_id: str) -> Response:
    """Give what was measured about a job. A browser gets a page, also about a job that failed."""
    job = find_job(job_id)
    report = own().blobs.report(job_id)
    wanted = request.accept_mimetypes.best_match([JSON, _HTML], default=JSON)
    if wanted == _HTML and (report is not None or job.is_terminal):
        page = render_template("report.html", job=job, charts=_charts(report))
        response = Response(page, mimetype=_HTML)
        response.headers["Content-Security-Policy"] = PAGE_POLICY
    elif report is not None:
        response = jsonify(report)
    else:
        raise _missing(job)
    response.vary.add("Accept")
    return response


def _charts(report: dict[str, object] | None) -> object:
    return None if report is None else draw(Report.model_validate(report))


def _missing(job: Job) -> Problem:
    if job.recipe.measures:
        detail = f"{job.id} measures: see GET /models/{job.model}/sensitivities."
        return Problem("no_report", detail)
    if job.is_terminal:
        return Problem("no_report", f"{job.id} is {job.state} and measured nothing.")
    return Problem("artifact_not_ready", f"{job.id} is {job.state}; its report comes at the end.")
