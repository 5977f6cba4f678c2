"""A program as something that `evaluation` can run."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from evaluation.answers import Kept, predictions_of
from evaluation.datasets import Rows
from evaluation.inputs import Batch, Span, read_some
from evaluation.outputs import Answers, read_logits
from evaluation.subjects import LATENCY_ROWS, OnRows, Take, measure_latency, run_each
from jobs.inferring import InferOutput
from jobs.problems import Problem
from jobs.program import Program
from jobs.recipe import Evaluate
from planning.graph_values import given_of, operator_of, tensor_of
from programs.loading import LoadedProgram, example_shape, row_limits

#: Of a file's column: the rows' and seven more.
_MOST_DIMENSIONS = 8
_DTYPES = {
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
    "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32,
    "I64": torch.int64, "BOOL": torch.bool,
}  # fmt: skip


class ProgramSubject:
    """A program that was opened to be run.

    Args:
        path: The file: the original, or an artifact.

    Attributes:
        name: What it is called in problems.
        blocks: 0: it is run as a whole.
    """

    name: str
    blocks = 0

    def __init__(self, path: Path) -> None:
        self._loaded = LoadedProgram(path)
        self.name = "The program"

    @property
    def weight_bytes(self) -> int:
        """What its tensors take in memory."""
        return self._loaded.weight_bytes

    def batches(self, dataset: Path | None, wanted: Evaluate | Span) -> Iterator[Batch]:
        """Give its inputs, batch by batch, the same each time."""
        return batches_of(self._loaded.described, dataset, wanted)

    def answer(self, batch: Batch) -> torch.Tensor:
        """Run it; rows are repeated where it takes no fewer than it was exported with."""
        least, most = row_limits(self._loaded.described)
        rows, parts = batch.rows, []
        for start in range(0, rows, most):
            count = min(most, rows - start)
            chosen = start + torch.arange(max(count, least)) % count
            inputs = {name: tensor[chosen] for name, tensor in batch.inputs.items()}
            parts.append(self._loaded.call(inputs)[:count])
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def read(self, batch: Batch, output: Any) -> Answers:  # noqa: ANN401 - what `answer` gave
        """Take what is compared out of what it gave."""
        if len(output) != batch.rows:
            raise Problem(
                "evaluation_failed",
                f"For {batch.rows} rows the program gives {len(output)}: its first output does not "
                "begin with the rows of its first input.",
            )
        return read_logits(output, batch.labels)

    def default_output(self) -> InferOutput:
        """Give what is kept of its answers unless a recipe says it: all, as it gives them."""
        return "logits"

    def infer(self, batch: Batch, wanted: InferOutput) -> Kept:
        """Run it, and keep what is wanted of its first float output."""
        output = self.answer(batch)
        if len(output) != batch.rows or output.ndim > _MOST_DIMENSIONS or wanted == "embeddings":
            raise Problem(
                "evaluation_failed",
                f"For {batch.rows} rows the program gives {list(output.shape)}, of which there are "
                f"no {wanted} for each row.",
            )
        if wanted == "logits":
            return {"logits": output.float()}
        if output.ndim > 2:
            raise Problem(
                "evaluation_failed", "Its output is of more than classes: ask for logits."
            )
        return predictions_of(output)

    @property
    def class_names(self) -> dict[int, str] | None:
        """What its classes are called: nothing says it."""
        return None

    @property
    def is_rounding(self) -> bool:
        """Whether its numbers depend on more than a row's own: of int8 and of short floats."""
        dtypes = {tensor.spec.dtype for tensor in self._loaded.described.tensors.values()}
        return not dtypes <= {"F32", "F64", "I64", "I32", "BOOL"}

    def run(self, batches: Iterable[Batch], take: Take, on_rows: OnRows) -> float:
        """Run it over one batch after the other."""
        return run_each(self.answer, batches, take, on_rows)

    def latency(self, batch: Batch, most: int) -> dict[str, float]:
        """Give the median seconds of one forward, by its rows: as many as it takes."""
        limits = row_limits(self._loaded.described)
        fitting = [rows for rows in LATENCY_ROWS if rows <= most and limits[0] <= rows <= limits[1]]
        return measure_latency(self.answer, batch, fitting or limits[:1])


def batches_of(
    described: Program, dataset: Path | None, wanted: Evaluate | Span
) -> Iterator[Batch]:
    """Give the inputs of a program, batch by batch, the same each time.

    Args:
        described: The program.
        dataset: The uploaded file; None for random values.
        wanted: How many rows, and the seed.

    Yields:
        Batches of at most `wanted.batch_size` rows.

    Raises:
        Problem: `invalid_dataset`, `evaluation_failed`.
    """
    if dataset is None:
        assert isinstance(wanted, Evaluate)  # noqa: S101 - spans are of data sets
        yield from _random_batches(described, wanted)
        return
    for rows in read_some(dataset, wanted):
        inputs, labels = inputs_of(described, rows)
        if labels is not None and (labels.ndim != 1 or labels.is_floating_point()):
            raise Problem(
                "invalid_dataset",
                f"The labels are {labels.dtype} of {list(labels.shape)}; one whole number is "
                "needed for each row.",
            )
        yield Batch(inputs, None if labels is None else labels.long())


def inputs_of(
    described: Program, rows: Rows
) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
    """Take apart what a program is given and what it is to answer.

    Args:
        described: The program.
        rows: Some rows of a data set.

    Returns:
        The program's inputs, of the dtypes that it takes, and the labels as they came; None
        without any.

    Raises:
        Problem: `invalid_dataset`: they are not what the program takes.
    """
    if not isinstance(rows, dict):
        raise Problem(
            "invalid_dataset",
            "The data set holds text or images; the program takes tensors: "
            f"{list(described.inputs)}. Send them by name in .npz or safetensors.",
        )
    given = {name: tensor for name, tensor in rows.items() if name != "labels"}
    if set(given) != set(described.inputs):
        raise Problem(
            "invalid_dataset",
            f"The data set has the fields {sorted(given)}; the program takes "
            f"{sorted(described.inputs)}, and labels may be beside them.",
        )
    inputs = {name: _fit(described, name, given[name]) for name in described.inputs}
    return inputs, rows.get("labels")


def _fit(described: Program, name: str, rows: torch.Tensor) -> torch.Tensor:
    seen = {one[0]: one for one in described.interface()[2]}
    _, dtype, shape = seen[name]
    fits = len(shape) == rows.ndim and all(
        want is None or want == got for want, got in zip(shape[1:], rows.shape[1:], strict=False)
    )
    if not fits:
        wanted = ["rows", *("any" if size is None else size for size in shape[1:])]
        raise Problem(
            "invalid_dataset", f"{name} is of {list(rows.shape)}; the program takes {wanted}."
        )
    return rows.to(_DTYPES[dtype])


def _random_batches(described: Program, wanted: Evaluate) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(wanted.seed)
    seen = {one[0]: one for one in described.interface()[2]}
    for start in range(0, wanted.rows, wanted.batch_size):
        rows = min(wanted.batch_size, wanted.rows - start)
        inputs = {}
        for name in described.inputs:
            shape = [rows, *example_shape(described, name)[1:]]
            inputs[name] = _random(described, name, shape, _DTYPES[seen[name][1]], generator)
        yield Batch(inputs)


def _random(
    described: Program,
    name: str,
    shape: list[int],
    dtype: torch.dtype,
    generator: torch.Generator,
) -> torch.Tensor:
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(_count_of(described, name), shape, generator=generator).to(dtype)


def _count_of(described: Program, name: str) -> int:
    """Give below what the whole numbers of an input lie: the rows of the table they are for."""
    for node in described.graph["nodes"]:
        given = given_of(node)
        if operator_of(node) == "embedding" and tensor_of(given, "indices") == name:
            table = described.sources.get(tensor_of(given, "weight") or "")
            if table is not None:
                return described.tensors[table].spec.shape[0]
    return 2
