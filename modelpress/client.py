"""The client: one method for each thing that the service can do, and `run` for all in a row."""

import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx

from modelpress.backoff import Backoff
from modelpress.connection import Connection, document, read
from modelpress.downloads import download_artifact
from modelpress.model_headers import read_headers
from modelpress.packages import package_file, package_model
from modelpress.uploads import upload
from modelpress.values import Dataset, Job, Model, dataset_from, is_model_id, job_from, model_from
from modelpress.waiting import fetch_job, wait_for

DEFAULT_URL = "http://127.0.0.1:8000"
API_KEY_VARIABLE = "MODELPRESS_API_KEY"
JSON = {"Accept": "application/json"}

OnBytes = Callable[[int, int], None]
OnJob = Callable[[Job], None]

T = TypeVar("T")


class Client:
    """A Modelpress service. Use it as a context manager, or close it.

    Every method may raise ServiceUnreachable (no answer), ProblemError (refused, with the reason)
    and UnexpectedAnswer (not a Modelpress service); what else it raises stands with it.

    Args:
        url: The service's root.
        timeout: Seconds without any sign of life after which a request counts as failed.
        backoff: How patiently requests are repeated.
        transport: An httpx transport to send through instead of the network, as in httpx.
        api_key: The API key; by default what ``MODELPRESS_API_KEY`` holds. It is sent to this
            service and to nobody else, and no error shows it.

    Raises:
        ValueError: The URL is not an http or https one, or the key holds what no key does.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout: float = 30.0,
        backoff: Backoff = Backoff(),  # noqa: B008 - frozen
        transport: httpx.BaseTransport | None = None,
        api_key: str | None = None,
    ) -> None:
        key = os.environ.get(API_KEY_VARIABLE) if api_key is None else api_key
        self._connection = Connection(url, timeout, backoff, transport, key)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to the service."""
        self._connection.close()

    def upload_model(self, path: str | PathLike[str], on_bytes: OnBytes | None = None) -> Model:
        """Upload a model, unless the service has it.

        The data is read twice: once for the digest, which is the model's id, and once to send it.

        Args:
            path: A ``.safetensors`` file, a ``.tar`` or ``.zip`` of a folder, or the folder, of
                which the files that belong to a checkpoint are sent.
            on_bytes: Called with the bytes sent and the bytes in all; not when nothing is sent.

        Returns:
            The model; equal files give the same id.

        Raises:
            UnusableUpload: The path holds no model, or changed while it was read.
            DigestMismatch: The service received other bytes than were sent.
        """
        package = package_model(Path(path))
        return upload(self._connection, "/models", "mdl_", package, model_from, on_bytes)

    def upload_dataset(self, path: str | PathLike[str], on_bytes: OnBytes | None = None) -> Dataset:
        """Upload a data set, unless the service has it.

        Args:
            path: The file, sent as it is.
            on_bytes: Called with the bytes sent and the bytes in all; not when nothing is sent.

        Returns:
            The data set; equal files give the same id.

        Raises:
            UnusableUpload: There is no such file, or it changed while it was read.
            DigestMismatch: The service received other bytes than were sent.
        """
        package = package_file(Path(path))
        return upload(self._connection, "/datasets", "ds_", package, dataset_from, on_bytes)

    def models(self, *, page_size: int = 50) -> Iterator[Model]:
        """Iterate over the uploaded models by their ids, fetching pages as they are needed.

        Args:
            page_size: Models to ask for at a time.

        Returns:
            The models.
        """
        return self._walk("/models", {"limit": page_size}, model_from)

    def plan(self, model: str | PathLike[str], recipe: Mapping[str, Any]) -> dict[str, Any]:
        """Ask what a job would cost, without running it or uploading the model.

        Args:
            model: Id of an uploaded model, or a path: a ``.safetensors`` file or a folder with
                such files, of which the headers and config.json alone are sent.
            recipe: The recipe as plain values.

        Returns:
            The plan: plain members, all sizes in bytes. ``fits`` says whether the budget is kept.

        Raises:
            UnusableUpload: The path holds no model.
        """
        known = {"model": str(model)} if is_model_id(str(model)) else read_headers(Path(model))
        members = {**known, "spec": dict(recipe)}
        return document(self._connection.send("POST", "/plans", headers=JSON, json=members))

    def suggest(self, model_id: str, goal: Mapping[str, Any]) -> dict[str, Any]:
        """Ask for recipes that reach a goal, without running anything.

        Args:
            model_id: Id of an uploaded model that was measured once; see `measure`.
            goal: What is wanted, as plain values, such as ``{"target_bytes": "500MiB"}``.

        Returns:
            Plain members: up to three ``suggestions``, the one with the least predicted ``loss``
            first, each with its ``recipe`` and ``plan``. A model that was not measured is a
            ProblemError with the code ``not_measured``; a goal that no recipe reaches is one with
            ``goal_unreachable``, and its problem says what comes nearest.
        """
        members = {"model": model_id, "goal": dict(goal)}
        return document(self._connection.send("POST", "/plans", headers=JSON, json=members))

    def measure(self, model_id: str) -> Job:
        """Submit a job that measures a model, so that `suggest` can answer; it has no artifact."""
        return self.submit(model_id, {"steps": [{"op": "measure"}]})

    def submit(
        self,
        model_id: str,
        recipe: Mapping[str, Any],
        labels: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        *,
        use_cache: bool = True,
    ) -> Job:
        """Submit a job.

        Args:
            model_id: Id of an uploaded model.
            recipe: The recipe as plain values.
            labels: What to attach to the job.
            idempotency_key: The same key never makes a second job, also across processes. By
                default each call has its own, so that its retries make one job.
            use_cache: Whether the artifact of an equal job will do: same model, steps and output.

        Returns:
            The job, queued, or as far as it is if the key was used before; ended, with ``hit`` as
            its ``cache``, if an equal job has its artifact.
        """
        key = idempotency_key or str(uuid.uuid4())
        members = {"model": model_id, "spec": dict(recipe), "labels": dict(labels or {})}
        headers = {**JSON, "Idempotency-Key": key}
        headers |= {} if use_cache else {"Cache-Control": "no-cache"}
        return read(self._connection.send("POST", "/jobs", headers=headers, json=members), job_from)

    def job(self, job_id: str) -> Job:
        """Fetch a job as it is now."""
        return fetch_job(self._connection, job_id)

    def jobs(
        self, *, state: str | None = None, label: str | None = None, page_size: int = 50
    ) -> Iterator[Job]:
        """Iterate over the jobs, newest first, fetching pages as they are needed.

        Args:
            state: Only jobs in this state.
            label: Only jobs with this label, written ``key:value``.
            page_size: Jobs to ask for at a time.

        Returns:
            The jobs.
        """
        params: dict[str, str | int] = {"limit": page_size}
        params |= {"state": state} if state else {}
        params |= {"label": label} if label else {}
        return self._walk("/jobs", params, job_from)

    def wait(
        self, job_id: str, timeout: float | None = None, on_progress: OnJob | None = None
    ) -> Job:
        """Wait until a job succeeds, also through a restart of the service.

        Args:
            job_id: The job.
            timeout: Seconds to wait at most; None waits as long as it takes.
            on_progress: Called with the job as it is now and then after each visible change.

        Returns:
            The job, succeeded.

        Raises:
            GateFailed: Its result does not pass the recipe's gate.
            JobFailed: It failed in another way.
            JobCancelled: It was cancelled.
            WaitTimeout: It had not ended in time; it goes on.
        """
        return wait_for(self._connection, job_id, timeout, on_progress)

    def cancel(self, job_id: str, *, keep: bool = False) -> Job:
        """Ask for a job to stop; `wait` tells when it has. A job that has ended stays as it is.

        Args:
            job_id: Which.
            keep: End only its training, at the next step. The job goes on with what was trained,
                and succeeds with an artifact.

        Returns:
            The job as it is now.
        """
        body = {"keep": True} if keep else None
        answer = self._connection.send("POST", _path(job_id, "/cancel"), headers=JSON, json=body)
        return read(answer, job_from)

    def delete(self, job_id: str) -> None:
        """Remove a job that has ended, and its artifact."""
        self._connection.send("DELETE", _path(job_id))

    def report(self, job_id: str) -> dict[str, Any]:
        """Fetch what was measured about a job: plain members, all sizes in bytes."""
        return document(self._connection.send("GET", _path(job_id, "/report"), headers=JSON))

    def download(
        self, job_id: str, folder: str | PathLike[str], on_bytes: OnBytes | None = None
    ) -> tuple[Path, ...]:
        """Download a job's artifact, going on where an earlier download was cut.

        Args:
            job_id: A job that succeeded.
            folder: Where to; made where it is missing.
            on_bytes: Called with the bytes that are there and the bytes of the whole artifact.

        Returns:
            The files, each verified against the digest that the job names.

        Raises:
            JobFailed: The job failed.
            JobCancelled: The job was cancelled.
            NoArtifact: The job has not ended.
            UnsafePath: The service named a file outside the folder. Nothing was downloaded.
            DigestMismatch: A file is not what the job names; it was removed.
        """
        return download_artifact(self._connection, self.job(job_id), Path(folder), on_bytes)

    def create_key(
        self,
        name: str,
        scopes: Iterable[str] = ("read", "submit"),
        *,
        tenant: str | None = None,
        expires_at: datetime | None = None,
    ) -> dict[str, Any]:
        """Make an API key.

        Args:
            name: What it is for.
            scopes: What it may do: some of ``read``, ``submit`` and ``admin``.
            tenant: Whose it is; by default that of the key in use.
            expires_at: When it ends, with a time zone; None for never.

        Returns:
            What is known about it, and in ``key`` the key itself, which is told this once. Where an
            answer was lost and the request repeated, `keys` shows one more that nobody was told.
        """
        members: dict[str, Any] = {"name": name, "scopes": list(scopes)}
        members |= {"tenant": tenant} if tenant else {}
        members |= {"expires_at": expires_at.isoformat()} if expires_at else {}
        return document(self._connection.send("POST", "/keys", headers=JSON, json=members))

    def keys(self) -> list[dict[str, Any]]:
        """Fetch what is known about the API keys, oldest first, revoked ones too."""
        answer = self._connection.send("GET", "/keys", headers=JSON)
        return read(answer, lambda members: list(members["data"]))

    def revoke_key(self, key_id: str) -> None:
        """End an API key at once and for good."""
        self._connection.send("DELETE", f"/keys/{quote(key_id, safe='')}")

    def run(
        self,
        model: str | PathLike[str],
        recipe: Mapping[str, Any],
        folder: str | PathLike[str],
        *,
        labels: Mapping[str, str] | None = None,
        timeout: float | None = None,
        on_progress: OnJob | None = None,
        use_cache: bool = True,
    ) -> Job:
        """Upload a model, compress it and download the artifact.

        Args:
            model: Path of a model, or the id of an uploaded one.
            recipe: The recipe as plain values.
            folder: Where to put the artifact.
            labels: What to attach to the job.
            timeout: Seconds to wait for the job at most.
            on_progress: Called with the job after each visible change.
            use_cache: Whether the artifact of an equal job will do: same model, steps and output.

        Returns:
            The job, succeeded; its artifact lies in the folder.

        Raises:
            ModelpressError: Whatever `upload_model`, `wait` and `download` raise.
        """
        is_id = isinstance(model, str) and is_model_id(model)
        model_id = str(model) if is_id else self.upload_model(model).id
        job = self.submit(model_id, recipe, labels, use_cache=use_cache)
        job = self.wait(job.id, timeout, on_progress)
        self.download(job.id, folder)
        return job

    def _walk(
        self, path: str, params: dict[str, str | int], make: Callable[[dict[str, Any]], T]
    ) -> Iterator[T]:
        while True:
            page = self._connection.send("GET", path, headers=JSON, params=params)
            yield from read(page, lambda members: [make(one) for one in members["data"]])
            cursor = document(page).get("next_cursor")
            if not cursor:
                return
            params["cursor"] = cursor


def _path(job_id: str, rest: str = "") -> str:
    return f"/jobs/{quote(job_id, safe='')}{rest}"
