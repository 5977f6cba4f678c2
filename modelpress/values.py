"""What the service's documents become: small frozen values that keep the document as `raw`.

Members that this version does not know are ignored, and members that it could do without may be
missing, so that client and service can be upgraded apart from each other.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

JOB_STATES = ("queued", "running", "succeeded", "failed", "cancelled")
TERMINAL_STATES = frozenset({"succeeded", "failed", "cancelled"})


@dataclass(frozen=True)
class Model:
    """An uploaded model.

    Attributes:
        id: ``mdl_`` and the blake3 of the uploaded bytes.
        bytes: Size of the upload.
        format: What the service took it for, such as ``transformers``.
        tensors: How many tensors it has.
        parameters: How many numbers they hold.
        raw: The document as it came.
    """

    id: str
    bytes: int
    format: str
    tensors: int
    parameters: int
    raw: dict[str, Any] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Dataset:
    """An uploaded data set.

    Attributes:
        id: ``ds_`` and the blake3 of the uploaded bytes.
        bytes: Size of the upload.
        raw: The document as it came.
    """

    id: str
    bytes: int
    raw: dict[str, Any] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Progress:
    """How far a running job is.

    Attributes:
        phase: What it is doing, such as ``quantize``.
        step: The recipe's step at work, counted from 1.
        steps: How many steps the recipe has.
        done: How much of the phase is done.
        total: Out of how much.
        unit: What `done` and `total` count, such as ``bytes``.
        eta_seconds: Time left at the recent pace, where it is known.
        loss: Of the last step, where a model is trained.
        rows_per_second: So far, where a model is trained.
    """

    phase: str
    step: int
    steps: int
    done: int
    total: int
    unit: str
    eta_seconds: float | None
    loss: float | None = None
    rows_per_second: float | None = None


@dataclass(frozen=True)
class ArtifactFile:
    """One file of an artifact.

    Attributes:
        path: Where it belongs inside the artifact, as the service wrote it: not yet trusted.
        bytes: Its size.
        blake3: Its digest in hex.
    """

    path: str
    bytes: int
    blake3: str


@dataclass(frozen=True)
class Job:
    """A job as one answer showed it; it does not change when the job does.

    Attributes:
        id: The job's id.
        state: ``queued``, ``running``, ``succeeded``, ``failed`` or ``cancelled``.
        revision: Grows with every visible change.
        attempt: Attempts counted so far.
        model: Id of the model.
        recipe: The recipe, with the service's defaults filled in.
        labels: What the submitter attached.
        progress: Where a running job is, if it has said so.
        queue_position: Jobs ahead of a queued one, where known.
        created_at: When it was accepted, as RFC 3339 text.
        started_at: When its last attempt began.
        finished_at: When it ended.
        failure: The problem document of a failed job.
        files: The artifact's files; empty before there is one.
        cache: ``hit`` where the artifact is an equal job's, ``miss`` where there was none,
            ``bypass`` where none was wanted; None until that is known.
        raw: The document as it came.
    """

    id: str
    state: str
    revision: int
    attempt: int
    model: str
    recipe: dict[str, Any]
    labels: dict[str, str]
    progress: Progress | None
    queue_position: int | None
    created_at: str | None
    started_at: str | None
    finished_at: str | None
    failure: dict[str, Any] | None
    files: tuple[ArtifactFile, ...]
    cache: str | None
    raw: dict[str, Any] = field(repr=False, compare=False)

    @property
    def is_terminal(self) -> bool:
        """Whether the job has ended, well or badly."""
        return self.state in TERMINAL_STATES


def is_model_id(text: str) -> bool:
    """Whether a text is the id of an uploaded model rather than a path."""
    digest = text.removeprefix("mdl_")
    return digest != text and len(digest) == 64 and set(digest) <= set("0123456789abcdef")


def is_dataset_id(text: str) -> bool:
    """Whether a text is the id of an uploaded data set rather than a path."""
    return is_model_id("mdl_" + text.removeprefix("ds_")) and text.startswith("ds_")


def model_from(raw: dict[str, Any]) -> Model:
    """Read a model document.

    Args:
        raw: The document.

    Returns:
        The model.

    Raises:
        KeyError: It has no id.
    """
    return Model(
        id=raw["id"],
        bytes=raw.get("bytes", 0),
        format=raw.get("format", "unknown"),
        tensors=raw.get("tensors", 0),
        parameters=raw.get("parameters", 0),
        raw=raw,
    )


def dataset_from(raw: dict[str, Any]) -> Dataset:
    """Read a data set document.

    Args:
        raw: The document.

    Returns:
        The data set.

    Raises:
        KeyError: It has no id.
    """
    return Dataset(id=raw["id"], bytes=raw.get("bytes", 0), raw=raw)


def job_from(raw: dict[str, Any]) -> Job:
    """Read a job document.

    Args:
        raw: The document.

    Returns:
        The job.

    Raises:
        KeyError: A member is missing without which the job means nothing.
    """
    artifact = raw.get("artifact") or {}
    return Job(
        id=raw["id"],
        state=raw["state"],
        revision=raw["revision"],
        attempt=raw.get("attempt", 0),
        model=raw.get("model", ""),
        recipe=raw.get("recipe") or {},
        labels=raw.get("labels") or {},
        progress=_progress_from(raw.get("progress")),
        queue_position=raw.get("queue_position"),
        created_at=raw.get("created_at"),
        started_at=raw.get("started_at"),
        finished_at=raw.get("finished_at"),
        failure=raw.get("failure"),
        files=tuple(
            ArtifactFile(file["path"], file["bytes"], file["blake3"])
            for file in artifact.get("files", ())
        ),
        cache=raw.get("cache"),
        raw=raw,
    )


def _progress_from(raw: Mapping[str, Any] | None) -> Progress | None:
    if raw is None:
        return None
    return Progress(
        phase=raw.get("phase", ""),
        step=raw.get("step", 0),
        steps=raw.get("steps", 0),
        done=raw.get("done", 0),
        total=raw.get("total", 0),
        unit=raw.get("unit", ""),
        eta_seconds=raw.get("eta_seconds"),
        loss=raw.get("loss"),
        rows_per_second=raw.get("rows_per_second"),
    )
