"""A job as everyone sees it, and the only ways its state may change.

    queued ──claim──▶ running ──▶ succeeded | failed | cancelled
      ▲                  │
      └─────release──────┘        queued ──cancel──▶ cancelled

The rules live twice on purpose: in the Lua scripts, where they are atomic, and in the model that
`tests/jobs/test_store_model.py` checks them against.
"""

import os
import time
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from jobs.recipe import Recipe

JobState = Literal["queued", "running", "succeeded", "failed", "cancelled"]
TERMINAL_STATES: frozenset[JobState] = frozenset({"succeeded", "failed", "cancelled"})

Cache = Literal["hit", "miss", "bypass"]

LabelKey = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9._/-]+$")]
LabelValue = Annotated[str, Field(max_length=256)]
Labels = Annotated[dict[LabelKey, LabelValue], Field(max_length=32)]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True)


class Progress(_Value):
    """How far a running job has come."""

    phase: str = Field(max_length=64, description="What the runner does, such as `compress`.")
    step: int = Field(ge=0, description="The recipe's step at work, counted from 1.")
    steps: int = Field(ge=0, description="How many steps the recipe has.")
    # Numbers that JSON's readers all hold exactly.
    done: int = Field(ge=0, lt=2**53)
    total: int = Field(ge=0, lt=2**53)
    unit: str = Field(max_length=64, description="What done and total count, such as `bytes`.")
    eta_seconds: float | None = Field(None, description="Time left at the recent pace.")
    loss: float | None = Field(None, description="Of the last step, where a model is trained.")
    rows_per_second: float | None = Field(None, description="So far, where a model is trained.")


class Attempt(_Value):
    """One time that a worker took the job."""

    number: int = Field(ge=1)
    worker: str
    started_at: datetime
    ended_at: datetime | None = None
    outcome: str | None = Field(
        None, description="A terminal state, `requeued`, or None while the attempt runs."
    )
    reason: str | None = Field(None, description="The problem code that ended it, if any.")


class ArtifactFile(_Value):
    """One file of an artifact."""

    path: str = Field(description="Relative, with forward slashes.")
    bytes: int = Field(ge=0)
    blake3: str = Field(description="Hex.")
    sha256: str | None = Field(
        None, description="Hex; for large files it is computed after the job succeeded."
    )


class Artifact(_Value):
    """What a succeeded job made, unless it only measured."""

    bytes: int = Field(ge=0, description="Of all files.")
    digest: str = Field(description="`blake3:` and the digest of the sorted list of files.")
    files: tuple[ArtifactFile, ...]


class Job(_Value):
    """A job's record in the store."""

    id: str
    state: JobState
    revision: int = Field(description="Grows with every visible change; the ETag.")
    attempt: int = Field(description="Attempts counted so far.")
    attempts: tuple[Attempt, ...] = ()
    model: str
    recipe: Recipe
    labels: dict[str, str] = {}
    cancel_requested: bool = False
    stop_requested: bool = Field(
        False, description="Whether its training was asked to end, and keep what was trained."
    )
    progress: Progress | None = None
    queue_position: int | None = Field(None, description="0 is next; None unless queued.")
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    failure: dict[str, Any] | None = Field(None, description="A problem document.")
    artifact: Artifact | None = None
    cache: Cache | None = Field(
        None,
        description="`hit`: the artifact is that of an equal job; `miss`: there was none, and the "
        "job was run; `bypass`: it was to be run whatever there is. None until that is known.",
    )

    @property
    def is_terminal(self) -> bool:
        """Whether the job has ended for good."""
        return self.state in TERMINAL_STATES


class JobSpec(_Value):
    """What a client submitted: enough to rebuild the record when Redis was lost."""

    id: str
    model: str
    recipe: Recipe
    labels: dict[str, str] = {}
    created_ms: int
    use_cache: bool = Field(True, description="Whether the artifact of an equal job will do.")
    idempotency_key: str | None = Field(None, description="The client's, if it sent one.")
    fingerprint: str = Field("", description="Of the request, to tell a retry from another.")


class JobResult(_Value):
    """How a job ended, published once beside its spec and never changed."""

    id: str
    state: Literal["succeeded", "failed", "cancelled"]
    attempt: int
    artifact_folder: str | None = Field(
        None, description="Name of the artifact's folder inside the job's folder."
    )
    artifact: Artifact | None = None
    failure: dict[str, Any] | None = None
    cache: Cache | None = None
    finished_ms: int


def new_job_id() -> str:
    """Make an id that sorts by time: `job_` and a UUID version 7 (RFC 9562) in hex."""
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds << 80) | int.from_bytes(os.urandom(10), "big")
    value = (value & ~(0xF << 76)) | (0x7 << 76)
    value = (value & ~(0x3 << 62)) | (0x2 << 62)
    return f"job_{value:032x}"


def created_ms_of(job_id: str) -> int:
    """Give when a job was made, in milliseconds since the epoch, by its id alone."""
    return int(job_id.removeprefix("job_")[:12], 16)


def is_job_id(text: str) -> bool:
    """Tell whether a text has the form of a job id, and so is safe in a key or a path."""
    return _is_id(text, "job_", 32)


def is_model_id(text: str) -> bool:
    """Tell whether a text has the form of a model id."""
    return _is_id(text, "mdl_", 64)


def is_dataset_id(text: str) -> bool:
    """Tell whether a text has the form of a data set id."""
    return _is_id(text, "ds_", 64)


def _is_id(text: str, prefix: str, digits: int) -> bool:
    digest = text.removeprefix(prefix)
    return (
        text.startswith(prefix)
        and len(digest) == digits
        and all(character in "0123456789abcdef" for character in digest)
    )
