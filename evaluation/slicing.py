"""Parts of a batch: some of its rows, without padding that none of them needs."""

import torch

from evaluation.inputs import Batch


def lengths_of(batch: Batch) -> torch.Tensor | None:
    """Give where each row's last token ends.

    Args:
        batch: Some rows.

    Returns:
        int64 [B]; None where the batch has no mask.
    """
    if batch.mask is None:
        return None
    places = torch.arange(1, batch.mask.shape[1] + 1)
    return (batch.mask * places).amax(dim=1)


def take_rows(batch: Batch, rows: torch.Tensor, most: int | None = None) -> Batch:
    """Take rows out of a batch.

    Args:
        batch: Some rows.
        rows: Which ones, int64.
        most: Tokens of a row, at most; the first ones. None keeps all.

    Returns:
        These rows, in that order. Padding after the longest of them is gone.
    """
    lengths = lengths_of(batch)
    labels = None if batch.labels is None else batch.labels[rows]
    names = None if batch.names is None else [batch.names[row] for row in rows.tolist()]
    if batch.mask is None or lengths is None:
        inputs = {name: values[rows] for name, values in batch.inputs.items()}
        return Batch(inputs, labels, None, names)
    longest = int(lengths[rows].max())
    kept = longest if most is None else min(longest, most)
    inputs = {
        name: values[rows, :kept] if _is_by_token(name, values, batch.mask) else values[rows]
        for name, values in batch.inputs.items()
    }
    return Batch(inputs, labels, batch.mask[rows, :kept], names)


def _is_by_token(name: str, values: torch.Tensor, mask: torch.Tensor) -> bool:
    # What a decoder begins its answer with is no part of the row.
    return values.shape[:2] == mask.shape and not name.startswith("decoder_")
