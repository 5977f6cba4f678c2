"""Everything on disk: uploads on their way in, models, data sets, jobs and their artifacts.

    DATA_DIR/tenants/<tenant>/
      staging/<random>/             an upload being received, locked by its process
      models/<digest>/              meta.json, files/…       appears by one rename
      models/<digest>/sensitivities.json                     see `jobs.kept_sensitivities`
      datasets/<digest>/            meta.json, files/…
      jobs/<id>/spec.json           written before the job is accepted
      jobs/<id>/cancel              there where the client wants the job's end
      jobs/<id>/requests/stop       there where it wants the training's, and what was trained
      jobs/<id>/work-<token>/       one attempt's scratch folder, which the next one takes over
      jobs/<id>/artifact-<token>/   a finished attempt's files
      jobs/<id>/result.json         how the job ended: created exclusively, so it exists once
      equal/…                       see `jobs.equal_jobs`

Names never come from a client unchecked: ids are hex, file names were validated on the way in.
"""

import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from jobs.durable_files import fsync, read_json, remove_tree, write_json
from jobs.job import JobResult, JobSpec, is_job_id

StoreName = Literal["models", "datasets"]
RESULT_NAME = "result.json"
REPORT_NAME = "report.json"
CANCEL_NAME = "cancel"
STOP_NAME = "stop"
#: Digests that a worker computes after the job has succeeded: path -> hex.
SHA256_NAME = "sha256.json"


class BlobStore:
    """One tenant's folder, which service and workers share.

    Args:
        data_dir: DATA_DIR; made where it is missing.
        tenant: Whose; from a name that `jobs.tenants.is_tenant` knows.
    """

    def __init__(self, data_dir: Path, tenant: str) -> None:
        self.root = tenants_folder(data_dir) / tenant
        for name in ("staging", "models", "datasets", "jobs", "equal"):
            (self.root / name).mkdir(parents=True, exist_ok=True)

    # Uploads.

    @contextmanager
    def stage(self) -> Iterator[Path]:
        """Give a fresh private folder with a ``files`` folder in it, for one upload.

        The folder is gone when the block ends, unless `publish` moved it. While the block runs the
        folder is locked; the lock dies with the process, which tells a sweep what was left behind,
        in whatever container.
        """
        folder = self.root / "staging" / secrets.token_hex(8)
        (folder / "files").mkdir(parents=True)
        with (folder / "lock.new").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Named only now: a sweep that found it free would take the folder for abandoned.
            (folder / "lock.new").rename(folder / "lock")
            try:
                yield folder
            finally:
                remove_tree(folder)

    def uploads(self) -> int:
        """Count the uploads that are being received, those of dead processes until the sweep."""
        return sum(1 for _ in (self.root / "staging").glob("*/lock"))

    def publish(self, store: StoreName, digest: str, staged: Path, meta: dict[str, Any]) -> bool:
        """Make a staged folder the content of a digest, durably and all at once.

        Args:
            store: Which store it goes into.
            digest: The blake3 hex digest of the uploaded bytes.
            staged: The folder from `stage`; it is gone afterwards.
            meta: What is known about the content, kept beside it.

        Returns:
            True where it is new, False where the same content was there already.
        """
        write_json(staged / "meta.json", meta)
        (staged / "lock").unlink()
        for path in staged.rglob("*"):
            if path.is_file():
                fsync(path)
        target = self.root / store / digest
        try:
            # rename() onto a full folder fails, so the first of two equal uploads wins.
            staged.rename(target)
        except OSError:
            if self.touch(store, digest):
                return False
            # It is the disk that refuses, or what was in the way has just been removed.
            staged.rename(target)
        fsync(target.parent)
        return True

    def meta(self, store: StoreName, digest: str) -> dict[str, Any] | None:
        """Give what is known about a stored content, or None where there is none."""
        return read_json(self.root / store / digest / "meta.json")

    def files(self, store: StoreName, digest: str) -> Path:
        """Give the folder of a stored content's files."""
        return self.root / store / digest / "files"

    def touch(self, store: StoreName, digest: str) -> bool:
        """Note that a stored content is used now.

        Args:
            store: Which store it is in.
            digest: Its digest.

        Returns:
            Whether it is there.
        """
        try:
            os.utime(self.root / store / digest / "meta.json")
        except FileNotFoundError:
            return False
        return True

    def digests(self, store: StoreName) -> Iterator[str]:
        """Yield the digest of every stored content."""
        return iter(sorted(os.listdir(self.root / store)))

    def remove_unused(self, store: StoreName, digest: str, seconds: float) -> bool:
        """Remove a stored content that was not used for a while.

        Args:
            store: Which store it is in.
            digest: Its digest.
            seconds: How long; whoever uses it after this look finds it, or finds it gone.

        Returns:
            Whether it was removed.
        """
        folder, grave = self.root / store / digest, self.root / "staging" / secrets.token_hex(8)
        try:
            if time.time() - (folder / "meta.json").stat().st_mtime <= seconds:
                return False
            folder.rename(grave)
            if time.time() - (grave / "meta.json").stat().st_mtime <= seconds:
                # It came into use between the look and now.
                grave.rename(folder)
                return False
        except OSError:
            return False
        remove_tree(grave)
        return True

    def remove(self, store: StoreName, digest: str) -> bool:
        """Remove a stored content.

        Args:
            store: Which store it is in.
            digest: Its digest.

        Returns:
            Whether there was one.
        """
        return self._remove_folder(self.root / store / digest)

    # Jobs.

    def job_folder(self, job_id: str) -> Path:
        """Give the folder of a job; it exists from `write_spec` on."""
        return self.root / "jobs" / job_id

    def write_spec(self, spec: JobSpec) -> None:
        """Write a job's spec durably: from here on the job survives a loss of Redis."""
        folder = self.job_folder(spec.id)
        folder.mkdir()
        try:
            write_json(folder / "spec.json", spec.model_dump(mode="json"))
        except OSError:
            folder.rmdir()
            raise
        fsync(folder.parent)

    def has_spec(self, job_id: str) -> bool:
        """Tell whether a job is on the disk."""
        return (self.job_folder(job_id) / "spec.json").exists()

    def read_spec(self, job_id: str) -> JobSpec | None:
        """Give a job's spec, or None where there is none."""
        members = read_json(self.job_folder(job_id) / "spec.json")
        return None if members is None else JobSpec.model_validate(members)

    def note_cancel(self, job_id: str) -> None:
        """Write down durably that a job is to end, for whoever brings it back after a loss."""
        note = self.job_folder(job_id) / CANCEL_NAME
        note.touch()
        fsync(note.parent)

    def has_cancel(self, job_id: str) -> bool:
        """Tell whether a job's end was asked for while it ran."""
        return (self.job_folder(job_id) / CANCEL_NAME).exists()

    def requests_folder(self, job_id: str) -> Path:
        """Give the folder of what a runner is asked while it works, and may read itself."""
        folder = self.job_folder(job_id) / "requests"
        folder.mkdir(exist_ok=True)
        return folder

    def note_stop(self, job_id: str) -> None:
        """Write down durably that a job's training is to end, and keep what was trained."""
        note = self.requests_folder(job_id) / STOP_NAME
        note.touch()
        for folder in (note.parent, note.parent.parent):
            fsync(folder)

    def has_stop(self, job_id: str) -> bool:
        """Tell whether the end of a job's training was asked for."""
        return (self.job_folder(job_id) / "requests" / STOP_NAME).exists()

    def was_begun(self, job_id: str) -> bool:
        """Tell whether an attempt at a job that has not ended left something to go on from."""
        return any(self.job_folder(job_id).glob("work-*"))

    def job_ids(self) -> Iterator[str]:
        """Yield the id of every job on disk, oldest first."""
        return (name for name in sorted(os.listdir(self.root / "jobs")) if is_job_id(name))

    def work_folder(self, job_id: str, token: int) -> Path:
        """Give one attempt's scratch folder: what the last one before it left, or an empty one.

        Attempts before it find theirs no longer.
        """
        folder = self.job_folder(job_id) / f"work-{token}"
        tokens = (int(p.name.removeprefix("work-")) for p in folder.parent.glob("work-*"))
        earlier = sorted(number for number in tokens if number < token)
        if earlier and not folder.exists():
            folder.with_name(f"work-{earlier.pop()}").rename(folder)
        for number in earlier:
            remove_tree(folder.with_name(f"work-{number}"))
        folder.mkdir(exist_ok=True)
        return folder

    def publish_result(self, result: JobResult) -> bool:
        """Say how a job ended, durably and once.

        Args:
            result: The result; its artifact folder is in place.

        Returns:
            True where this call said it, False where the job had a result already.
        """
        folder = self.job_folder(result.id)
        draft = folder / f"result-{secrets.token_hex(8)}.tmp"
        try:
            write_json(draft, result.model_dump(mode="json"))
            # link() fails where the name exists: the file system itself is the fence.
            os.link(draft, folder / RESULT_NAME)
        except FileExistsError:
            return False
        finally:
            draft.unlink(missing_ok=True)
        fsync(folder)
        return True

    def has_result(self, job_id: str) -> bool:
        """Tell whether it is on disk how a job ended."""
        return (self.job_folder(job_id) / RESULT_NAME).exists()

    def read_result(self, job_id: str) -> JobResult | None:
        """Give how a job ended, or None while it has not."""
        members = read_json(self.job_folder(job_id) / RESULT_NAME)
        return None if members is None else JobResult.model_validate(members)

    def artifact_folder(self, job_id: str) -> Path | None:
        """Give the folder of a succeeded job's files, or None."""
        result = self.read_result(job_id)
        if result is None or result.artifact_folder is None:
            return None
        return self.job_folder(job_id) / result.artifact_folder

    def report(self, job_id: str) -> dict[str, Any] | None:
        """Give a job's report, or None where it has none."""
        return read_json(self.job_folder(job_id) / REPORT_NAME)

    def write_report(self, job_id: str, report: dict[str, Any]) -> None:
        """Keep a job's report."""
        write_json(self.job_folder(job_id) / REPORT_NAME, report)

    def remove_job(self, job_id: str) -> bool:
        """Remove a job with its artifact.

        Args:
            job_id: Which.

        Returns:
            Whether there was one.
        """
        return self._remove_folder(self.job_folder(job_id))

    def _remove_folder(self, folder: Path) -> bool:
        # Renamed first, so that a reader sees the whole of it or nothing.
        grave = self.root / "staging" / secrets.token_hex(8)
        try:
            folder.rename(grave)
        except FileNotFoundError:
            return False
        remove_tree(grave)
        return True


def tenants_folder(data_dir: Path) -> Path:
    """Give the folder that holds a folder for each tenant."""
    return data_dir.resolve() / "tenants"


def now_ms() -> int:
    """Give the wall clock in milliseconds."""
    return time.time_ns() // 1_000_000
