"""Clients that behave well: they send again what was not answered, and believe what was."""

import contextlib
import queue
import random
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import httpx
from blake3 import blake3

from benchmarks.chaos.clock import undo
from benchmarks.chaos.ledger import Ledger
from benchmarks.chaos.materials import MODELS, RECIPES, Materials
from benchmarks.chaos.plan import Plan, Wish
from modelpress import Client
from modelpress.backoff import Backoff
from modelpress.connection import is_passing
from modelpress.errors import JobCancelled, JobFailed, ModelpressError, WaitTimeout
from modelpress.values import Job

#: As many as make a queue in front of a few workers.
CLIENTS = 16
#: An outage that lasts longer is a failure of its own.
_PATIENCE_SECONDS = 150.0
_BACKOFF = Backoff(attempts=3, first_seconds=0.1, cap_seconds=1.0)

Answer = TypeVar("Answer")


class Crowd:
    """Clients in threads of their own, taking up one wish after another.

    Args:
        url: The service's root.
        plan: Their wishes.
        materials: The models.
        ledger: What they tell.
    """

    def __init__(self, url: str, plan: Plan, materials: Materials, ledger: Ledger) -> None:
        self._url = url
        self._seed = plan.seed
        self._materials = materials
        self._ledger = ledger
        self._model_ids: dict[str, str] = {}
        self._wishes: queue.SimpleQueue[Wish] = queue.SimpleQueue()
        for wish in plan.wishes:
            self._wishes.put(wish)
        self._threads = [
            threading.Thread(target=self._live, name=f"client-{number}", daemon=True)
            for number in range(CLIENTS)
        ]

    def start(self) -> None:
        """Upload the models that jobs share, and let the clients begin."""
        with Client(self._url) as client:
            for name in MODELS:
                self._model_ids[name] = client.upload_model(self._materials.model(name)).id
        for thread in self._threads:
            thread.start()

    def join(self, seconds: float) -> bool:
        """Wait until every wish was served.

        Args:
            seconds: How long at most.

        Returns:
            Whether they were.
        """
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _live(self) -> None:
        with Client(self._url, timeout=20, backoff=_BACKOFF) as client:
            while True:
                try:
                    wish = self._wishes.get_nowait()
                except queue.Empty:
                    return
                try:
                    self._serve(client, wish)
                except Exception as error:  # noqa: BLE001 - the other wishes are served all the same
                    self._ledger.complain(f"wish {wish.number}: {type(error).__name__}: {error}")

    def _serve(self, client: Client, wish: Wish) -> None:
        model = self._materials.model(wish.model, wish.number)
        model_id = self._model_ids.get(wish.model) or self._upload(client, model, wish)
        job = self._submit(client, model_id, wish)
        self._ledger.accept(job.id, wish)
        asked = accepted = 0.0
        if wish.cancel_after is not None:
            time.sleep(wish.cancel_after)
            asked = time.time()
            self._persist(lambda: client.cancel(job.id))
            accepted = time.time()
        job = self._wait(client, job.id)
        if wish.cancel_after is not None:
            ended = datetime.fromisoformat(job.raw["finished_at"]).timestamp()
            # Where Redis's clock was an hour off, the record does not tell.
            if ended == undo(ended, accepted):
                self._ledger.cancel_seconds.append(max(0.0, ended - accepted))
            self._ledger.cancel_known_seconds.append(time.time() - asked)
        if job.state == "succeeded":
            self._download(client, job, model, wish)

    def _upload(self, client: Client, model: Path, wish: Wish) -> str:
        chance = random.Random(self._seed * 1_000_003 + wish.number)
        with contextlib.suppress(OSError):
            _send_cut(self._url, model.read_bytes(), chance.random())
            self._ledger.count("uploads cut")
        return self._persist(lambda: client.upload_model(model)).id

    def _submit(self, client: Client, model_id: str, wish: Wish) -> Job:
        def submit() -> Job:
            self._ledger.submit(1)
            try:
                return client.submit(
                    model_id,
                    RECIPES[wish.recipe],
                    labels={"wish": str(wish.number)},
                    idempotency_key=f"chaos-{self._seed}-{wish.number}",
                    use_cache=wish.uses_cache,
                )
            finally:
                self._ledger.submit(-1)

        return self._persist(submit)

    def _wait(self, client: Client, job_id: str) -> Job:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                job = client.wait(job_id, timeout=10)
            except (JobFailed, JobCancelled) as ended:
                job = ended.job
            except WaitTimeout:
                if time.monotonic() > deadline:
                    raise
                continue
            except ModelpressError as error:
                if not is_passing(error):
                    self._ledger.complain(f"{job_id} was accepted, and then: {error}")
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
                continue
            self._ledger.see(job.raw)
            return job

    def _download(self, client: Client, job: Job, model: Path, wish: Wish) -> None:
        with tempfile.TemporaryDirectory(prefix="modelpress-chaos-") as name:
            folder = Path(name)
            if wish.cuts_download:
                self._begin_download(job, folder, wish)
            paths = self._persist(lambda: client.download(job.id, folder))
            found = {
                path.name: blake3(path.read_bytes()).hexdigest()
                for path in paths
                if path.name != "manifest.json"
            }
        if found != self._materials.reference(model, wish.recipe):
            self._ledger.complain(f"{job.id}: its artifact is not the reference")
        self._ledger.count("artifacts compared")

    def _begin_download(self, job: Job, folder: Path, wish: Wish) -> None:
        """Read a part of the largest file, as a client does whose connection breaks."""
        largest = max(job.files, key=lambda file: file.bytes)
        share = random.Random(self._seed * 1_000_003 + wish.number).random()
        address = f"{self._url}/jobs/{job.id}/artifact/{largest.path}"
        with contextlib.suppress(httpx.HTTPError), httpx.stream("GET", address) as response:
            if response.is_success:
                with (folder / f"{largest.path}.part").open("wb") as part:
                    for piece in response.iter_raw(4096):
                        part.write(piece)
                        if part.tell() >= share * largest.bytes:
                            break
                self._ledger.count("downloads cut")

    def _persist(self, ask: Callable[[], Answer]) -> Answer:
        """Ask until there is an answer; only what passes is asked for again."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                return ask()
            except ModelpressError as error:
                if not is_passing(error) or time.monotonic() > deadline:
                    raise
                self._ledger.count("requests repeated")
                time.sleep(0.2)


def _send_cut(url: str, body: bytes, share: float) -> None:
    """Begin an upload, and hang up after a share of its bytes."""
    address = urlsplit(url)
    head = f"POST /models HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((str(address.hostname), address.port or 80), timeout=5) as sock:
        sock.sendall(head.encode() + body[: int(share * len(body))])
