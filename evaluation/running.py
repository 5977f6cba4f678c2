"""Runs one model over all inputs, and keeps what the other one is compared with."""

import math
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from evaluation.agreement import AgreementSum
from evaluation.faults import blamed_on
from evaluation.inputs import Batch
from evaluation.outputs import Answers
from evaluation.subjects import Subject
from jobs.problems import Problem
from jobs.quality import Agreement, Ran, Running
from jobs.recipe import Evaluate

OnRows = Callable[[int], None]
OpenSubject = Callable[[], Subject]

#: The original's outputs, kept for the artifact to be compared with.
_MOST_KEPT_BYTES = 64 * 1024**2
_LATENCY_RUNS = 9
_LATENCY_SECONDS = 2.0


@dataclass
class _Sums:
    rows: int = 0
    tokens: int | None = None
    loss: float | None = None
    predictions: int = 0
    correct: int | None = None
    seconds: float = 0.0

    def add(self, answers: Answers, rows: int, seconds: float) -> None:
        self.rows += rows
        self.seconds += seconds
        self.predictions += answers.predictions
        self.tokens = _plus(self.tokens, answers.tokens)
        self.loss = _plus(self.loss, answers.loss_sum)
        self.correct = _plus(self.correct, answers.correct)


def _plus(first: Any, second: Any) -> Any:  # noqa: ANN401 - None or a number
    return first if second is None else (first or 0) + second


def run_original(
    open_subject: OpenSubject, dataset: Path | None, wanted: Evaluate, kept: Path, on_rows: OnRows
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
    open_subject: OpenSubject,
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
    open_subject: OpenSubject,
    dataset: Path | None,
    wanted: Evaluate,
    take: Callable[[Answers], None],
    on_rows: OnRows,
) -> Ran:
    started = time.perf_counter()
    subject = open_subject()
    code = "evaluation_failed" if dataset is None else "invalid_dataset"
    sums = _Sums()
    first: Batch | None = None
    batches = subject.batches(dataset, wanted)
    with torch.inference_mode():
        while True:
            with blamed_on(code, f"The rows from {sums.rows} on cannot be read"):
                batch = next(batches, None)
            if batch is None:
                break
            first = first or batch
            with blamed_on(code, f"{subject.name} does not take the rows from {sums.rows} on"):
                begun = time.perf_counter()
                output = subject.answer(batch)
                seconds = time.perf_counter() - begun
                answers = subject.read(batch, output)
                del output
            _require_finite(answers, sums.rows)
            take(answers)
            sums.add(answers, batch.rows, seconds)
            on_rows(sums.rows)
        if first is None:
            raise Problem("invalid_dataset", "The data set has no rows.")
        with blamed_on("evaluation_failed", f"{subject.name} does not run"):
            latency = _latency(subject, first, wanted.batch_size)
    running = Running(
        loss=_mean(sums.loss, sums.predictions),
        perplexity=_perplexity(sums),
        accuracy=_mean(sums.correct, sums.rows),
        latency_seconds=latency,
        rows_per_second=sums.rows / sums.seconds if sums.seconds else 0.0,
        tokens_per_second=None if sums.tokens is None else sums.tokens / sums.seconds,
        weight_bytes=subject.weight_bytes,
        resident_peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        seconds=time.perf_counter() - started,
    )
    return Ran(running=running, rows=sums.rows, tokens=sums.tokens, agreement=None)


def _require_finite(answers: Answers, row: int) -> None:
    loss = answers.loss_sum or 0.0
    if not (math.isfinite(loss) and bool(torch.isfinite(answers.outputs).all())):
        raise Problem(
            "evaluation_failed",
            f"The model answers NaN or infinity somewhere in the rows from {row} on.",
        )


def _latency(subject: Subject, batch: Batch, most: int) -> dict[str, float]:
    """Give the median seconds of one forward, by batch size; none is larger than was asked for."""
    found = {}
    for size in subject.latency_rows(most):
        repeated = torch.arange(size) % batch.rows
        some = Batch({name: tensor[repeated] for name, tensor in batch.inputs.items()})
        subject.answer(some)
        seconds: list[float] = []
        while len(seconds) < _LATENCY_RUNS and sum(seconds) < _LATENCY_SECONDS:
            started = time.perf_counter()
            subject.answer(some)
            seconds.append(time.perf_counter() - started)
        found[str(size)] = statistics.median(seconds)
    return found


def _mean(total: float | None, count: int) -> float | None:
    return None if total is None or not count else total / count


def _perplexity(sums: _Sums) -> float | None:
    if sums.loss is None or sums.correct is not None:
        return None
    return math.exp(min(sums.loss / sums.predictions, 700.0))
