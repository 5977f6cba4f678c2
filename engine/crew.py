"""Threads that share one ordered stream of work, so that reading, computing and writing overlap.

Tasks are taken in the order of the stream and settled in that order too, whichever ends first. So
what depends on the order, such as sums of floats or which of two faults is reported, is the same
for every number of threads.
"""

import threading
from collections.abc import Callable, Iterator
from typing import Protocol

from engine.workbench import Workbench

#: What remains to be done for a task when all tasks before it are settled: short, one at a time.
Settlement = Callable[[], None]


class Task(Protocol):
    """One piece of work, small enough to be in memory as a whole."""

    def run(self, bench: Workbench) -> Settlement:
        """Do it, beside other tasks."""
        ...


class Abandoned(Exception):  # noqa: N818 - no fault: another task's fault is reported
    """A task that waits in vain, because one before it failed."""


class Bell:
    """Rung when something changed that a task may wait for. Hold it, as a context, to change it."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._is_over = False

    def __enter__(self) -> None:
        self._condition.acquire()

    def __exit__(self, *_: object) -> None:
        self._condition.release()

    def wait(self, is_true: Callable[[], bool]) -> None:
        """Wait until something holds; the caller holds the bell.

        Args:
            is_true: What is waited for; tasks before this one make it so.

        Raises:
            Abandoned: A task failed, so that it may never hold.
        """
        while not is_true():
            if self._is_over:
                raise Abandoned
            self._condition.wait()

    def ring(self) -> None:
        """Have everyone who waits look again; the caller holds the bell."""
        self._condition.notify_all()

    def end(self) -> None:
        """Abandon whoever waits in vain."""
        with self:
            self._is_over = True
            self.ring()


class Crew:
    """Runs a stream of tasks on several threads, of which the caller's is one.

    Args:
        benches: The memory of each thread.
        bell: What tasks that wait for others wait at.
    """

    def __init__(self, benches: list[Workbench], bell: Bell) -> None:
        self._benches = benches
        self._bell = bell
        self._claim = threading.Lock()
        self._settle = threading.Lock()
        self._claimed = 0
        self._settled = 0
        self._ended: dict[int, Settlement] = {}
        self._fault: tuple[int, BaseException] | None = None

    def run(self, tasks: Iterator[Task]) -> None:
        """Run all tasks.

        Args:
            tasks: The work; making a task must be quick, because only one is made at a time.

        Raises:
            BaseException: What the first task of the stream that failed raised, or the stream.
        """
        threads = [
            threading.Thread(target=self._work, args=(tasks, bench), name=f"engine-{i}")
            for i, bench in enumerate(self._benches[1:], 1)
        ]
        for thread in threads:
            thread.start()
        try:
            self._work(tasks, self._benches[0])
        finally:
            for thread in threads:
                thread.join()
        if self._fault is not None:
            raise self._fault[1]

    def _work(self, tasks: Iterator[Task], bench: Workbench) -> None:
        number = 0
        try:
            while self._fault is None:
                with self._claim:
                    number = self._claimed
                    task = next(tasks, None)
                    self._claimed += 1
                if task is None:
                    return
                self._end(number, task.run(bench))
        except Abandoned:
            return
        except BaseException as fault:  # noqa: BLE001 - raised again in the caller's thread
            with self._settle:
                if self._fault is None or number < self._fault[0]:
                    self._fault = (number, fault)
            self._bell.end()

    def _end(self, number: int, settlement: Settlement) -> None:
        with self._settle:
            self._ended[number] = settlement
            while self._fault is None and self._settled in self._ended:
                self._ended.pop(self._settled)()
                self._settled += 1
