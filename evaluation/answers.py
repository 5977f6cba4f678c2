"""What of a model's answers is kept for each row, as tensors of one shape for all rows.

Dimension key: B rows, T tokens, C classes or tokens of the vocabulary, H hidden size.
"""

import inspect
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name

from evaluation.inputs import Batch
from evaluation.outputs import averaged, is_causal
from jobs.inferring import InferOutput
from jobs.problems import Problem

#: Answers by the name of their column.
Kept = dict[str, torch.Tensor]


def default_answer(model: Any) -> InferOutput:  # noqa: ANN401 - transformers has no types
    """Give what the model's class is for.

    Args:
        model: A ``PreTrainedModel``.

    Returns:
        `predictions` where it classifies rows or continues them, else `embeddings`.
    """
    name = type(model).__name__
    is_classifier = name.endswith("Classification") and "TokenClass" not in name
    return "predictions" if is_classifier or is_causal(model) else "embeddings"


def answers_of(model: Any, batch: Batch, wanted: InferOutput) -> Kept:  # noqa: ANN401
    """Run a model and keep what is wanted of its answers.

    Args:
        model: A ``PreTrainedModel``.
        batch: What it is given. Padding comes last in each row.
        wanted: What is kept.

    Returns:
        By column, one entry for each row: `embedding` [B, H]; `logits` [B, C], of a language model
        those after a row's last token; or predictions: `label`, `probability` and `probabilities`
        of classes, `value` of a single number, and of a language model the `token` that is likely
        to follow, its `probability`, and the mean `loss` of the row's own tokens in nats.

    Raises:
        Problem: `evaluation_failed`: the model gives nothing of that kind.
    """
    if wanted == "embeddings":
        return {"embedding": _embeddings(model, batch)}
    if is_causal(model):
        return _of_tokens(model, batch, wanted)
    logits = getattr(model(**batch.inputs), "logits", None)
    if not isinstance(logits, torch.Tensor):
        raise _nothing(model, wanted, "It gives no logits")
    is_per_token = logits.ndim == 3 and "input_ids" in batch.inputs
    if is_per_token or (wanted == "predictions" and logits.ndim > 2):
        raise _nothing(model, wanted, "Its logits are of every place of a row")
    if wanted == "logits":
        return {"logits": logits.float()}
    is_multi_label = getattr(model.config, "problem_type", "") == "multi_label_classification"
    return predictions_of(logits, is_multi_label=is_multi_label)


def predictions_of(logits: torch.Tensor, *, is_multi_label: bool = False) -> Kept:
    """Give what logits say of each row.

    Args:
        logits: [B, C], [B, 1] or [B].
        is_multi_label: Whether a row may have any number of the classes.

    Returns:
        As of `answers_of`; where a row may have several classes, their `probabilities` alone.
    """
    logits = logits.float()
    if logits.ndim == 1 or logits.shape[1] == 1:
        return {"value": logits.reshape(-1)}
    if is_multi_label:
        return {"probabilities": logits.sigmoid()}
    probabilities = logits.softmax(1)
    best = probabilities.max(1)
    return {"label": best.indices, "probability": best.values, "probabilities": probabilities}


def _embeddings(model: Any, batch: Batch) -> torch.Tensor:  # noqa: ANN401
    is_pair = model.config.is_encoder_decoder
    body = model.get_encoder() if is_pair else model.base_model
    takes = set(inspect.signature(body.forward).parameters)
    given: dict[str, Any] = {n: values for n, values in batch.inputs.items() if n in takes}
    if "use_cache" in takes and not is_pair:
        given["use_cache"] = False
    hidden = getattr(body(**given), "last_hidden_state", None)
    if not isinstance(hidden, torch.Tensor):
        raise _nothing(model, "embeddings", "Its body gives no last hidden states")
    return averaged(hidden, batch.mask)


def _of_tokens(model: Any, batch: Batch, wanted: InferOutput) -> Kept:  # noqa: ANN401
    ids = batch.inputs["input_ids"]
    mask = torch.ones_like(ids, dtype=torch.bool) if batch.mask is None else batch.mask
    last = (mask * torch.arange(1, ids.shape[1] + 1)).amax(1) - 1
    takes = set(inspect.signature(model.forward).parameters)
    given: dict[str, Any] = {**batch.inputs, "use_cache": False}
    rows = torch.arange(len(ids))
    if wanted == "logits":
        # Those of one place alone, where the model can leave the others out.
        places, which = torch.unique(last, return_inverse=True)
        if "logits_to_keep" in takes:
            return {"logits": model(**given, logits_to_keep=places).logits[rows, which].float()}
        return {"logits": model(**given).logits[rows, last].float()}
    logits = model(**given).logits
    following = logits[rows, last].float().softmax(1).max(1)
    losses = [
        _mean_loss(logits[row, :-1][mask[row, 1:]], ids[row, 1:][mask[row, 1:]])
        for row in range(len(ids))
    ]
    return {
        "token": following.indices,
        "probability": following.values,
        "loss": torch.stack(losses),
    }


def _mean_loss(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    # Of a row with a single token, none was predicted.
    return F.cross_entropy(logits.float(), ids) if len(ids) else torch.zeros(())


def _nothing(model: Any, wanted: InferOutput, reason: str) -> Problem:  # noqa: ANN401
    return Problem(
        "evaluation_failed",
        f"There are no {wanted} of a {type(model).__name__} for a row. {reason}: ask for another "
        "output, such as embeddings.",
    )
