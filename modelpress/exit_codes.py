"""How the `modelpress` command ends, so that a script can tell one end from another."""

from modelpress.errors import (
    GateFailed,
    JobCancelled,
    JobFailed,
    ModelpressError,
    NoArtifact,
    ProblemError,
    ServiceUnreachable,
    UnusableUpload,
    WaitTimeout,
)

UNEXPECTED = 1
REFUSED = 2
GATE_FAILED = 3
JOB_FAILED = 4
UNREACHABLE = 5
CANCELLED = 6
TIMED_OUT = 7
DOES_NOT_FIT = 8
INTERRUPTED = 130

HELP = f"""\b
Exit codes:
    0  done
  {UNEXPECTED:>3}  unexpected error
  {REFUSED:>3}  wrong usage, or the service refused the request
  {GATE_FAILED:>3}  the result does not pass the recipe's gate
  {JOB_FAILED:>3}  the job failed
  {UNREACHABLE:>3}  the service cannot be reached
  {CANCELLED:>3}  the job was cancelled
  {TIMED_OUT:>3}  --timeout is over; the job goes on
  {DOES_NOT_FIT:>3}  the plan does not fit the recipe's budget
  {INTERRUPTED:>3}  interrupted; the job goes on, unless --cancel-on-interrupt is given
"""

# The first match counts, so a class stands before its parent.
_CODES: tuple[tuple[type[Exception], int], ...] = (
    (GateFailed, GATE_FAILED),
    (JobFailed, JOB_FAILED),
    (JobCancelled, CANCELLED),
    (WaitTimeout, TIMED_OUT),
    (ServiceUnreachable, UNREACHABLE),
    (UnusableUpload, REFUSED),
    (NoArtifact, REFUSED),
)


def exit_code(error: ModelpressError | OSError) -> int:
    """Give the code that an error ends the command with."""
    if isinstance(error, ProblemError):
        if error.status == 503:
            return UNREACHABLE
        return REFUSED if error.status < 500 else UNEXPECTED
    return next((code for kind, code in _CODES if isinstance(error, kind)), UNEXPECTED)
