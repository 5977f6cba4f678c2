"""Clients that keep connections and want next to nothing: slow heads, long polls, event streams."""

import asyncio
import contextlib
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any

_BYTE_SECONDS = 1.0
_PAUSE_SECONDS = 0.2
_POLL_SECONDS = 55


class IdleClients:
    """Many clients in a thread of their own.

    Args:
        port: Where the service or its front listens, on loopback.
        job_ids: What polls and streams are about, in turn.

    Attributes:
        open: How many connections of each kind are open now.
        answers: How many answers of each kind have come.
        failures: How many connections of each kind broke that should not have.
    """

    open: Counter[str]
    answers: Counter[str]
    failures: Counter[str]

    def __init__(self, port: int, job_ids: list[str]) -> None:
        self.open, self.answers, self.failures = Counter(), Counter(), Counter()
        self._port = port
        self._jobs = itertools.cycle(job_ids)
        self._loop = asyncio.new_event_loop()
        self._futures: list[Future[None]] = []
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def start(self, slow: int = 0, polls: int = 0, streams: int = 0) -> None:
        """Let some more begin."""
        for live, number in ((self._be_slow, slow), (self._poll, polls), (self._listen, streams)):
            for _ in range(number):
                self._begin(live)

    def stop(self) -> None:
        """Hang up."""
        self._loop.call_soon_threadsafe(self._hang_up)
        self._thread.join()
        self._loop.close()

    def _begin(self, live: Callable[[], Coroutine[Any, Any, None]]) -> None:
        # Kept, as asyncio itself holds none of them: whoever waits would be collected as garbage.
        self._futures.append(asyncio.run_coroutine_threadsafe(live(), self._loop))

    def _hang_up(self) -> None:
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.call_later(0.5, self._loop.stop)

    async def _be_slow(self) -> None:
        """Send a head a byte at a time, for ever; whoever is cut off begins again."""
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                self.open["slow"] += 1
                try:
                    writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Slow: ")
                    ended = asyncio.ensure_future(reader.read(1))
                    while not ended.done():
                        writer.write(b"a")
                        await asyncio.wait([ended], timeout=_BYTE_SECONDS)
                    await ended
                finally:
                    self.open["slow"] -= 1
                    writer.close()
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _poll(self) -> None:
        """Ask for the next change of a job, again and again."""
        job_id, revision = next(self._jobs), b"1"
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                try:
                    while True:
                        writer.write(_ask(f"/jobs/{job_id}", revision))
                        self.open["polls"] += 1
                        try:
                            revision = await _read_revision(reader, revision)
                        finally:
                            self.open["polls"] -= 1
                        self.answers["polls"] += 1
                        # Whoever was told of the end has nothing more to ask.
                        if revision != b"1":
                            return
                finally:
                    writer.close()
            self.failures["polls"] += 1
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _listen(self) -> None:
        """Follow a job's events."""
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                try:
                    writer.write(_ask(f"/jobs/{next(self._jobs)}/events", b""))
                    await reader.readuntil(b"event: queued")
                    self.open["streams"] += 1
                    try:
                        heard = b""
                        while data := await reader.read(4096):
                            heard += data
                            if b"event: cancelled" in heard:
                                self.answers["streams"] += 1
                                return
                    finally:
                        self.open["streams"] -= 1
                finally:
                    writer.close()
            self.failures["streams"] += 1
            await asyncio.sleep(_PAUSE_SECONDS)


def _ask(path: str, revision: bytes) -> bytes:
    lines = [f"GET {path} HTTP/1.1", "Host: localhost"]
    if revision:
        lines += [f"Prefer: wait={_POLL_SECONDS}", f'If-None-Match: "{revision.decode()}"']
    return "\r\n".join([*lines, "", ""]).encode()


async def _read_revision(reader: asyncio.StreamReader, known: bytes) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
    await reader.readexactly(int(fields.get(b"content-length", b"0")))
    return fields.get(b"etag", known).strip(b'"')
