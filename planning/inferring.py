"""What running a model over a data set will cost: an estimate, as only its own code knows more."""

import math
from dataclasses import replace
from typing import Any

from jobs.checkpoint import Checkpoint
from jobs.inferring import InferOutput, InferStep
from jobs.program import Program
from jobs.recipe import Budget
from jobs.safetensors_header import TensorSpec
from planning.memory_model import Levels
from planning.prediction import Prediction, StepPrediction
from planning.walks import WIDTH_KEYS
from planning.working_set import WorkingSet

#: What importing torch and transformers adds to an idle runner at most: 391 MB seen, and 340 MB of
#: torch alone with what opens programs.
_LIBRARY_BYTES = 412_000_000
_PROGRAM_LIBRARY_BYTES = 370_000_000
#: pyarrow, where the answers are written as parquet; most of it finds room that importing left.
_PARQUET_BYTES = 20_000_000
#: Loading holds some weights twice.
_SHARE_ON_TOP = 0.15
#: What is run together at most where nothing else is said, in tokens or rows.
_MOST_CELLS = 16_384
#: Floats that a token takes at a time, by the hidden size: of a block, with its MLP.
_WIDTHS_AT_ONCE = 14
_FLOAT_BYTES = 4
_LABEL_BYTES = 8


def predict_inference(
    model: Checkpoint | Program,
    step: InferStep,
    budget: Budget,
    levels: Levels,
    rows: int | None = None,
) -> Prediction:
    """Predict what an infer step will cost.

    Args:
        model: What came in.
        step: What is wanted.
        budget: What it may cost.
        levels: What is known of the processes that run jobs.
        rows: How many rows the data set has; None where nobody knows.

    Returns:
        The prediction. Its smallest budget is what the libraries and the weights take, as far as
        that was seen: one row more may not fit, which the job finds out. Bytes written leave out
        what is not known: rows, or the size of an answer.
    """
    if step.rows is not None:
        rows = step.rows if rows is None else min(rows, step.rows)
    config = model.config or {} if isinstance(model, Checkpoint) else {}
    output = _output_of(model, config) if step.output == "auto" else step.output
    written = (rows or 0) * (_row_bytes(model, config, output) or 0)
    weights = sum(tensor.nbytes for tensor in _specs(model))
    libraries = _LIBRARY_BYTES if isinstance(model, Checkpoint) else _PROGRAM_LIBRARY_BYTES
    libraries += _PARQUET_BYTES if step.format == "parquet" else 0
    least = levels.idle_bytes + libraries + weights
    loaded = least + round(_SHARE_ON_TOP * weights)
    rows_at_once = None if step.batch_size == "auto" else step.batch_size
    about = loaded + _batch_bytes(config, step, output, rows_at_once)
    sufficient = loaded + _batch_bytes(config, step, output, rows_at_once or 1)
    peak = about if budget.host_memory is None else max(least, min(about, budget.host_memory))
    return Prediction(
        steps=(StepPrediction("infer", output, 0, 0, written, peak, rows),),
        artifact_bytes=written,
        host_peak_bytes=peak,
        device_peak_bytes=None,
        least_host_bytes=least,
        sufficient_host_bytes=sufficient,
        least_device_bytes=None,
        buffers=WorkingSet(1, 0, {}, {}),
    )


def join(compression: Prediction, inference: Prediction) -> Prediction:
    """Give what a job costs that compresses a model and then infers with it.

    Args:
        compression: What the steps before cost.
        inference: What the last one costs.

    Returns:
        Both, one after the other.
    """
    return replace(
        compression,
        steps=(*compression.steps, *inference.steps),
        artifact_bytes=compression.artifact_bytes + inference.artifact_bytes,
        host_peak_bytes=max(compression.host_peak_bytes, inference.host_peak_bytes),
        least_host_bytes=max(compression.least_host_bytes, inference.least_host_bytes),
        sufficient_host_bytes=max(
            compression.sufficient_host_bytes, inference.sufficient_host_bytes
        ),
    )


def _specs(model: Checkpoint | Program) -> list[TensorSpec]:
    if isinstance(model, Checkpoint):
        return list(model.tensors.values())
    return [tensor.spec for tensor in model.tensors.values()]


def _architecture(config: dict[str, Any]) -> str:
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


def _is_causal(config: dict[str, Any]) -> bool:
    return _architecture(config).endswith(("ForCausalLM", "LMHeadModel"))


def _is_classifier(config: dict[str, Any]) -> bool:
    name = _architecture(config)
    return name.endswith("Classification") and "TokenClass" not in name


def _output_of(model: Checkpoint | Program, config: dict[str, Any]) -> InferOutput:
    if not isinstance(model, Checkpoint):
        return "logits"
    return "predictions" if _is_classifier(config) or _is_causal(config) else "embeddings"


def _row_bytes(
    model: Checkpoint | Program, config: dict[str, Any], output: InferOutput
) -> int | None:
    """Give the bytes of one row's answers; None where headers do not tell."""
    if not isinstance(model, Checkpoint):
        width = _width_of_program(model)
    elif output == "embeddings":
        width = _width(config)
    elif _is_causal(config):
        if output == "predictions":
            return _LABEL_BYTES + 2 * _FLOAT_BYTES
        width = config.get("vocab_size")
    else:
        width = _classes(config) if _is_classifier(config) else None
    if not isinstance(width, int):
        return None
    several = output == "predictions" and width > 1
    return _FLOAT_BYTES * width + (_LABEL_BYTES + _FLOAT_BYTES if several else 0)


def _width(config: dict[str, Any]) -> int | None:
    return next((w for key in WIDTH_KEYS if isinstance(w := config.get(key), int)), None)


def _classes(config: dict[str, Any]) -> int:
    names, count = config.get("id2label"), config.get("num_labels")
    if isinstance(names, dict):
        return len(names)
    return count if isinstance(count, int) else 2


def _width_of_program(program: Program) -> int | None:
    """Give the values of a row in the first output that is float."""
    for seen in program.interface()[3]:
        # What is no tensor says nothing but its value.
        if len(seen) == 2 and seen[0].startswith(("F", "BF")) and seen[1]:
            sizes = seen[1][1:]
            return math.prod(sizes) if all(isinstance(size, int) for size in sizes) else None
    return None


def _batch_bytes(
    config: dict[str, Any], step: InferStep, output: InferOutput, rows: int | None
) -> int:
    """Give about what rows take on their way through the model; None takes the most together."""
    cells = _MOST_CELLS if rows is None else rows * step.max_length
    width = _WIDTHS_AT_ONCE * (_width(config) or 0)
    vocabulary = config.get("vocab_size")
    if _is_causal(config) and output == "predictions" and isinstance(vocabulary, int):
        width += 2 * vocabulary
    return cells * width * _FLOAT_BYTES
