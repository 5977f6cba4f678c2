"""Stands between the service and Redis, and loses some of its doorbells and doubles others."""

import asyncio
import contextlib
import random
import threading
from pathlib import Path

from benchmarks.chaos.plan import DOORBELL_SHARE


class Doorbells:
    """A socket that passes everything on to Redis but what it drops and doubles.

    A doorbell that is to be lost becomes a question for the queue's length, and one that is to come
    twice a push of two, so the answer always fits and nothing has to be kept.

    Args:
        path: The socket to make.
        redis: Redis's own.
        queue: The list that doorbells are pushed to.
        seed: Of what is drawn.
    """

    def __init__(self, path: Path, redis: Path, queue: str, seed: int) -> None:
        self._path = path
        self._redis = redis
        self._queue = queue.encode()
        self._chance = random.Random(seed)
        self.passed = self.dropped = self.doubled = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="doorbells", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close the socket."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _serve(self) -> None:
        server = self._loop.run_until_complete(asyncio.start_unix_server(self._pass_on, self._path))
        self._loop.run_forever()
        server.close()
        self._loop.run_until_complete(self._hang_up())
        self._loop.close()

    async def _hang_up(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # Whoever was closed says so in the loop's next round.
        await asyncio.sleep(0)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            try:
                answers, questions = await asyncio.open_unix_connection(self._redis)
                # Redis may die while nobody asks it anything: each side ends the other.
                ways = [
                    asyncio.ensure_future(self._pass_questions(reader, questions)),
                    asyncio.ensure_future(_pass_answers(answers, writer)),
                ]
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
                questions.close()
            finally:
                writer.close()

    async def _pass_questions(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while head := await reader.readline():
            words = []
            for _ in range(int(head[1:])):
                size = int((await reader.readline())[1:])
                words.append((await reader.readexactly(size + 2))[:-2])
            changed = self._change(words)
            writer.write(b"*%d\r\n" % len(changed))
            writer.writelines(b"$%d\r\n%s\r\n" % (len(word), word) for word in changed)
            await writer.drain()

    def _change(self, words: list[bytes]) -> list[bytes]:
        if words[0].upper() != b"LPUSH" or words[1] != self._queue:
            return words
        drawn = self._chance.random()
        if drawn < DOORBELL_SHARE:
            self.dropped += 1
            return [b"LLEN", self._queue]
        if drawn < 2 * DOORBELL_SHARE:
            self.doubled += 1
            return [*words, *words[2:]]
        self.passed += 1
        return words


async def _pass_answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
