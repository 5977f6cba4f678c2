"""Runs one model over all inputs, and keeps what the other one is compared with."""

import math
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from evaluation.agreement import AgreementSum
from evaluation.faults import blamed_on
from evaluation.inputs import Batch
from evaluation.outputs import Answers
from evaluation.subjects import Evaluated, OnRows, Subject
from jobs.problems import Problem
from jobs.quality import Agreement, Ran, Running
from jobs.recipe import Evaluate

OpenSubject = Callable[[], Subject]
OpenEvaluated = Callable[[], Evaluated]

#: The original's outputs, kept for the artifact to be compared with.
_MOST_KEPT_BYTES = 64 * 1024**2


@dataclass
class _Sums:
    rows: int = 0
    tokens: int | None = None
    loss: float | None = None
    predictions: int = 0
    correct: int | None = None

    def add(self, answers: Answers, rows: int) -> None:
        self.rows += rows
        self.predictions += answers.predictions
        self.tokens = _plus(self.tokens, answers.tokens)
        self.loss = _plus(self.loss, answers.loss_sum)
        self.correct = _plus(self.correct, answers.correct)


def _plus(first: Any, second: Any) -> Any:  # noqa: ANN401 - None or a number
    return first if second is None else (first or 0) + second


def run_original(
    open_subject: OpenEvaluated, dataset: Path | None, wanted: Evaluate, kept: Path, on_rows: OnRows
) -> Ran:
    """Run the original, and keep what it answers.

    Args:
        open_subject: Opens it.
        dataset: The uploaded file; None for random inputs.
        wanted: How many rows.
        kept: Where its outputs go, at most 64 MiB of them.
        on_rows: Told how many rows are done.

    Returns:
        What was measured.

    Raises:
        Problem: `invalid_dataset`, `evaluation_failed`, `unknown_architecture`.
    """
    outputs: list[torch.Tensor] = []

    def keep(found: Answers) -> None:
        room = _MOST_KEPT_BYTES // (4 * found.outputs.shape[1]) - sum(map(len, outputs))
        outputs.append(found.outputs[: max(0, room)].clone())

    ran = _run(open_subject, dataset, wanted, keep, on_rows)
    joined = torch.cat(outputs)
    if not len(joined):
        raise Problem("evaluation_failed", "The model's outputs are too wide to be compared.")
    save_file({"outputs": joined}, kept)
    return ran


def run_artifact(
    open_subject: OpenEvaluated,
    dataset: Path | None,
    wanted: Evaluate,
    kept: Path,
    on_rows: OnRows,
) -> Ran:
    """Run the artifact on the same inputs, and compare.

    Args:
        open_subject: Opens it.
        dataset: As for the original.
        wanted: As for the original.
        kept: What the original answered.
        on_rows: Told how many rows are done.

    Returns:
        What was measured, and how far it is from the original.

    Raises:
        Problem: `evaluation_failed`, and as for the original.
    """
    expected = load_file(kept)["outputs"]
    total: AgreementSum | None = None

    def compare(found: Answers) -> None:
        nonlocal total
        width = found.outputs.shape[1]
        total = total or AgreementSum(found.is_distribution, is_single=width == 1)
        rows = expected[total.outputs : total.outputs + len(found.outputs)]
        if rows.shape[1] != width:
            raise Problem(
                "evaluation_failed",
                f"The artifact's outputs have {width} values, the original's {rows.shape[1]}.",
            )
        if len(rows):
            total.add(rows, found.outputs[: len(rows)])

    ran = _run(open_subject, dataset, wanted, compare, on_rows)
    if total is None or total.outputs != len(expected):
        raise Problem("evaluation_failed", "The artifact gives fewer outputs than the original.")
    agreement = Agreement(
        outputs=total.outputs,
        of="logits" if total.is_distribution or total.is_single else "hidden_states",
        mean_cosine=total.mean_cosine,
        least_cosine=total.least_cosine,
        kl_divergence=total.mean_divergence,
        top1_agreement=total.same_choices,
    )
    return ran.model_copy(update={"agreement": agreement})


def _run(
    open_subject: OpenEvaluated,
    dataset: Path | None,
    wanted: Evaluate,
    take: Callable[[Answers], None],
    on_rows: OnRows,
) -> Ran:
    started = time.perf_counter()
    subject = open_subject()
    code = "evaluation_failed" if dataset is None else "invalid_dataset"
    reading = _Reading(subject, code, take)
    with torch.inference_mode():
        with blamed_on(code, reading.refused):
            seconds = subject.run(reading.batches(dataset, wanted), reading.take, on_rows)
        if reading.first is None:
            raise Problem("invalid_dataset", "The data set has no rows.")
        with blamed_on("evaluation_failed", f"{subject.name} does not run"):
            latency = subject.latency(reading.first, wanted.batch_size)
    sums = reading.sums
    running = Running(
        loss=_mean(sums.loss, sums.predictions),
        perplexity=_perplexity(sums),
        accuracy=_mean(sums.correct, sums.rows),
        latency_seconds=latency,
        rows_per_second=sums.rows / seconds if seconds else 0.0,
        tokens_per_second=None if sums.tokens is None else sums.tokens / seconds,
        blocks=subject.blocks,
        weight_bytes=subject.weight_bytes,
        resident_peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        seconds=time.perf_counter() - started,
    )
    return Ran(running=running, rows=sums.rows, tokens=sums.tokens, agreement=None)


class _Reading:
    """What goes into a model and what comes out of it, looked at on the way.

    Args:
        subject: The model.
        code: Of the problem that its inputs are blamed with.
        take: Given the answers.
    """

    def __init__(self, subject: Evaluated, code: str, take: Callable[[Answers], None]) -> None:
        self._subject = subject
        self._code = code
        self._take = take
        self.sums = _Sums()
        self.first: Batch | None = None

    def batches(self, dataset: Path | None, wanted: Evaluate) -> Iterator[Batch]:
        """Give all inputs."""
        batches = self._subject.batches(dataset, wanted)
        rows = 0
        while True:
            with blamed_on(self._code, f"The rows from {rows} on cannot be read"):
                batch = next(batches, None)
            if batch is None:
                return
            self.first = self.first or batch
            rows += batch.rows
            yield batch

    def take(self, batch: Batch, output: Any) -> None:  # noqa: ANN401 - whatever it gave
        """Take what the model gave for the next of them."""
        with blamed_on(self._code, self.refused):
            answers = self._subject.read(batch, output)
        _require_finite(answers, self.sums.rows)
        self._take(answers)
        self.sums.add(answers, batch.rows)

    def refused(self) -> str:
        """Say what went wrong where nothing else did."""
        return f"{self._subject.name} does not take the rows from {self.sums.rows} on"


def _require_finite(answers: Answers, row: int) -> None:
    loss = answers.loss_sum or 0.0
    if not (math.isfinite(loss) and bool(torch.isfinite(answers.outputs).all())):
        raise Problem(
            "evaluation_failed",
            f"The model answers NaN or infinity somewhere in the rows from {row} on.",
        )


def _mean(total: float | None, count: int) -> float | None:
    return None if total is None or not count else total / count


def _perplexity(sums: _Sums) -> float | None:
    if sums.loss is None or sums.correct is not None:
        return None
    return math.exp(min(sums.loss / sums.predictions, 700.0))
