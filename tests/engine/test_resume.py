"""A job that is killed, again and again: what the attempts leave together is what one would have.

Every attempt is a process of its own that kills itself with SIGKILL from a report of progress,
which is deep inside the engine, with its threads anywhere.
"""

import hashlib
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine.pipeline import Progress, compress
from jobs.recipe import parse_recipe
from jobs.report import Report

CHUNK_BYTES = 256
W8A16 = {"op": "quantize", "scheme": "w8a16"}
W8A8 = {"op": "quantize", "scheme": "w8a8"}
RECIPES = {
    "w8a16": [W8A16],
    "w8a8": [W8A8],
    "tensor": [{"op": "prune", "sparsity": 0.5}, W8A16],
    "global": [{"op": "prune", "sparsity": 0.5, "scope": "global"}, W8A8],
    "row": [{"op": "prune", "sparsity": 0.5, "scope": "row"}, W8A8],
    "2:4": [{"op": "prune", "structure": "2:4"}, W8A16],
    "random": [{"op": "prune", "method": "random", "sparsity": 0.3}],
    "random global": [{"op": "prune", "method": "random", "sparsity": 0.3, "scope": "global"}],
    "three steps": [
        {"op": "prune", "sparsity": 0.3},
        {"op": "prune", "sparsity": 0.5, "scope": "global"},
        W8A16,
    ],
}


@dataclass
class Attempt:
    """What an attempt told before it was killed or done."""

    progress: list[Progress]
    report: Report | None

    def done(self, phase: str) -> list[int]:
        return [progress.done for progress in self.progress if progress.phase == phase]


def attempt(model: Path, work: Path, steps: list, threads: int, kill_at: int | None) -> Attempt:
    """Start or go on with a job, in a process that kills itself at a report of progress."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        told = 0

        def on_progress(progress: Progress) -> None:
            nonlocal told
            told += 1
            os.write(writing, json.dumps(vars(progress)).encode() + b"\n")
            if told == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            report = compress(
                model,
                work / "artifact",
                parse_recipe({"steps": steps}),
                on_progress=on_progress,
                chunk_bytes=CHUNK_BYTES,
                threads=threads,
                journal=work / "journal",
            )
            (work / "report.json").write_text(report.model_dump_json())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        progress = [Progress(**json.loads(line)) for line in pipe]
    _, status = os.waitpid(pid, 0)
    path = work / "report.json"
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return Attempt(progress, None)
    return Attempt(progress, Report.model_validate_json(path.read_text()))


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def figures(report: Report) -> dict:
    """All that does not depend on the clock, or on the process that did the last attempt."""
    members = report.model_dump(exclude={"memory", "speed", "resumed"})
    return members | {"steps": [step | {"seconds": None} for step in members["steps"]]}


@pytest.fixture
def work(tmp_path):
    """A folder of an attempt, as a worker makes it."""

    def make(name: str) -> Path:
        (tmp_path / name / "artifact").mkdir(parents=True)
        return tmp_path / name

    return make


@pytest.fixture
def model(save_model, weights):
    """Tensors of every way to cut one, in ties and otherwise: rows, pieces of rows, no chunks."""
    return save_model(
        {
            "0.weight": weights(40, 32),
            "1.weight": weights(4, 400),
            "1.bias": weights(100),
            "2.weight": (weights(64, 16) * 8).round() / 8,
            "3.weight": weights(0, 16),
            "4.weight": weights(7, 8).float(),
        }
    )


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_job_that_is_killed_again_and_again_ends_as_if_it_had_not_been(
    model, work, recipe, threads
):
    whole = attempt(model, work("whole"), RECIPES[recipe], threads, kill_at=None)
    killed = work("killed")

    kill_at, attempts = 3, [attempt(model, killed, RECIPES[recipe], threads, kill_at=3)]
    while attempts[-1].report is None:
        kill_at += 9
        attempts.append(attempt(model, killed, RECIPES[recipe], threads, kill_at=kill_at))

    assert len(attempts) > 2
    assert digests(killed / "artifact") == digests(killed.parent / "whole" / "artifact")
    assert figures(attempts[-1].report) == figures(whole.report)
