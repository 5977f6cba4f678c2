"""The documents that the service answers with and reads, as the contract publishes them."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from jobs.job import Job, JobState, Labels
from jobs.keys import Scope
from jobs.recipe import Recipe

Pointer = Annotated[str, Field(description="JSON pointer (RFC 6901) into the request.")]


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class _Input(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Fault(_Answer):
    """One thing wrong, and where."""

    pointer: Pointer
    code: str
    detail: str


class ProblemDocument(_Answer):
    """What went wrong (RFC 9457). A failed job carries the same members."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: str = Field(description="Where the code is explained.")
    title: str
    status: int
    code: str = Field(description="Machine-readable; see /docs/problems.")
    detail: str = Field(description="What is wrong here, and what to do instead.")
    retryable: bool = Field(description="Whether the same request may succeed later.")
    errors: tuple[Fault, ...]
    instance: str = Field(description="The request's id, under which the service logged it.")


class ModelDocument(_Answer):
    """An uploaded model: what its headers tell."""

    id: str = Field(description="`mdl_` and the blake3 of the uploaded bytes.")
    bytes: int = Field(description="Size of the upload.")
    created_at: datetime
    format: str = Field(
        description="`safetensors`, `sharded-safetensors`, `transformers` or `pt2`."
    )
    architecture: str | None = Field(description="From config.json.")
    files: tuple[str, ...] = Field(description="Its safetensors files, or model.pt2.")
    tensors: int
    parameters: int
    tensor_bytes: int
    parameters_by_dtype: dict[str, int]
    bytes_by_dtype: dict[str, int]
    is_quantized: bool = Field(description="Its config.json names a quantization; no job takes it.")
    ignored_files: tuple[str, ...] = Field(description="Files of the archive that were not stored.")
    links: dict[str, str]


class ModelPage(_Answer):
    """Some models, by their ids."""

    data: tuple[ModelDocument, ...]
    next_cursor: str | None = Field(description="For the next page; null on the last.")


class DatasetDocument(_Answer):
    """An uploaded data set."""

    id: str = Field(description="`ds_` and the blake3 of the uploaded bytes.")
    bytes: int = Field(description="Size of the upload.")
    created_at: datetime
    links: dict[str, str]


class JobDocument(Job):
    """A job."""

    links: dict[str, str]


class DatasetPage(_Answer):
    """Some data sets, by their ids."""

    data: tuple[DatasetDocument, ...]
    next_cursor: str | None = Field(description="For the next page; null on the last.")


class JobPage(_Answer):
    """Some jobs, newest first."""

    data: tuple[JobDocument, ...]
    next_cursor: str | None = Field(description="For the next page; null on the last.")


class EventDocument(_Answer):
    """One visible change of a job."""

    id: str
    type: str = Field(
        description="A state, `progress`, `cancel_requested`, `stop_requested`, `requeued`, "
        "or `snapshot` where events before it are no longer kept."
    )
    data: dict[str, Any]


class EventPage(_Answer):
    """Events of a job, oldest first."""

    data: tuple[EventDocument, ...]
    next: str = Field(description="What to pass as `after` to go on from here.")


class Health(_Answer):
    """That the service answers."""

    status: str


class Limits(_Answer):
    """What a request may not pass."""

    max_upload_bytes: int
    max_extracted_bytes: int
    max_recipe_bytes: int
    max_wait_seconds: int


class Capabilities(_Answer):
    """What this service can do."""

    version: str
    formats_in: dict[str, str] = Field(description="Name and explanation.")
    formats_out: dict[str, str] = Field(description="Name and explanation.")
    steps: dict[str, Any] = Field(description="JSON schema of each kind of step, by its op.")
    limits: Limits
    sandbox: Literal["bwrap", "none", "unknown"] = Field(
        description="What is around each job's process; `unknown` until a worker has said so."
    )
    idempotency_ttl_seconds: int = Field(description="How long an Idempotency-Key is remembered.")


class SubmitRequest(_Input):
    """A job to run on an uploaded model."""

    model: str = Field(description="Id of an uploaded model.")
    recipe: Recipe = Field(alias="spec")
    labels: Labels = {}


class CancelRequest(_Input):
    """How a job is to stop."""

    keep: bool = Field(
        False,
        description="End its training after the step that it is at, and go on with what was "
        "trained, instead of ending the job.",
    )


class LabelsDocument(_Input):
    """The labels of a form."""

    labels: Labels


class KeyRequest(_Input):
    """A key to make."""

    name: str = Field(min_length=1, max_length=100, description="What it is for.")
    scopes: frozenset[Scope] = Field(
        frozenset({"read", "submit"}),
        min_length=1,
        description="`read`: look and download; `submit`: upload, submit, cancel and remove; "
        "`admin`: keys.",
    )
    tenant: str | None = Field(
        None, description="Whose; by default the asking key's. Only keys of `default` may differ."
    )
    expires_at: AwareDatetime | None = Field(None, description="When it ends; null for never.")


class KeyDocument(_Answer):
    """What is known about a key; the key itself is not."""

    id: str
    tenant: str
    scopes: tuple[Scope, ...]
    name: str
    last_characters: str = Field(description="How the key ends, to tell it from others.")
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    links: dict[str, str]


class NewKeyDocument(KeyDocument):
    """A key that was just made."""

    key: str = Field(description="The key. It is told here and never again.")


class KeyList(_Answer):
    """Keys, oldest first."""

    data: tuple[KeyDocument, ...]


class JobsQuery(_Input):
    """Which jobs to list."""

    limit: int = Field(50, ge=1, le=200)
    cursor: str | None = Field(None, description="`next_cursor` of the page before.")
    state: JobState | None = None
    label: tuple[Annotated[str, Field(pattern=r"^[^:]+:.*$")], ...] = Field(
        (), max_length=32, description="`key:value`; a job must have all of them."
    )


class StoredQuery(_Input):
    """Which models or data sets to list."""

    limit: int = Field(50, ge=1, le=200)
    cursor: str | None = Field(None, description="`next_cursor` of the page before.")


class EventsQuery(_Input):
    """From where to go on."""

    after: str = Field(
        "0", pattern=r"^\d{1,19}(-\d{1,19})?$", description="Id of the last event seen."
    )
