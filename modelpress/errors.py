"""Everything that the client raises on purpose.

    ModelpressError
    ├── ServiceUnreachable     no answer: refused, reset, timed out, or only 502 from a proxy
    ├── ProblemError           the service refused the request and said why
    ├── UnexpectedAnswer       an answer that the contract does not allow
    ├── UnusableUpload         a local file or folder that cannot be uploaded as a model
    ├── WaitTimeout            the job had not ended when the time to wait was over
    ├── JobFailed              the job ended as failed
    │   └── GateFailed         ... because its result does not pass the recipe's gate
    ├── JobCancelled           the job ended as cancelled
    ├── NoArtifact             the job has nothing to download
    ├── DigestMismatch         bytes are not those that their digest names
    └── UnsafePath             the service named a file outside the download folder

Wrong arguments raise ValueError, and a full or unwritable disk OSError, as everywhere in Python.
"""

from dataclasses import dataclass
from typing import Any

from modelpress.values import Job


class ModelpressError(Exception):
    """Any error that this package raises on purpose."""


class ServiceUnreachable(ModelpressError):  # noqa: N818 - named by what is wrong
    """The service gave no answer, after all retries."""


class UnexpectedAnswer(ModelpressError):  # noqa: N818 - named by what is wrong
    """The answer is not what the contract promises; perhaps the URL is not that of a service."""


class UnusableUpload(ModelpressError):  # noqa: N818 - named by what is wrong
    """The local file or folder cannot be uploaded; the message says what to do."""


class DigestMismatch(ModelpressError):  # noqa: N818 - named by what is wrong
    """The bytes sent or received are not those that their digest names."""


class UnsafePath(ModelpressError):  # noqa: N818 - named by what is wrong
    """The service named a file that would lie outside the download folder."""


class NoArtifact(ModelpressError):  # noqa: N818 - named by what is wrong
    """The job has nothing to download."""


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a request, and where.

    Attributes:
        pointer: RFC 6901 JSON pointer into the request, or "" for the whole of it.
        code: A short machine-readable reason.
        detail: What is wrong.
    """

    pointer: str
    code: str
    detail: str


class ProblemError(ModelpressError):
    """The service refused the request with an RFC 9457 problem document.

    Args:
        problem: The members of the document; missing ones get neutral values.
        status: The HTTP status of the answer.

    Beside those it has `code`, such as ``invalid_recipe``; `detail`, for people; `errors`, each
    with a pointer into the request; `retryable`; and `instance`, the id in the service's log.
    """

    def __init__(self, problem: dict[str, Any], status: int) -> None:
        self.problem = problem
        self.status = status
        self.code = str(problem.get("code", f"http_{status}"))
        self.detail = str(problem.get("detail") or problem.get("title") or f"HTTP {status}")
        self.errors = faults_of(problem)
        self.retryable = problem.get("retryable") is True
        self.instance = str(problem.get("instance", ""))
        super().__init__(f"{self.code}: {self.detail}")


class WaitTimeout(ModelpressError):  # noqa: N818 - named by what is wrong
    """The job had not ended when the time to wait was over; it goes on without the client.

    Args:
        job: The job as last seen.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        super().__init__(f"{job.id} is still {job.state}; the time to wait for it is over.")


class JobFailed(ModelpressError):  # noqa: N818 - named by what is wrong
    """The job ended as failed.

    Args:
        job: The job; its `failure` is the problem document.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        failure = job.failure or {}
        self.code = str(failure.get("code", "unknown"))
        self.detail = str(failure.get("detail") or failure.get("title") or "no reason was given")
        self.errors = faults_of(failure)
        super().__init__(f"{job.id} failed with {self.code}: {self.detail}")


class GateFailed(JobFailed):
    """The job failed because its result does not pass the recipe's gate."""


class JobCancelled(ModelpressError):  # noqa: N818 - named by what is wrong
    """The job ended as cancelled.

    Args:
        job: The job.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        super().__init__(f"{job.id} was cancelled.")


def faults_of(problem: dict[str, Any]) -> tuple[Fault, ...]:
    """Give the single faults of a problem document; malformed ones are left out."""
    faults = problem.get("errors")
    if not isinstance(faults, list):
        return ()
    return tuple(
        Fault(str(f.get("pointer", "")), str(f.get("code", "")), str(f.get("detail", "")))
        for f in faults
        if isinstance(f, dict)
    )


def raise_unless_succeeded(job: Job) -> None:
    """Turn a bad end into its exception.

    Args:
        job: A job in a terminal state.

    Raises:
        GateFailed: The result does not pass the recipe's gate.
        JobFailed: It failed in another way.
        JobCancelled: It was cancelled.
    """
    if job.state == "failed":
        if (job.failure or {}).get("code") == "gate_failed":
            raise GateFailed(job)
        raise JobFailed(job)
    if job.state == "cancelled":
        raise JobCancelled(job)
