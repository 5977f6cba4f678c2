"""What of a model's output is compared, and what it says of right answers.

Dimension key: B rows, T tokens, W values of one output, N outputs.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name

from evaluation.inputs import Batch
from jobs.problems import Problem

#: How many places of a row are compared, where each has an output of its own.
_PLACES = 8
#: A target that nothing is said about.
UNTOLD = -100


@dataclass(frozen=True)
class Answers:
    """What a batch came to.

    Attributes:
        outputs: Some of the outputs, the same places for every model, float32 [N, W].
        is_distribution: Whether they are logits.
        loss_sum: Sum of cross-entropies in nats; None where nothing says what is right.
        predictions: How many those were.
        correct: How many rows had their label as first choice; None without labels.
        tokens: How many tokens the batch had, padding apart; None where inputs are none.
    """

    outputs: torch.Tensor
    is_distribution: bool
    loss_sum: float | None
    predictions: int
    correct: int | None
    tokens: int | None


def read_answers(model: Any, batch: Batch, output: Any) -> Answers:  # noqa: ANN401
    """Take what is compared out of a model's output.

    Args:
        model: Whose.
        batch: What it was given.
        output: What it gave. Where each token has logits, some are compared, spread evenly.

    Returns:
        The answers.

    Raises:
        Problem: `evaluation_failed`: the output holds neither logits nor hidden states.
    """
    logits, hidden = _first(output, "logits"), _first(output, "last_hidden_state")
    tokens = _tokens(model, batch)
    if logits is None and hidden is not None:
        return Answers(averaged(hidden, batch.mask), False, None, 0, None, tokens)
    if logits is None:
        raise Problem(
            "evaluation_failed",
            f"A {type(model).__name__} gives neither logits nor hidden states to compare.",
        )
    if logits.ndim == 4:
        # Of every place of an image, [B, W, height, width].
        return Answers(_spread(logits.flatten(2).mT, None), True, None, 0, None, tokens)
    if logits.ndim != 3:
        rows = logits.flatten(1).float()
        # Of one value, a softmax says nothing.
        return Answers(rows, rows.shape[1] > 1, *_of_labels(rows, batch.labels), tokens)
    if logits.shape[1] != _length(batch):
        # A decoder's own tokens, or queries of an image: all of them are real.
        return Answers(_spread(logits, None), True, None, 0, None, tokens)
    chosen = _spread(logits, batch.mask)
    if not is_causal(model):
        return Answers(chosen, True, None, 0, None, tokens)
    return Answers(chosen, True, *_of_tokens(logits, batch), None, tokens)


def read_logits(logits: torch.Tensor, labels: torch.Tensor | None) -> Answers:
    """Take what is compared out of a tensor of which nothing but the shape is known.

    Args:
        logits: [B, W]; or [B, T, W] or [B, W, H, W'], of which some places are compared; or [B].
        labels: Right answers, int64 [B]; None where there are none. They are for [B, W].

    Returns:
        The answers.

    Raises:
        Problem: `invalid_dataset`: the labels are no classes of it.
    """
    if logits.ndim == 3:
        return Answers(_spread(logits, None), logits.shape[2] > 1, None, 0, None, None)
    if logits.ndim == 4:
        return Answers(_spread(logits.flatten(2).mT, None), True, None, 0, None, None)
    rows = logits.reshape(len(logits), -1).float()
    return Answers(rows, rows.shape[1] > 1, *_of_labels(rows, labels), None)


def _first(output: Any, name: str) -> torch.Tensor | None:  # noqa: ANN401
    found = getattr(output, name, None)
    return found if isinstance(found, torch.Tensor) else None


def is_causal(model: Any) -> bool:  # noqa: ANN401
    """Tell whether a model predicts each token from all before it."""
    from transformers.models.auto.modeling_auto import (  # noqa: PLC0415 - slow to import
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    )

    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model.config.model_type)
    # A BERT has such a class and sees the next token, unless it is told to be a decoder.
    is_decoder = getattr(model.config, "is_decoder", True)
    return type(model).__name__ == name and is_decoder and not model.config.is_encoder_decoder


def _length(batch: Batch) -> int:
    ids = batch.inputs.get("input_ids")
    return -1 if ids is None else ids.shape[1]


def _tokens(model: Any, batch: Batch) -> int | None:  # noqa: ANN401
    if model.main_input_name != "input_ids":
        return None
    if batch.mask is not None:
        return int(batch.mask.sum())
    return batch.inputs["input_ids"].numel()


def averaged(hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Average hidden states over the tokens or places of each row, padding apart."""
    if hidden.ndim == 4:
        # An image's features, [B, W, height, width].
        return hidden.float().mean(dim=(2, 3))
    if mask is None or mask.shape != hidden.shape[:2]:
        return hidden.float().flatten(1, -2).mean(dim=1)
    kept = mask[..., None].float()
    return (hidden.float() * kept).sum(1) / kept.sum(1).clamp(min=1)


def _spread(logits: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Take some places of each row, evenly spread over those that are no padding.

    Each lies in the middle of its part of the row, so none is the first, which has no context.
    """
    taken = []
    for row in range(len(logits)):
        valid = torch.arange(logits.shape[1]) if mask is None else mask[row].nonzero()[:, 0]
        count = min(len(valid), _PLACES)
        middles = (torch.arange(count) + 0.5) * (len(valid) / max(1, count))
        taken.append(logits[row, valid[middles.long()]].float())
    return torch.cat(taken)


def _of_labels(
    logits: torch.Tensor, labels: torch.Tensor | None
) -> tuple[float | None, int, int | None]:
    if labels is None:
        return None, 0, None
    if logits.shape[1] == 1:
        raise Problem(
            "invalid_dataset",
            "The model gives one value for each row, which labels say nothing about. Leave the "
            "labels out.",
        )
    if not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
        raise Problem(
            "invalid_dataset",
            f"The labels go from {int(labels.min())} to {int(labels.max())}; the model has "
            f"{logits.shape[1]} classes.",
        )
    loss = F.cross_entropy(logits.double(), labels, reduction="sum")
    return float(loss), len(labels), int((logits.argmax(1) == labels).sum())


def next_tokens(batch: Batch) -> torch.Tensor:
    """Give the right token for each place of a row but the last, int64 [B, T - 1].

    Args:
        batch: Rows of `input_ids`.

    Returns:
        The tokens; `UNTOLD` where nothing is right.
    """
    targets = batch.inputs["input_ids"][:, 1:].clone()
    if batch.mask is not None:
        # Padding may come first, too: what follows it was predicted from nothing.
        targets[~(batch.mask[:, 1:] & batch.mask[:, :-1])] = UNTOLD
    return targets


def _of_tokens(logits: torch.Tensor, batch: Batch) -> tuple[float | None, int]:
    """Give the loss of each token after all before it, padding apart."""
    targets = next_tokens(batch)
    total, count = 0.0, int((targets != UNTOLD).sum())
    for row, target in zip(logits[:, :-1], targets, strict=True):
        # A row at a time: in doubles, all rows would take several times what the model took.
        total += float(F.cross_entropy(row.float(), target, ignore_index=UNTOLD, reduction="sum"))
    return (total, count) if count else (None, 0)
