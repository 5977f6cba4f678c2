"""The one error type of the project, and the catalogue of everything that can go wrong.

Every refused request and every failed job carries a code from `CATALOGUE`. The service renders a
`Problem` as RFC 9457 `application/problem+json`; a failed job stores the same members, so a client
handles both with the same code.
"""

import errno
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """What one problem code means.

    Attributes:
        status: The HTTP status of a request refused for it, also shown in a failed job.
        title: One short sentence, the same for every occurrence.
        retryable: Whether the same request may succeed later without a change.
    """

    status: int
    title: str
    retryable: bool = False


CATALOGUE: dict[str, Kind] = {
    # The request itself.
    "malformed_request": Kind(400, "The request could not be read"),
    "malformed_multipart": Kind(400, "The multipart body could not be read"),
    "upload_truncated": Kind(400, "The upload ended before its announced length", retryable=True),
    "digest_mismatch": Kind(400, "The bytes received are not the bytes announced", retryable=True),
    "invalid_cursor": Kind(400, "The page cursor is not one of ours"),
    "key_required": Kind(401, "The request needs an API key"),
    "key_invalid": Kind(401, "The API key is not valid"),
    "scope_missing": Kind(403, "The API key is not for this"),
    "foreign_page": Kind(403, "The request came from another site's page"),
    "operator_only": Kind(403, "Only keys of the tenant default may do this"),
    "not_found": Kind(404, "There is nothing at this address"),
    "model_not_found": Kind(404, "There is no such model"),
    "invalid_dataset": Kind(422, "The data set does not fit"),
    "evaluation_failed": Kind(422, "The model could not be run"),
    "evaluation_unsupported": Kind(422, "The model cannot be run"),
    "dataset_in_use": Kind(409, "A job still needs the data set", retryable=True),
    "dataset_not_found": Kind(404, "There is no such data set"),
    "job_not_found": Kind(404, "There is no such job"),
    "key_not_found": Kind(404, "There is no such API key"),
    "file_not_found": Kind(404, "The artifact holds no such file"),
    "method_not_allowed": Kind(405, "This address does not take that method"),
    "not_acceptable": Kind(406, "This address cannot answer in the form asked for"),
    "job_not_terminal": Kind(409, "The job has not ended yet", retryable=True),
    "nothing_to_keep": Kind(409, "Nothing was trained that could be kept"),
    "artifact_not_ready": Kind(409, "The job has no artifact yet", retryable=True),
    "no_artifact": Kind(409, "The job ended without an artifact"),
    "no_report": Kind(409, "The job has no report", retryable=True),
    "not_measured": Kind(409, "The model was not measured yet"),
    "model_in_use": Kind(409, "A job still needs the model", retryable=True),
    "length_required": Kind(411, "The upload does not say how long it is"),
    "too_large": Kind(413, "The body is larger than the limit"),
    "address_too_long": Kind(414, "The address and its query are longer than the limit"),
    "headers_too_large": Kind(431, "The request's headers are larger than the limit"),
    "unsupported_media_type": Kind(415, "The body is of a type that this address does not take"),
    "range_not_satisfiable": Kind(416, "The range lies outside the file"),
    "unsupported_format": Kind(415, "The model is in a format that is not accepted"),
    "idempotency_key_reused": Kind(422, "The Idempotency-Key was used for a different request"),
    "rate_limited": Kind(429, "Too many requests", retryable=True),
    "too_many_uploads": Kind(429, "Too many uploads at a time", retryable=True),
    "queue_full": Kind(429, "Too many jobs wait", retryable=True),
    # The recipe.
    "invalid_recipe": Kind(422, "The recipe is not valid"),
    # The model: container.
    "empty_upload": Kind(422, "The upload is empty"),
    "invalid_archive": Kind(422, "The archive is damaged or not allowed"),
    "unsafe_archive": Kind(422, "The archive holds an entry that is not allowed"),
    "invalid_checkpoint": Kind(422, "The files do not make one checkpoint"),
    "invalid_config": Kind(422, "config.json is not valid"),
    # The model: safetensors header.
    "invalid_header": Kind(422, "The safetensors header is not valid"),
    "header_too_large": Kind(422, "The safetensors header is larger than the limit"),
    "duplicate_tensor": Kind(422, "Two tensors have the same name"),
    "invalid_tensor": Kind(422, "A tensor's entry in the header is not valid"),
    "tensor_overlap": Kind(422, "Two tensors share bytes"),
    "tensor_gap": Kind(422, "Bytes of the file belong to no tensor"),
    "tensor_out_of_bounds": Kind(422, "A tensor reaches past the end of the file"),
    # The model: an exported program.
    "invalid_program": Kind(422, "The exported program is not valid"),
    "unsafe_program": Kind(422, "The exported program holds code or objects"),
    "unsupported_operator": Kind(422, "The exported program calls an operator not accepted"),
    "invalid_expression": Kind(422, "A symbolic expression of the program is not accepted"),
    "step_unsupported": Kind(422, "The step cannot be applied to this kind of model"),
    # What a job finds out.
    "nothing_changed": Kind(422, "The job would change nothing"),
    "target_unreachable": Kind(422, "The artifact cannot be as small as target_bytes"),
    "goal_unreachable": Kind(422, "No recipe reaches the goal"),
    "already_quantized": Kind(422, "The model is already quantized"),
    "non_finite_weight": Kind(422, "A weight holds a NaN or an infinity"),
    "shrink_unsupported": Kind(422, "The model cannot be shrunk"),
    "unknown_architecture": Kind(422, "The installed transformers does not know this architecture"),
    "output_unsupported": Kind(422, "The output format cannot hold this model"),
    "finetune_unsupported": Kind(422, "The model cannot be trained like that"),
    "training_diverged": Kind(422, "The training went astray"),
    "gate_failed": Kind(422, "The result does not pass the gate"),
    "out_of_memory": Kind(422, "The job ran out of memory"),
    "memory_budget_exceeded": Kind(422, "The job used more memory than its budget"),
    "disk_budget_exceeded": Kind(422, "The artifact is larger than the disk budget"),
    "runtime_exceeded": Kind(422, "The job ran longer than its budget"),
    "runner_overreached": Kind(422, "The job's process took more than any job needs"),
    "runner_died": Kind(500, "The process that ran the job died", retryable=True),
    "worker_lost": Kind(500, "The worker stopped renewing its lease", retryable=True),
    "invalid_artifact": Kind(500, "The artifact did not pass its check"),
    "drained": Kind(503, "The worker was shut down", retryable=True),
    # The service's own state.
    "internal_error": Kind(500, "Something unexpected happened", retryable=True),
    "sandbox_unavailable": Kind(503, "No sandbox can be made for the job", retryable=True),
    "service_unavailable": Kind(503, "The service cannot be reached", retryable=True),
    "store_unavailable": Kind(503, "The job store cannot be reached", retryable=True),
    "storage_unavailable": Kind(503, "The data folder cannot be written", retryable=True),
    "storage_quota": Kind(507, "The tenant stores as much as it may"),
    "storage_full": Kind(507, "The storage is full", retryable=True),
}


@dataclass(frozen=True)
class Detail:
    """One thing wrong, and where.

    Attributes:
        pointer: RFC 6901 JSON pointer into the request, or "" for the whole of it.
        code: A short machine-readable reason.
        detail: What is wrong and what to do instead.
    """

    pointer: str
    code: str
    detail: str


class Problem(Exception):  # noqa: N818 - RFC 9457 calls it a problem
    """Something went wrong in a way that the catalogue names.

    Args:
        code: A key of `CATALOGUE`.
        detail: What is wrong here: the thing, its value, the limit, what to do instead.
        errors: The single faults, where there are several or a pointer helps.
        extra: Further members of the problem, such as a measured value.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        errors: Iterable[Detail] = (),
        extra: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.errors = tuple(errors)
        self.extra = extra or {}
        self.kind = CATALOGUE[code]

    @property
    def status(self) -> int:
        """The HTTP status that goes with the code."""
        return self.kind.status

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later without a change."""
        return self.kind.retryable

    def to_dict(self) -> dict[str, Any]:
        """Give the members of the problem document, without `instance`."""
        return {
            "type": f"/docs/problems#{self.code}",
            "title": self.kind.title,
            "status": self.kind.status,
            "code": self.code,
            "detail": self.detail,
            "retryable": self.kind.retryable,
            "errors": [
                {"pointer": e.pointer, "code": e.code, "detail": e.detail} for e in self.errors
            ],
            **self.extra,
        }

    @classmethod
    def from_dict(cls, members: dict[str, Any]) -> "Problem":
        """Rebuild a problem from `to_dict`, as when a runner reports one over its pipe."""
        known = {"type", "title", "status", "code", "detail", "retryable", "errors"}
        return cls(
            str(members["code"]),
            str(members["detail"]),
            errors=[
                Detail(str(e["pointer"]), str(e["code"]), str(e["detail"]))
                for e in members.get("errors", [])
            ],
            extra={k: v for k, v in members.items() if k not in known},
        )

    @classmethod
    def from_os_error(cls, error: OSError) -> "Problem":
        """Name what the operating system refused to an attempt at a job.

        Args:
            error: What it raised.

        Returns:
            `storage_full` where the disk had no room, and else `internal_error`.
        """
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return cls("storage_full", f"The disk filled while the job wrote: {error.strerror}.")
        return cls("internal_error", f"{type(error).__name__}: {error.strerror}.")

    def __reduce__(self) -> tuple[Any, ...]:
        return (Problem.from_dict, (self.to_dict(),))
