"""The client of a Modelpress service.

    from modelpress import Client

    with Client("http://127.0.0.1:8000") as client:
        job = client.run("model/", {"steps": [{"op": "quantize", "scheme": "w8a16"}]}, "small/")
        print(client.report(job.id)["artifact"])

It speaks HTTP and imports nothing of the service, so it installs anywhere.
"""

from modelpress.backoff import Backoff
from modelpress.client import Client
from modelpress.errors import (
    DigestMismatch,
    Fault,
    GateFailed,
    JobCancelled,
    JobFailed,
    ModelpressError,
    NoArtifact,
    ProblemError,
    ServiceUnreachable,
    UnexpectedAnswer,
    UnsafePath,
    UnusableUpload,
    WaitTimeout,
)
from modelpress.values import ArtifactFile, Dataset, Job, Model, Progress

__all__ = [
    "ArtifactFile",
    "Backoff",
    "Client",
    "Dataset",
    "DigestMismatch",
    "Fault",
    "GateFailed",
    "Job",
    "JobCancelled",
    "JobFailed",
    "Model",
    "ModelpressError",
    "NoArtifact",
    "ProblemError",
    "Progress",
    "ServiceUnreachable",
    "UnexpectedAnswer",
    "UnsafePath",
    "UnusableUpload",
    "WaitTimeout",
]

__version__ = "0.1.0"
