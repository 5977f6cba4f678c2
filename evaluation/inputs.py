"""What models are run on: batches of a data set, or of seeded random values."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from evaluation.datasets import Rows, read_rows
from evaluation.image_rows import ImageRows
from evaluation.labels import label_index, label_value
from evaluation.picking import pick, without_first, without_labels
from evaluation.processors import Processor, image_processor, text_encoder
from jobs.finetuning import FinetuneStep
from jobs.problems import Problem
from jobs.recipe import Calibrate, Evaluate

#: What a model is given that says which of its inputs are padding.
MASK = "attention_mask"
_DEFAULT_IMAGE_SIDE = 224
_MOST_IMAGE_SIDE = 4096
_DECODER_TOKENS = 4
#: Objectives whose right answers are the rows' own tokens.
_OF_TOKENS = ("causal_lm", "masked_lm")


@dataclass(frozen=True)
class Batch:
    """Inputs of some rows.

    Attributes:
        inputs: What ``forward`` takes, by name, [B, …].
        labels: Right answers, int64 [B]; None where there are none.
        mask: Which places of a row hold tokens, bool [B, T]; None where all do.
        names: What the rows are called in the data set; None where they have no names.
    """

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor | None = None
    mask: torch.Tensor | None = field(default=None)
    names: list[str] | None = None

    @property
    def rows(self) -> int:
        """B."""
        return len(next(iter(self.inputs.values())))


@dataclass(frozen=True)
class Span:
    """Rows of a data set, nothing of which is measured or learned.

    Attributes:
        rows: How many, the first ones.
        batch_size: How many at a time.
        max_length: Tokens of a row, at most.
        chosen: Which of them, counted from 0; None for all.
        skipped: How many of the first ones to leave out: whole batches.
    """

    rows: int
    batch_size: int
    max_length: int
    chosen: frozenset[int] | None = None
    skipped: int = 0


Wanted = Evaluate | Calibrate | FinetuneStep | Span


def batches_of(
    model: Any,  # noqa: ANN401 - transformers has no types
    folder: Path,
    dataset: Path | None,
    wanted: Wanted,
) -> Iterator[Batch]:
    """Give the inputs of a model, batch by batch, the same each time.

    Args:
        model: Whose; the original or the artifact.
        folder: Where its tokenizer is.
        dataset: The uploaded file; None for random values.
        wanted: How many rows, how long, and the seed. A finetune step says what is learned.

    Yields:
        Batches of at most `wanted.batch_size` rows.

    Raises:
        Problem: `invalid_dataset`, with the row; `evaluation_failed`.
    """
    if dataset is None:
        assert isinstance(wanted, Evaluate)  # noqa: S101 - the others have a data set
        yield from _random_batches(model, wanted)
        return
    encode = process = None
    # Only training knows what to do with values for labels.
    has_values = isinstance(wanted, FinetuneStep) and wanted.objective == "regression"
    for rows in read_some(dataset, wanted):
        if isinstance(rows, dict):
            yield _tensor_batch(model, rows, has_values=has_values)
            continue
        if isinstance(rows, ImageRows):
            process = process or image_processor(folder)
            found = _labels(model, rows.labels, has_values=has_values)
            yield _image_batch(model, process, rows, found)
            continue
        encode = encode or text_encoder(folder, _longest(model, wanted))
        found = _labels(model, rows.labels, has_values=has_values)
        yield _text_batch(model, encode(rows.texts), found)


def read_some(dataset: Path, wanted: Wanted) -> Iterator[Rows]:
    """Read those rows of a data set that are wanted, some at a time; as `read_rows`."""
    blocks = read_rows(dataset, wanted.batch_size, wanted.rows)
    if isinstance(wanted, FinetuneStep) and wanted.objective in _OF_TOKENS:
        return without_labels(blocks)
    if not isinstance(wanted, Span):
        return blocks
    plain = without_labels(without_first(blocks, wanted.skipped))
    return plain if wanted.chosen is None else pick(plain, wanted.chosen)


def _labels(model: Any, labels: list[Any] | None, *, has_values: bool) -> torch.Tensor | None:  # noqa: ANN401
    """Give the labels of rows of text or of images: classes, or values."""
    if labels is None:
        return None
    if has_values:
        return torch.tensor([label_value(label) for label in labels])
    return torch.tensor([label_index(label, model) for label in labels])


def _tensor_batch(model: Any, rows: dict[str, torch.Tensor], *, has_values: bool) -> Batch:  # noqa: ANN401
    takes = set(inspect.signature(model.forward).parameters)
    labels = rows.pop("labels", None)
    unknown = sorted(set(rows) - takes)
    if unknown or model.main_input_name not in rows:
        raise Problem(
            "invalid_dataset",
            f"The data set has the fields {sorted(rows)}; a {type(model).__name__} takes "
            f"{model.main_input_name!r} and may take {sorted(takes - {model.main_input_name})}.",
        )
    weight = next(model.parameters())
    inputs = {
        name: tensor.to(weight.dtype) if tensor.is_floating_point() else tensor.long()
        for name, tensor in rows.items()
    }
    _require_known(model, inputs.get("input_ids"))
    if labels is not None and has_values:
        labels = labels.float()
    elif labels is not None and (labels.ndim != 1 or labels.is_floating_point()):
        raise Problem(
            "invalid_dataset",
            f"The labels are {labels.dtype} of {list(labels.shape)}; one whole number is needed "
            "for each row.",
        )
    return Batch(
        _with_decoder(model, inputs),
        labels if labels is None or has_values else labels.long(),
        _mask_of(inputs),
    )


def _mask_of(inputs: dict[str, torch.Tensor]) -> torch.Tensor | None:
    mask = inputs.get(MASK)
    if mask is None:
        return None
    if mask.ndim != 2 or not bool(mask.bool().any(dim=1).all()):
        raise Problem(
            "invalid_dataset",
            f"{MASK} is of {list(mask.shape)}; it has one number for each token of a row, and at "
            "least one of a row is no padding.",
        )
    return mask.bool()


def _require_known(model: Any, ids: torch.Tensor | None) -> None:  # noqa: ANN401
    if ids is None:
        return
    if ids.ndim != 2:
        raise Problem("invalid_dataset", f"input_ids is of {list(ids.shape)}, not [rows, tokens].")
    size = model.config.get_text_config().vocab_size
    wrong = ((ids < 0) | (ids >= size)).nonzero()
    if len(wrong):
        row, place = wrong[0].tolist()[:2]
        raise Problem(
            "invalid_dataset",
            f"input_ids of row {row} of a batch has {int(ids[row, place])} at place {place}; the "
            f"model knows tokens from 0 to {size - 1}.",
        )


def _text_batch(
    model: Any,  # noqa: ANN401
    inputs: dict[str, torch.Tensor],
    labels: torch.Tensor | None,
) -> Batch:
    takes = set(inspect.signature(model.forward).parameters)
    _require_known(model, inputs["input_ids"])
    mask = _mask_of(inputs)
    known = {name: tensor for name, tensor in inputs.items() if name in takes}
    return Batch(_with_decoder(model, known), labels, mask)


def _image_batch(
    model: Any,  # noqa: ANN401
    process: Processor,
    rows: ImageRows,
    labels: torch.Tensor | None,
) -> Batch:
    # One after the other: an image may be far larger than what becomes of it.
    values = torch.cat([process(image) for image in rows.decoded()])
    inputs = {model.main_input_name: values.to(next(model.parameters()).dtype)}
    return Batch(inputs, labels, names=rows.names)


def _longest(model: Any, wanted: Wanted) -> int:  # noqa: ANN401
    """Give how many tokens a row may have: the model has no places for more."""
    places = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    # Some keep two of their places for padding.
    return min(wanted.max_length, places - 2) if places and places > 2 else wanted.max_length


def _random_batches(model: Any, wanted: Evaluate) -> Iterator[Batch]:  # noqa: ANN401
    generator = torch.Generator().manual_seed(wanted.seed)
    left = wanted.rows
    while left:
        count = min(wanted.batch_size, left)
        left -= count
        yield Batch(_with_decoder(model, _random_inputs(model, count, wanted, generator)))


def _random_inputs(
    model: Any,  # noqa: ANN401
    count: int,
    wanted: Evaluate,
    generator: torch.Generator,
) -> dict[str, torch.Tensor]:
    config, name = model.config, model.main_input_name
    dtype = next(model.parameters()).dtype
    if name == "input_ids":
        size = (count, _longest(model, wanted))
        vocabulary = config.get_text_config().vocab_size
        return {name: torch.randint(vocabulary, size, generator=generator)}
    if name == "pixel_values":
        side = getattr(config, "image_size", None) or _DEFAULT_IMAGE_SIDE
        height, width = (side, side) if isinstance(side, int) else tuple(side)
        if max(height, width) > _MOST_IMAGE_SIDE:
            raise Problem("evaluation_failed", f"config.json has images of {height} by {width}.")
        channels = getattr(config, "num_channels", 3)
        pixels = torch.randn(count, channels, height, width, generator=generator)
        return {name: pixels.to(dtype)}
    if name == "input_features":
        frames = 2 * config.max_source_positions
        features = torch.randn(count, config.num_mel_bins, frames, generator=generator)
        return {name: features.to(dtype)}
    raise Problem(
        "evaluation_failed",
        f"A {type(model).__name__} takes {name!r}, for which there are no random inputs. Give "
        "evaluate.dataset.",
    )


def _with_decoder(model: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:  # noqa: ANN401
    """Have an encoder-decoder begin its answer."""
    if not model.config.is_encoder_decoder or "decoder_input_ids" in inputs:
        return inputs
    text = model.config.get_text_config(decoder=True)
    first = getattr(text, "decoder_start_token_id", None) or 0
    # A config that says nothing of it has its class's default, which its vocabulary may lack.
    first = first if first < text.vocab_size else 0
    count = len(next(iter(inputs.values())))
    return {**inputs, "decoder_input_ids": torch.full((count, _DECODER_TOKENS), first)}
