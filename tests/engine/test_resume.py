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
import torch
import transformers

from engine.pipeline import Progress, compress
from jobs.recipe import parse_recipe
from jobs.report import Report

CHUNK_BYTES = 256
SHARD = "model-00001-of-00002.safetensors"
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
    "transposed": [{"op": "prune", "sparsity": 0.4}, W8A8],
    "transposed rows": [{"op": "prune", "sparsity": 0.4, "scope": "row"}, W8A16],
    "aimed": [{"op": "prune", "structure": "2:4"}, W8A16 | {"max_relative_rmse": 0.0064}],
    "shrunk": [{"op": "shrink", "width": 0.5}, {"op": "prune", "sparsity": 0.5}, W8A8],
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

    @property
    def passed(self) -> list[int]:
        """How many bytes of the model were passed, each time that was told."""
        return [progress.done for progress in self.progress if progress.phase == "compress"]


def attempt(
    model: Path, work: Path, steps: list, threads: int = 1, kill_at: int | None = None
) -> Attempt:
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
                parse_recipe({"steps": steps, "output": {"format": "safetensors"}}),
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
            "4.weight": weights(7, 8).bfloat16(),
        },
        shards=2,
    )


@pytest.fixture
def gpt2(tmp_path):
    """Weights that stand in their file as [inputs, channels], so that columns are channels."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=24, n_layer=1, n_head=2, vocab_size=11, n_positions=8)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


@pytest.mark.parametrize("threads", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_job_that_is_killed_again_and_again_ends_as_if_it_had_not_been(
    model, gpt2, work, recipe, threads
):
    chosen = gpt2 if recipe in {"transposed", "transposed rows", "shrunk"} else model
    whole = attempt(chosen, work("whole"), RECIPES[recipe], threads)
    killed = work("killed")
    attempts, kill_at = [], 3

    while not (attempts and attempts[-1].report):
        attempts.append(attempt(chosen, killed, RECIPES[recipe], threads, kill_at))
        kill_at += 16

    assert len(attempts) > 2
    assert digests(killed / "artifact") == digests(killed.parent / "whole" / "artifact")
    assert figures(attempts[-1].report) == figures(whole.report)
    assert whole.report.resumed is None


@pytest.mark.parametrize("recipe", ["w8a8", "tensor"])
def test_an_attempt_reads_again_no_more_than_lies_behind_the_last_bookmark(model, work, recipe):
    # Sixteen chunks lie between two bookmarks, and then a row that is longer than a chunk ends.
    bound = 8 * CHUNK_BYTES + 400 * 4
    killed = work("killed")
    before = attempt(model, killed, RECIPES[recipe], kill_at=3)

    for kill_at in range(40, 300, 40):
        after = attempt(model, killed, RECIPES[recipe], kill_at=kill_at)
        if before.passed and len(after.passed) > 1:
            # The first tells that it begins, the second where.
            assert after.passed[1] >= before.passed[-1] - bound
        before = after

    assert before.report is not None


def test_what_was_measured_is_not_measured_again(model, work):
    killed = work("killed")
    told = len(attempt(model, work("whole"), RECIPES["global"]).progress)
    attempt(model, killed, RECIPES["global"], kill_at=told - 20)

    last = attempt(model, killed, RECIPES["global"])

    assert {one.phase for one in last.progress} == {"inspect", "compress"}
    measured = last.report.steps[0].bytes_read
    assert last.report.resumed.bytes_skipped >= measured + last.passed[1] > measured


@pytest.mark.parametrize("threads", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize("recipe", ["tensor", "global"])
def test_a_long_look_goes_on_where_it_was(save_model, weights, work, recipe, threads):
    # Of float32 there are two looks; within each, bookmarks are 128 chunks apart.
    model = save_model({f"{i}.weight": weights(200, 96, seed=i) for i in range(2)})
    whole = attempt(model, work("whole"), RECIPES[recipe], threads)
    skipped = []

    for kill_at in range(80, 460, 120):
        killed = work(f"killed at {kill_at}")
        attempt(model, killed, RECIPES[recipe], threads, kill_at=kill_at)
        last = attempt(model, killed, RECIPES[recipe], threads)

        skipped.append(last.report.resumed.bytes_skipped if last.report.resumed else 0)
        assert digests(killed / "artifact") == digests(killed.parent / "whole" / "artifact")
        assert figures(last.report) == figures(whole.report)

    assert skipped == sorted(skipped)
    assert len(set(skipped)) >= 3


def test_an_attempt_after_one_whose_artifact_was_not_collected_reads_nothing(model, work):
    again = work("again")
    whole = attempt(model, again, RECIPES["tensor"])
    left = digests(again / "artifact")
    (again / "artifact" / "manifest.json").write_text("")

    last = attempt(model, again, RECIPES["tensor"])

    read = sum(step.bytes_read for step in whole.report.steps)
    assert last.report.resumed.bytes_skipped == read
    assert digests(again / "artifact") == left
    assert figures(last.report) == figures(whole.report)


def truncate(_, work: Path) -> None:
    os.truncate(work / "artifact" / SHARD, 9)


def remove_shard(_, work: Path) -> None:
    (work / "artifact" / SHARD).unlink()


def remove_journal(_, work: Path) -> None:
    (work / "journal").unlink()


def touch_model(model: Path, _) -> None:
    os.utime(model / SHARD, (1, 1))


@pytest.mark.parametrize("change", [truncate, remove_shard, remove_journal, touch_model])
def test_a_job_that_cannot_go_on_begins_again(model, work, change):
    attempt(model, work("whole"), [W8A8])
    killed = work("killed")
    attempt(model, killed, [W8A8], kill_at=100)

    change(model, killed)
    last = attempt(model, killed, [W8A8])

    assert last.report.resumed is None
    assert last.passed[1] > 0 == last.passed[0]
    assert digests(killed / "artifact") == digests(killed.parent / "whole" / "artifact")


def test_another_recipe_begins_again(model, work):
    attempt(model, work("whole"), [W8A16])
    killed = work("killed")
    attempt(model, killed, [W8A8], kill_at=100)

    last = attempt(model, killed, [W8A16])

    assert last.report.resumed is None
    assert digests(killed / "artifact") == digests(killed.parent / "whole" / "artifact")
