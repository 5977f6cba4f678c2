"""The artifact of a job: all of it at once, or one file."""

from pathlib import PurePosixPath

from flask import Blueprint, Response, request

from jobs.job import Artifact, ArtifactFile, Job
from jobs.problems import Problem
from service.contract import BINARY, JSON, Answer, Operation, declare
from service.downloads import Download, send
from service.job_answers import find_job, with_digests
from service.parts import own
from service.segments import FileSegment, tar_segments

routes = Blueprint("artifact", __name__)

_TAR = "application/x-tar"
_HEADERS = ("ETag", "Accept-Ranges", "Content-Disposition", "Repr-Digest")
_ANSWERS = (
    Answer(200, "The bytes.", {BINARY: None, _TAR: None, JSON: None}, _HEADERS),
    Answer(206, "The range.", {BINARY: None, _TAR: None, JSON: None}, (*_HEADERS, "Content-Range")),
    Answer(304, "The client has it.", headers=("ETag",)),
)
_PROBLEMS = (
    "job_not_found",
    "artifact_not_ready",
    "no_artifact",
    "file_not_found",
    "range_not_satisfiable",
    "store_unavailable",
)
_CONDITIONS = ("Range", "If-Range", "If-None-Match")


@routes.get("/jobs/<job_id>/artifact")
@declare(
    Operation(
        summary="Download the artifact",
        tag="artifacts",
        scope="read",
        headers=_CONDITIONS,
        answers=_ANSWERS,
        problems=_PROBLEMS,
        with_head=True,
    )
)
def show_artifact(job_id: str) -> Response:
    """Give an artifact of one file as that file, and one of several as a tar of them."""
    job = with_digests(find_job(job_id))
    artifact = _artifact_of(job)
    if len(artifact.files) == 1:
        return send(request, _file_download(job, artifact.files[0]))
    segments = tar_segments((file.path, _segment(job, file)) for file in artifact.files)
    etag = f"{artifact.digest}.tar"
    return send(request, Download(segments, etag, f"{job.id}.tar", _TAR))


@routes.get("/jobs/<job_id>/artifact/<path:path>")
@declare(
    Operation(
        summary="Download one file of the artifact",
        tag="artifacts",
        scope="read",
        headers=_CONDITIONS,
        answers=_ANSWERS,
        problems=_PROBLEMS,
        with_head=True,
    )
)
def show_file(job_id: str, path: str) -> Response:
    """Give one file, whole or from where an earlier download broke off."""
    job = with_digests(find_job(job_id))
    # Only what the artifact lists is looked for, so a path cannot lead anywhere else.
    for file in _artifact_of(job).files:
        if file.path == path:
            return send(request, _file_download(job, file))
    raise Problem("file_not_found", f"The artifact of {job_id} has no file {path[:200]!a}.")


def _artifact_of(job: Job) -> Artifact:
    if job.artifact is not None:
        return job.artifact
    if job.recipe.measures:
        detail = f"{job.id} measures, and makes no artifact: GET /models/{job.model}/sensitivities."
        raise Problem("no_artifact", detail)
    if job.is_terminal:
        raise Problem("no_artifact", f"{job.id} is {job.state}, so it has no artifact.")
    raise Problem("artifact_not_ready", f"{job.id} is {job.state}.")


def _file_download(job: Job, file: ArtifactFile) -> Download:
    return Download(
        (_segment(job, file),),
        f"blake3:{file.blake3}",
        PurePosixPath(file.path).name,
        JSON if file.path.endswith(".json") else BINARY,
        bytes.fromhex(file.sha256) if file.sha256 else None,
    )


def _segment(job: Job, file: ArtifactFile) -> FileSegment:
    folder = own().blobs.artifact_folder(job.id)
    path = None if folder is None else folder / file.path
    if path is None or not path.is_file() or path.stat().st_size != file.bytes:
        raise Problem("file_not_found", f"{file.path} of {job.id} is no longer on the disk.")
    return FileSegment(path, file.bytes)
